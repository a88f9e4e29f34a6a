"""Frozen text encoders, read from a folder on disk: CLIP by transformers' Flax modules, and T5."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import Dtype
from jaxtyping import Array, Float, Int, PyTree

from jaxkit.errors import UserError

Kind = Literal["clip", "clip_projection", "t5"]
TORCH, FLAX, INDEX = "model.safetensors", "flax_model.msgpack", "model.safetensors.index.json"
# What a folder of a whole CLIP or T5 holds beside its text encoder, and buffers that older files kept.
_OTHERS = ("vision_model", "visual_projection", "decoder", "lm_head", "logit_scale")
_BUFFERS = ("text_model/embeddings/position_ids", "encoder/embed_tokens/weight")
_MAX_SHOWN = 5


class TextEncoderError(UserError, ValueError):
    """A folder holds no such encoder, or not all of it, or more; the message says which."""


def text_encoder(
    kind: Kind, folder: str | Path, *, penultimate: bool = False, dtype: Dtype = jnp.float32
) -> tuple[Callable, Callable[[], PyTree]]:
    """Opens a text encoder in a folder as ``save_pretrained`` writes it. Nothing in it is unpickled.

    The folder has a ``config.json`` and weights of torch (``model.safetensors``, also in shards) or of Flax
    (``flax_model.msgpack``); it may hold a whole CLIP or T5, of which the text encoder is taken.

    Args:
        kind: ``clip_projection`` has pooled states, the text embeddings of CLIP; ``clip`` and ``t5`` have none.
        folder: of the encoder.
        penultimate: whether the states are those before the last layer, without the last norm, as aMUSEd takes them
            (``hidden_states[-2]``).
        dtype: of the arithmetic; parameters are float32.

    Returns:
        ``apply(variables, input_ids [b t], attention_mask [b t] | None) -> states [b t d], pooled [b d] | None``, both
        float32, and ``read() -> variables``. Without an ``attention_mask`` padding is attended to, as open-muse does.

    Raises:
        TextEncoderError: for a folder without such an encoder; on reading, for weights that are missing, stray or of
            another shape.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; Raffel
    et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise TextEncoderError(f"a text encoder needs {error.name}: pip install 'jaxkit[diffusion]'") from error
    folder = Path(folder)
    network = (_t5 if kind == "t5" else _clip)(kind, folder, dtype)

    def apply(
        variables: PyTree, input_ids: Int[Array, "b t"], attention_mask: Int[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b p"] | None]:
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        before, last, pooled = network.outputs(network.module.apply(variables, *network.inputs(input_ids, mask)))
        states = before if penultimate else last
        return states.astype(jnp.float32), None if pooled is None else pooled.astype(jnp.float32)

    ids = jnp.zeros((1, 1), jnp.int32)
    # the key is an argument, or transformers' dropout would ask for more of them
    like = jax.eval_shape(lambda key: network.module.init(key, *network.inputs(ids, ids)), jax.random.key(0))
    return apply, lambda: {"params": _weights(folder, like["params"], network.stored_name)}


class _Network(NamedTuple):
    """An encoder's module, and how it is called."""

    module: nn.Module
    inputs: Callable
    """``input_ids, attention_mask -> arguments``"""
    outputs: Callable
    """``what it returns -> states before the last layer, last states, pooled``"""
    stored_name: Callable[[str], str]
    """``path of an array -> its path in transformers' Flax models``"""


def _clip(kind: Kind, folder: Path, dtype: Dtype) -> _Network:
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModelWithProjectionModule, FlaxCLIPTextModule

    _require_type(folder, kind, "clip", "clip_text_model")
    module = FlaxCLIPTextModelWithProjectionModule if kind == "clip_projection" else FlaxCLIPTextModule
    config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)

    def inputs(ids, mask):
        if ids.shape[1] > config.max_position_embeddings:
            raise TextEncoderError(
                f"{folder}: takes {config.max_position_embeddings} tokens, not {ids.shape[1]}; shorten the captions"
            )
        deterministic, attentions, hidden_states = True, False, True
        return (
            ids,
            mask,
            jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape),
            deterministic,
            attentions,
            hidden_states,
        )

    def outputs(found):
        return found.hidden_states[-2], found.last_hidden_state, getattr(found, "text_embeds", None)

    return _Network(module(config, dtype), inputs, outputs, lambda path: path)


def _t5(kind: Kind, folder: Path, dtype: Dtype) -> _Network:
    from transformers import T5Config

    from jaxkit.models.t5 import T5Encoder, stored_name

    _require_type(folder, kind, "t5")
    config = T5Config.from_pretrained(folder, local_files_only=True)
    names = [field.name for field in fields(T5Encoder) if field.name not in ("dtype", "parent", "name")]
    module = T5Encoder(**{name: getattr(config, name) for name in names}, dtype=dtype)
    return _Network(module, lambda *inputs: inputs, lambda states: (*states[-2:], None), stored_name)


def _require_type(folder: Path, kind: Kind, *types: str) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise TextEncoderError(f"{folder}: no text encoder is there ({path} does not exist)")
    try:
        found = json.loads(path.read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise TextEncoderError(f"{path}: is no config.json of transformers: {error}") from error
    if found not in types:
        raise TextEncoderError(f"{folder}: holds a model of the type {found!r}, but the encoder asked for is {kind!r}")


def _weights(folder: Path, like: PyTree, stored_name: Callable[[str], str]) -> PyTree:
    """Reads the arrays of ``like``, each of which the files have once, under its own name or torch's."""
    wanted = flatten_dict(like, sep="/")
    flax = not any((folder / name).is_file() for name in (TORCH, INDEX))
    stored = dict(_flax_arrays(folder) if flax else _torch_arrays(folder))
    names = {path: stored_name(path) if flax else _torch_name(stored_name(path)) for path in wanted}
    # a whole T5 may keep its embedding under the encoder's name only
    if "encoder/embed_tokens/weight" in stored:
        stored.setdefault("shared/weight", stored["encoder/embed_tokens/weight"])
    missing = [name for name in names.values() if name not in stored]
    known = {*names.values(), *_BUFFERS}
    stray = [name for name in stored if name not in known and name.split("/")[0] not in _OTHERS]
    # a projection beside a CLIP that is asked for without it
    stray = [name for name in stray if not name.startswith("text_projection/")]
    if missing or stray:
        lines = [f"missing: {_shown(missing)}"] * bool(missing) + [f"stray: {_shown(stray)}"] * bool(stray)
        raise TextEncoderError(f"{folder}: the weights are not those of its config.json; {'; '.join(lines)}")
    found = {}
    for path, leaf in wanted.items():
        array = stored[names[path]]
        array = array.T if not flax and path.endswith("/kernel") else array
        if array.shape != leaf.shape:
            raise TextEncoderError(
                f"{folder}: {names[path]} is {list(array.shape)}, its config.json says {list(leaf.shape)}"
            )
        found[path] = jnp.asarray(array, jnp.float32)
    return unflatten_dict(found, sep="/")


def _torch_name(path: str) -> str:
    parent, _, leaf = path.rpartition("/")
    return f"{parent}/weight" if leaf in ("kernel", "scale", "embedding") else path


def _torch_arrays(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        if (folder / TORCH).is_file():
            files = [TORCH]
        else:
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        for file in files:
            for name, array in load_file(folder / file).items():
                yield name.replace(".", "/"), np.asarray(array)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TextEncoderError(f"{folder}: its safetensors cannot be read: {error}") from error


def _flax_arrays(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    path = folder / FLAX
    if not path.is_file():
        raise TextEncoderError(
            f"{folder}: has neither {TORCH} nor {FLAX}; a pytorch_model.bin becomes safetensors by "
            "save_pretrained(folder, safe_serialization=True) of transformers"
        )
    try:
        yield from flatten_dict(msgpack_restore(path.read_bytes()), sep="/").items()
    except (ValueError, TypeError) as error:
        raise TextEncoderError(f"{path}: cannot be read: {error}") from error


def _shown(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(sorted(names)[:_MAX_SHOWN]) + rest
