"""Event recordings by the ``data`` section that names them."""

from pathlib import Path

from jaxkit.data import Source
from jaxkit.data.events import Binning, as_images
from jaxkit.data.events.aedat import open_dvs_gesture
from jaxkit.data.events.nmnist import open_nmnist
from jaxkit.data.events.speech import open_spoken_words
from jaxkit.schema.data import DvsGesture, Events, NMnist, SpokenWords


def open_events(config: Events) -> Source:
    """Opens recordings as images [t n 1], whose rows are frames and whose columns are the sensor, flattened.

    Raises :class:`DataError` if they are missing or malformed, or the binning does not fit the sensor.
    """
    binning = Binning(config.step_time, config.duration, config.downsample)
    match config:
        case NMnist():
            return as_images(open_nmnist(Path(config.root), binning))
        case DvsGesture():
            return as_images(open_dvs_gesture(Path(config.root), binning))
        case SpokenWords():
            return as_images(open_spoken_words(Path(config.train), Path(config.test), binning))
