"""The config of diffusers' VQModel: read, written, and refused where it is no VQGAN or MoVQ."""

import re
import warnings

import jax
import jax.numpy as jnp
import pytest
import torch

from jaxkit.errors import ConfigError
from jaxkit.models import tokenizers
from jaxkit.models.tokenizers.vq_model import from_vq_model, to_vq_model

with warnings.catch_warnings():
    # what diffusers imports is partly deprecated
    warnings.simplefilter("ignore")
    from diffusers import VQModel


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("vqgan", {"channel_mult": (1, 2, 3), "attn_resolutions": (16, 4), "norm_num_groups": 8}),
        ("vqgan", {"channel_mult": (1, 1), "attn_resolutions": (), "no_attn_mid_block": True}),
        ("movq", {"channel_mult": (1, 2), "attn_resolutions": (8,)}),
    ],
)
def test_a_config_of_diffusers_reads_as_the_tokenizer_it_was_written_from(kind, fields):
    model = tokenizers.build(kind, resolution=16, hidden_channels=32, z_channels=4, **fields)
    with torch.device("meta"):
        config = dict(VQModel(**to_vq_model(model)).config)
    kind, fields = from_vq_model(config)
    read = tokenizers.build(kind, **fields)
    assert type(read) is type(model)
    assert to_vq_model(read) == to_vq_model(model)
    shape = jnp.zeros((1, 16, 16, 3))
    shapes = [jax.eval_shape(each.init, jax.random.key(0), shape) for each in (read, model)]
    assert shapes[0] == shapes[1]


def test_the_defaults_of_diffusers_are_read_where_a_config_leaves_them_out():
    with torch.device("meta"):
        whole = dict(VQModel().config)
    assert from_vq_model({}) == from_vq_model(whole)


TWO = {
    "block_out_channels": (64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_groups": 8}, "has no 'norm_groups', did you mean 'norm_num_groups'?"),
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported, only 'silu'"),
        ({**TWO, "block_out_channels": (64, 96)}, "block_out_channels [64, 96] is not supported, only [64, 64]"),
        ({**TWO, "down_block_types": ("DownEncoderBlock2D",)}, "down_block_types"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "up_block_types"),
        ({"out_channels": 1}, "out_channels 1 is not supported, only 3"),
        ({"norm_type": "layer"}, "norm_type"),
    ],
)
def test_a_config_of_diffusers_that_no_tokenizer_is_is_refused(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_vq_model(config)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("vqgan", {"channel_mult": (2, 4)}, "needs channel_mult (1, 4), not (2, 4)"),
        ("vqgan", {"resample_with_conv": False}, "needs resample_with_conv True"),
        ("vqgan", {"extra_mid_res_blocks": 1}, "extra_mid_res_blocks"),
        ("movq", {"norm_num_groups": 8}, "norm_num_groups 32, not 8"),
        ("movq", {"quantized_embed_dim": 8}, "quantized_embed_dim 4, not 8"),
    ],
)
def test_a_tokenizer_that_diffusers_cannot_hold_is_refused(kind, fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        to_vq_model(tokenizers.build(kind, **fields))
