import inspect
import math

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from conftest import thinned
from diffusion_samples import TEXTS, UNETS, VAE, config_of, ours, text, unet, vae
from twins import arrays

from interop.diffusion.layouts import architecture_of
from interop.engine import flatten, plan_to_torch, to_torch
from interop.layout import Spec
from jaxkit.models.diffusion.config import KINDS, from_config, shapes

pytestmark = pytest.mark.level(1)

# The config.json files of the released models, without keys that have their class's own value.
SD15 = {
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
    "layers_per_block": 2, "sample_size": 64,
}  # fmt: skip
SD21 = SD15 | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip
SDXL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816, "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
}  # fmt: skip
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
CLIP_L = {
    "eos_token_id": 2, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12, "projection_dim": 768,
}  # fmt: skip
CLIP_H = CLIP_L | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 23, "projection_dim": 512,
}  # fmt: skip
CLIP_G = CLIP_H | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
    "projection_dim": 1280,
}  # fmt: skip
RELEASED = {
    "sd 1.5 unet": ("UNet2DConditionModel", SD15, 859_520_964),
    "sd 2.1 unet": ("UNet2DConditionModel", SD21, 865_910_724),
    "sdxl unet": ("UNet2DConditionModel", SDXL, 2_567_463_684),
    "vae": ("AutoencoderKL", SD_VAE, 83_653_863),
    "sd 1.5 text": ("CLIPTextModel", CLIP_L, 123_060_480),
    "sd 2.1 text": ("CLIPTextModel", CLIP_H, 340_387_840),
    "sdxl text 2": ("CLIPTextModelWithProjection", CLIP_G, 694_659_840),
}


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    thinned(RELEASED.values(), [case for name, case in RELEASED.items() if name != "sdxl unet"]),
    ids=RELEASED,
)
def test_released_models_have_torchs_keys_and_shapes(kind, config, count):
    with torch.device("meta"):
        if kind.startswith("CLIP"):
            net = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            config = config | {"architectures": [kind]}
        else:
            net = getattr(diffusers, kind)(**config)
            config = config | {"_class_name": kind}
    specs = {path: Spec(leaf.shape, leaf.dtype) for path, leaf in flatten(shapes(from_config(config))).items()}
    plan = plan_to_torch(specs, architecture_of(config).table)
    found = {key: move.torch_shape for move in plan.moves for key in move.torch}
    assert found == {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert sum(map(math.prod, found.values())) == count


def small():
    """Every kind of network, tiny."""
    for config in UNETS.values():
        yield unet(**config)
    yield vae(**VAE)
    for configs in TEXTS.values():
        for i, config in enumerate(configs):
            yield text(projection=i == 1, **config)


def test_torch_to_flax_to_torch_keeps_every_bit():
    for net in small():
        _, variables = ours(net)
        back = to_torch(variables, architecture_of(config_of(net)).table)
        given = arrays(net)
        assert back.keys() == given.keys()
        assert all(back[key].tobytes() == np.ascontiguousarray(given[key]).tobytes() for key in given)


@pytest.mark.parametrize("name", [*UNETS, "vae"])
def test_parameters_have_the_names_and_shapes_of_diffusers_flax_classes(name):
    diffusers.utils.logging.set_verbosity_error()
    kind = diffusers.FlaxAutoencoderKL if name == "vae" else diffusers.FlaxUNet2DConditionModel
    config = VAE if name == "vae" else {key: value for key, value in UNETS[name].items() if key != "upcast_attention"}
    theirs = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in config.items()})
    expected = flatten(jax.eval_shape(theirs.init_weights, jax.random.key(0)))
    found = flatten(shapes(from_config(config | {"_class_name": kind.__name__}))["params"])
    assert {path: leaf.shape for path, leaf in found.items()} == {path: leaf.shape for path, leaf in expected.items()}


@pytest.mark.parametrize("projection", [False, True])
def test_parameters_have_the_names_and_shapes_of_transformers_flax_classes(projection):
    from transformers.models.clip import modeling_flax_clip as clip

    config = transformers.CLIPTextConfig(**TEXTS["sd1"][0])
    kind, name = clip.FlaxCLIPTextModule, "CLIPTextModel"
    if projection:
        kind, name = clip.FlaxCLIPTextModelWithProjectionModule, "CLIPTextModelWithProjection"
    ids = np.zeros((1, 1), np.int32)
    expected = flatten(jax.eval_shape(lambda key: kind(config).init(key, ids, ids, ids), jax.random.key(0))["params"])
    found = flatten(shapes(from_config(TEXTS["sd1"][0] | {"architectures": [name]}))["params"])
    assert {path: leaf.shape for path, leaf in found.items()} == {path: leaf.shape for path, leaf in expected.items()}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("UNet2DConditionModel", diffusers.UNet2DConditionModel),
        ("AutoencoderKL", diffusers.AutoencoderKL),
        ("CLIPTextModel", transformers.CLIPTextConfig),
    ],
)
def test_every_key_of_the_originals_configs_is_honoured_or_refused_and_has_its_default(name, theirs):
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(theirs.__init__).parameters.values())[1:]
    kind, parameters = KINDS[name], {p.name: p.default for p in parameters if p.kind in kinds}
    for key, default in parameters.items():
        if key in kind.fixed:
            assert kind.fixed[key][0] == default
        elif key not in kind.silent:
            assert getattr(kind.module, key) == default
    assert kind.fixed.keys() - {"use_attention_mask"} <= parameters.keys()
