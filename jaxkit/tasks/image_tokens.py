"""What the tasks over tokenizers share: the network of a config, and one that a run has trained."""

import jax
from jaxtyping import Array, Float, PyTree, UInt32

from jaxkit.errors import ConfigError
from jaxkit.models import tokenizers
from jaxkit.models.tokenizers.tokenizer import Tokenizer
from jaxkit.nn.quantizer import settled
from jaxkit.schema.section import Section
from jaxkit.schema.tokenizer import TokenizerSource
from jaxkit.tasks.task import Context


def build(config: Section, context: Context, *, frozen: bool = False) -> Tokenizer:
    """Builds the tokenizer of a ``model`` section; a frozen one has its codebook among its parameters."""
    fields = config.model_dump(exclude={"name", "pretrained"})
    if frozen:
        fields |= {"codebook_decay": None, "revive_below": 0.0}
    return tokenizers.build(config.name, dtype=context.dtype, axis_name=context.mapped_axis, **fields)


def require_channels(model: Tokenizer, images: Float[Array, "b h w c"]) -> None:
    """Checks that images have the channels the tokenizer was built for.

    Raises:
        ConfigError: naming both.
    """
    channels = getattr(model, "num_channels", 3)
    if images.shape[-1] != channels:
        raise ConfigError(f"the tokenizer has num_channels = {channels}, but the images have {images.shape[-1]}")


def codebook_size(config: Section) -> int:
    """How many tokens the tokenizer of a ``model`` section has."""
    return config.codebook_size if config.name == "paella_vq" else config.num_embeddings


def grid(model: Tokenizer, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """The tokens of an image, in height and width.

    Raises:
        ConfigError: for images that cannot be cut into tokens.
    """
    height, width, _ = image_shape
    if height % model.reduction or width % model.reduction:
        raise ConfigError(f"images of {height} x {width} are not cut into tokens of {model.reduction} pixels a side")
    return height // model.reduction, width // model.reduction


def trained(
    source: TokenizerSource, context: Context, key: UInt32[Array, "2"], images: Float[Array, "b h w c"]
) -> PyTree:
    """Reads the variables of the tokenizer that a run of the task ``tokenizer`` trained, as a frozen one has them.

    Those of a folder are read by what the context has for it.
    """
    folder = source.model.pretrained
    model = build(source.model, context, frozen=folder is not None)
    require_channels(model, images)
    if folder is not None:
        if context.read_weights is None:
            raise ConfigError("task.tokenizer.model.pretrained: nothing that reads weight files was handed to this run")
        return context.read_weights(folder, source.model.name, jax.eval_shape(model.init, key, images))[0]
    variables = dict(jax.eval_shape(model.init, key, images))
    like = {"params": {"tokenizer": variables.pop("params")}, "state": {"tokenizer": variables}}
    found = context.load_weights(source, like, partly=True)
    return settled({"params": found["params"]["tokenizer"], **found["state"]["tokenizer"]})
