"""What a task is to the trainer: a handful of pure functions, as an optimizer is to optax."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import PyTree

from jaxkit.nn.norms import BatchNorm


class Variables(NamedTuple):
    """All arrays of a task, by who moves them."""

    params: PyTree
    """What the optimizer moves."""
    state: PyTree
    """What the forward pass moves: batch statistics, codebook usage, membranes."""
    frozen: PyTree
    """What nobody moves: teachers, tokenizers, encoders. Not checkpointed; a checkpoint keeps its hash."""


class Pictures(NamedTuple):
    """Pictures of how a few examples are treated, drawn at every evaluation."""

    trace: Callable
    """``variables, batch, key -> arrays``, compiled."""
    draw: Callable
    """``arrays -> {name: uint8 [h w 3]}``, of NumPy arrays."""


class Task(NamedTuple):
    """A method to train. Batches are dicts of arrays with a leading axis b; images are normalised by then."""

    init: Callable
    """``key, batch -> Variables``"""
    loss: Callable
    """``variables, batch, key -> scalar, (state, metrics)``: the mean over the batch, and scalars to log. With a metric
    ``weight`` both are sums: they and the gradients are divided by the weight of the whole batch, all devices, all
    pieces."""
    evaluate: Callable
    """``variables, batch, key -> {name: [b]}``: metrics of each example."""
    sample: Callable | None = None
    """``variables, key, n -> images [n h w c] in [0, 1]``, drawn at every evaluation."""
    update: Callable | None = None
    """``variables, batch, key -> (scalar, (state, metrics)), directions``: a local learning rule in place of the
    gradient of ``loss``."""
    pictures: Pictures | None = None
    project: Callable = lambda params: params
    """``params -> params``: moves parameters, after each update, to where they are allowed."""
    notes: tuple[str, ...] = ()
    """Lines to print before training."""
    warm_start: Callable | None = None
    """``Variables -> Variables, lines to print``: puts pretrained weights in place of initial ones as a run begins."""
    draw: Callable | None = None
    """``variables, key, batch -> images [n h w c]``: samples of what the batch asks for, such as ``label [n]``; or an
    ``image``, changed by a ``mask [n h w]``, 1 where it is painted anew, by ``strength``, a number up to 1, or by
    ``outpaint``, pixels around it (left, right, top, bottom). A task raises ConfigError for what it cannot do."""
    read_prompt: Callable[[str], dict] | None = None
    """``text -> what draw asks of it``, where the task reads texts otherwise than the data does."""
    prompts: tuple[str, ...] = ("",)
    """What is drawn, of tasks and data that are asked in words, where nothing is asked for."""
    words: tuple[str, ...] = ()
    """New ones, which a prompt without them has nothing of."""
    files: Callable | None = None
    """``params -> {name: bytes}``: files to write beside each checkpoint, in the format of other programs."""
    samples: int = 16
    """How many images ``sample`` is asked for."""
    example_keys: bool = False
    """Whether training batches carry ``key [b 2]``, each example's own, the same wherever it is computed."""
    score: Callable | None = None
    """``variables, train, test, key -> {name: number}``: what is no mean over examples, of the best checkpoint at the
    end. ``train()`` and ``test()`` begin a pass over each split's batches, preprocessed."""
    changes_images: bool = False
    """Whether ``draw`` takes an ``image``."""


class Readers(NamedTuple):
    """What reads files of other frameworks: handed in by the program, for jaxkit knows none of them."""

    weights: Callable[..., tuple[PyTree, list[str]]]
    """``path, model, variables -> variables, lines to print``: a file's weights in place of initial ones."""
    pipeline: Callable[..., Any]
    """``name, variant, revision -> pipeline``: Stable Diffusion's networks, of a folder or the model hub."""
    embedding: Callable[..., tuple]
    """``path, word -> vectors [n d] of each text encoder``: a learned word of a file."""


class Context(NamedTuple):
    """What a run tells the task it builds."""

    num_classes: int
    load_weights: Callable[..., PyTree]
    """``load_weights(source, like) -> tree``: the variables a config's ``Pretrained`` section points to; with
    ``partly=True`` only those of ``like``, of more that the run has."""
    read_weights: Callable[..., tuple[PyTree, list[str]]] | None = None
    """Of :class:`Readers`. None: the program reads no files of other frameworks."""
    read_pipeline: Callable[..., Any] | None = None
    read_embedding: Callable[..., tuple] | None = None
    dtype: jnp.dtype = jnp.float32
    """Arithmetic of the layers."""
    axis_name: str | None = None
    """Mapped axis over which batch statistics are averaged."""
    batch_groups: int = 1
    """Parts of the batch normalised apart."""
    pieces: int = 1
    """Parts a batch is worked through in, one after the other."""
    mapped_axis: str | None = None
    """Mapped axis of the devices, where there is one, for what is of the whole batch."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width, channels."""
    concepts: tuple | None = None
    """Pictures of what has no word yet (:class:`jaxkit.data.Concept`), in memory. None: the data has none."""
    captions: Callable[[str], dict] | None = None
    """``text -> what a caption adds to an example``, such as ``input_ids [t]`` below its ``vocabulary``; None: the data
    has no captions."""

    @property
    def norm(self) -> Callable[..., BatchNorm]:
        """The batch normalisation of this run, for a network to make its own of."""
        return partial(BatchNorm, axis_name=self.axis_name, groups=self.batch_groups)
