"""Tiny random Stable Diffusion 1, 2 and XL in torch, and their configs."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import torch
from twins import arrays

with warnings.catch_warnings():
    # both warn of their own deprecations
    warnings.simplefilter("ignore")
    import diffusers
    import transformers
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

from interop.diffusion.layouts import architecture_of
from interop.engine import to_flax
from jaxkit.models.diffusion.config import from_config, shapes

# two symbols a byte, within a word and at its end, and the marks around a text
TOKENS, VOCABULARY, END = 9, 514, 513
_SMALL_UNET = {
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "sample_size": 8,
}
UNETS = {
    "sd1": _SMALL_UNET | {"cross_attention_dim": 16, "attention_head_dim": 4},
    "sd2": _SMALL_UNET
    | {
        "cross_attention_dim": 24,
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": _SMALL_UNET
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 40,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 6 * 8,
    },
}
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "projection_dim": 12,
    "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": TOKENS,
    "bos_token_id": 512, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
TEXTS = {
    "sd1": [_TEXT],
    "sd2": [_TEXT | {"hidden_size": 24, "hidden_act": "gelu", "eos_token_id": END}],
    "sdxl": [_TEXT, _TEXT | {"hidden_size": 24, "hidden_act": "gelu"}],
}
VAE = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "sample_size": 16,
}


def random(net):
    """The network with norms and biases that say something, to be evaluated."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def unet(**config):
    torch.manual_seed(0)
    return random(diffusers.UNet2DConditionModel(**config))


def vae(**config):
    torch.manual_seed(0)
    return random(diffusers.AutoencoderKL(**config))


def text(projection=False, **config):
    torch.manual_seed(0)
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    net = random(kind(transformers.CLIPTextConfig(**config)))
    net.config.architectures = [kind.__name__]
    return net


def texts(name):
    return [text(projection=i == 1, **config) for i, config in enumerate(TEXTS[name])]


def tokenizer(folder):
    """A tokenizer that knows letters only."""
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=TOKENS)


def pipeline(name, folder):
    """A whole pipeline of torch, whose tokenizers were made in a folder."""
    encoders = dict(zip(("text_encoder", "text_encoder_2"), texts(name), strict=False))
    tokenizers = {part.replace("text_encoder", "tokenizer"): tokenizer(folder) for part in encoders}
    kind = "v_prediction" if name == "sd2" else "epsilon"
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type=kind
    )
    parts = {"unet": unet(**UNETS[name]), "vae": vae(**VAE), "scheduler": scheduler, **encoders, **tokenizers}
    if name == "sdxl":
        return diffusers.StableDiffusionXLPipeline(**parts)
    unsafe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **unsafe)


def config_of(net):
    """What a torch network's config.json says."""
    if isinstance(net.config, transformers.PretrainedConfig):
        return json.loads(net.config.to_json_string())
    return json.loads(net.to_json_string())


def ours(net, **run):
    """Our twin of a torch network, and its variables."""
    config = config_of(net)
    module = from_config(config, **run)
    return module, jax.tree.map(jnp.asarray, to_flax(arrays(net), architecture_of(config).table, shapes(module)))


def pictures(shape, seed=0):
    """A map for us, and the same for torch."""
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return jnp.asarray(x), torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def for_us(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)
