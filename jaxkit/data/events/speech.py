"""The Heidelberg spiking data sets SHD and SSC: speech through a model of the cochlea (Cramer et al., TNNLS 2020)."""

from pathlib import Path

import numpy as np

from jaxkit.data import DataError, Source
from jaxkit.data.events import Binning, EventExamples, Events, check_addresses, make_source

SENSOR = (700,)
ARRAYS = ("spikes/times", "spikes/units", "labels")


class SpokenWords:
    """The recordings of one HDF5 file: ``words[i]`` reads the events of one, of 700 units.

    The file holds ``spikes/times`` (seconds) and ``spikes/units``, an array a recording, and ``labels``; it stays open.

    Raises:
        DataError: if h5py is not installed, or the file is missing, cut, or not of this form.
    """

    def __init__(self, path: Path):
        try:
            import h5py
        except ModuleNotFoundError:
            raise DataError(f"{path} is HDF5, for which h5py is not installed; pip install h5py") from None
        if not path.is_file():
            raise DataError(f"{path} is not a file")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path} is cut or no HDF5 file (is it still packed as .gz or .zip?): {error}") from error
        arrays = [self._file.get(name) for name in ARRAYS]
        if missing := [n for n, array in zip(ARRAYS, arrays, strict=True) if not isinstance(array, h5py.Dataset)]:
            raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(self._file) or 'nothing'}")
        self.path = path
        self._times, self._units, labels = arrays
        if None in (h5py.check_vlen_dtype(self._times.dtype), h5py.check_vlen_dtype(self._units.dtype)):
            raise DataError(f"{path}: spikes/times and spikes/units must have an array for each recording")
        if not len(self._times) == len(self._units) == len(labels):
            raise DataError(
                f"{path} has {len(self._times)} times, {len(self._units)} units, {len(labels)} labels; one each is due"
            )
        self.labels = labels[:].astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Events:
        try:
            times, units = self._times[index], self._units[index]
        except OSError as error:
            raise DataError(f"{self.path} is damaged at recording {index}: {error}; copy it again") from error
        if len(times) != len(units):
            raise DataError(f"{self.path}: recording {index} has {len(times)} times but {len(units)} units")
        addresses = units.astype(np.int64)[:, None]
        check_addresses(self.path, addresses, SENSOR)
        return Events(times.astype(np.float64) * 1000, addresses, SENSOR)


def open_spoken_words(train: Path, test: Path, binning: Binning) -> Source:
    """Opens the files of two splits, such as ``shd_train.h5`` and ``shd_test.h5``; frames are [t units].

    The recipe of SHD's best delay networks (Hammouamri et al., ICLR 2024) has ``Binning(10.0, duration, (5,))``: 140
    inputs and 10 ms. SHD comes without a validation split; one that is chosen by is not to be tested on.

    Raises:
        DataError: as :class:`SpokenWords`; or the test labels exceed the training labels, or the binning does not fit.
    """
    words = {path: SpokenWords(path) for path in (train, test)}
    top, top_test = (int(split.labels.max(initial=-1)) for split in words.values())
    if top_test > top:
        raise DataError(f"{test} has labels up to {top_test} but {train} only up to {top}")
    splits = [EventExamples(split.__getitem__, split.labels, binning) for split in words.values()]
    return make_source("spoken_words", *splits, top + 1, SENSOR, [train, test])
