"""The ``data`` section: which images, how they are cut into batches, how they are augmented."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxkit.schema.section import Count, CountOrZero, Floats, Fraction, Misfit, Positive, Section, Strings


class Augment(Section):
    """Random changes of the training images, drawn anew for every example and step."""

    crop_padding: CountOrZero = 0
    """Pixels of zeros put around the image before a crop of its own size is cut from it."""
    flip: Fraction = 0.0
    """Probability of a left-right flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle in degrees; nearest pixel, zeros outside."""


class Normalize(Section):
    """Per-channel ``(x - mean) / std`` of images in [0, 1]."""

    mean: Floats
    std: Annotated[tuple[Positive, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _same_length(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels but std has {len(self.std)}")
        return self


class Data(Section):
    """What every source shares."""

    batch_size: Count
    """Examples in one update, over all devices and processes."""
    eval_batch_size: Count = 256
    augment: Literal["none", "cifar", "cifar_plain", "tiny_imagenet"] | Augment = "none"
    normalize: Literal["none", "cifar100", "cifar100_repdistiller", "tiny_imagenet", "imagenet"] | Normalize = "none"
    threads: Count = 8
    """Threads that read and decode examples ahead of need."""
    eval_examples: Count | None = None
    """The first test examples, which alone are evaluated. None: all."""
    one_batch: bool = False
    """Every update sees the first batch again: whatever learns must bring its loss down to that of knowing it."""


class Captions(Section):
    """How the text beside an image becomes ``input_ids`` and ``attention_mask``, both ``max_length`` long."""

    tokenizer: str = "bytes"
    """Folder of a tokenizer of transformers; or ``bytes``: UTF-8, then 256 for the end and 257 for padding; or, of
    digits, ``clip``: a CLIP tokenizer to which each word of their captions is a token."""
    max_length: Annotated[int, Field(ge=2, lt=2**31)] = 77
    """Longer texts are cut."""
    pad_token: CountOrZero | None = None
    """None: the tokenizer's own. aMUSEd's is 49407, of a CLIP whose own is another."""
    name_persons: bool = False
    """Whether ``<person>``, in Conceptual Captions in the place of a name, becomes words."""


Digit = Annotated[int, Field(ge=0, le=9)]


class Digits(Data):
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8, one channel."""

    name: Literal["digits"]
    image_size: Count | None = None
    """Pixels of a side, bilinear. None: the 8 that they have."""
    channels: Literal[1, 3] = 1
    """3: the grey repeated."""
    without: Annotated[tuple[Digit, ...], Field(strict=False, max_length=9)] = ()
    """Digits that are left out, of training and of test images; the others keep their class."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    split_seed: Annotated[int, Field(ge=0)] = 0
    captions: Captions | None = None
    """Each digit is said in words too, such as "a handwritten seven"."""
    halves: CountOrZero = 0
    """So many training images more, as their captions say: the upper half of one digit above the lower of another."""

    @model_validator(mode="after")
    def _says_halves(self):
        if self.halves and self.captions is None:
            raise Misfit({"halves": "are told from digits by captions alone: give captions"})
        return self


class ImageFolder(Data):
    """One folder a class under each split; Tiny-ImageNet's own layout too."""

    name: Literal["image_folder"]
    root: str
    train_split: str = "train"
    eval_split: str = "val"
    image_size: Count | None = None
    """Pixels: the short side is resized to it, then the centre is cropped. None: all images already have one size."""
    channels: Literal[1, 3] = 3
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An unreadable image ends the run, or is counted and replaced by the next readable one."""


class CaptionedImages(Data):
    """What images with captions share: squares of one size, ``micro_conds``, ``input_ids``, ``attention_mask``."""

    image_size: Count
    """Pixels: the short side is resized to it, then a square is cropped."""
    crop: Literal["center", "random"] = "center"
    """``random``: drawn once for each image, for this ``crop_seed``, and the same in every epoch."""
    crop_seed: CountOrZero = 0
    channels: Literal[1, 3] = 3
    captions: Captions = Captions()
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An unreadable image ends the run, or is counted and replaced by the next readable one."""


class CaptionedFolder(CaptionedImages):
    """Each split's folder has a ``metadata.jsonl`` with ``file_name`` and ``text``, or a .txt beside each image."""

    name: Literal["captioned_folder"]
    root: str
    train_split: str = "train"
    eval_split: str = "val"


class Select(Section):
    """Which samples of shards are taken, by their .json; one that does not say is left out. None: whatever it says."""

    min_size: CountOrZero | None = 256
    """Pixels of the original's width and height."""
    max_pwatermark: Fraction | None = 0.5
    min_aesthetic_score: Annotated[float, Field(ge=0)] | None = 4.75
    max_pnsfw: Fraction | None = None
    require_marked_as_ok_by_spawning: bool = False
    require_marked_as_not_getty: bool = False


class WebDataset(CaptionedImages):
    """Tar shards on disk, of images with .txt, .json or .cls of the same name.

    Each is indexed once, and read at any place afterwards: every sample is seen once an epoch and the position is
    resumed, where readers of streams resample with replacement and forget it.
    """

    name: Literal["webdataset"]
    train: Annotated[Strings, Field(min_length=1)]
    """Paths, in which ``{000..127}`` and ``{a,b}`` stand for several."""
    test: Annotated[Strings, Field(min_length=1)]
    captions: Captions | None = Captions()
    """None: the texts are left out, and the classes of .cls are what is known of an image."""
    index_folder: str | None = None
    """Where the indexes of the shards are kept. None: beside them."""
    select: Select | None = None
    """None: all samples."""
    variant: Literal["plain", "sdxl_synthetic", "clean", "clean_upscaled"] = "plain"
    """``sdxl_synthetic``: of several images of a text, the one of the best CLIP score. ``clean``: the top left quarter
    of the image. This and ``clean_upscaled`` have an aesthetic score of 5."""
    class_names: str | None = None
    """JSON file of names by class number: the captions of samples that have a .cls and no .txt."""


class Encoded(Data):
    """What ``scripts/pre_encode.py`` has written: tokens in the place of images, states in the place of captions."""

    name: Literal["encoded"]
    path: str
    augment: Literal["none"] = "none"
    normalize: Literal["none"] = "none"


class Tfds(Data):
    """A TensorFlow Datasets builder prepared as array_record, read without TensorFlow."""

    name: Annotated[str, Field(pattern=r"^tfds:.+", examples=["tfds:<name>"])]
    data_dir: str | None = None
    train_split: str = "train"
    eval_split: str = "test"
    image_key: str = "image"
    label_key: str = "label"


class Arrays(Data):
    """An .npz file with train_images, train_labels, test_images, test_labels."""

    name: Literal["arrays"]
    path: str


class Lags(Data):
    """Two channels spike once each; the time between is the class. Rows of an image are steps of time."""

    name: Literal["lags"]
    classes: Annotated[int, Field(ge=2)] = 4
    gap: Count = 4
    """Steps by which the lags of one class and the next differ; the shortest is as long."""
    steps: Count = 60
    tail: CountOrZero = 20
    """Silent steps behind the last spike, for what is still on its way."""

    @model_validator(mode="after")
    def _fits(self):
        needed = self.classes * self.gap + self.tail + 4
        if self.steps < needed:
            raise Misfit({"steps": f"{self.steps} do not hold {self.classes} lags and the tail: {needed} or more do"})
        return self


class Events(Data):
    """What recordings of events share: how they become frames. Rows of an image are frames, one channel."""

    step_time: Positive
    """ms, of a frame."""
    duration: Positive
    """ms; what comes later is left out."""
    downsample: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Neighbours put together along each axis of the sensor."""


class NMnist(Events):
    """N-MNIST as its authors packed it: ``Train/0..9/*.bin``, ``Test/0..9/*.bin``."""

    name: Literal["nmnist"]
    root: str


class DvsGesture(Events):
    """DVS128 Gesture: AEDAT 3.1 recordings with their ``trials_to_train.txt`` and ``trials_to_test.txt``."""

    name: Literal["dvs_gesture"]
    root: str


class SpokenWords(Events):
    """Spiking Heidelberg Digits or Speech Commands: one HDF5 file a split."""

    name: Literal["spoken_words"]
    train: str
    test: str
