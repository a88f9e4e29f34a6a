"""The kinds of ``data`` section, by name."""

from jaxkit.schema.concepts import Concepts, DigitConcepts
from jaxkit.schema.data import (
    Arrays,
    CaptionedFolder,
    Digits,
    DvsGesture,
    Encoded,
    ImageFolder,
    Lags,
    NMnist,
    SpokenWords,
    Tfds,
    WebDataset,
)

SOURCES = {
    "digits": Digits,
    "image_folder": ImageFolder,
    "captioned_folder": CaptionedFolder,
    "webdataset": WebDataset,
    "encoded": Encoded,
    "tfds:<name>": Tfds,
    "arrays": Arrays,
    "lags": Lags,
    "nmnist": NMnist,
    "dvs_gesture": DvsGesture,
    "spoken_words": SpokenWords,
    "concepts": Concepts,
    "digit_concepts": DigitConcepts,
}
