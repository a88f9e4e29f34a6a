"""What an update of textual inversion costs, beside diffusers' training loop on the same weights and pictures."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import torch

from interop.benchmarks.timing import fastest, torch_milliseconds
from interop.starts import READERS
from jaxkit.config import parse
from jaxkit.data.clip_words import clip_tokenizer
from jaxkit.errors import ConfigError
from jaxkit.experiment import prepare
from jaxkit.train import compiled_step, initial_state

SIDE, BATCH, VECTORS, TOKENS = 128, 4, 2, 77
UNET = {
    "block_out_channels": [64, 128, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 128,
    "sample_size": SIDE // 8,
}
VAE = {
    "block_out_channels": [32, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}
TEXT = {
    "hidden_size": 128, "intermediate_size": 512, "projection_dim": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": TOKENS,
}  # fmt: skip
WAYS = {
    "native": {"backend": "native"},
    "native, remat full": {"backend": "native", "remat": "full"},
    "diffusers": {"backend": "diffusers"},
}


def measure(out: Path | None, only: str | None = None) -> Iterator[str]:
    """Measures an update of each backend and of torch; says a line of each figure.

    ``out`` gets ``diffusion.json``; ``only`` is a backend, beside which torch is measured too.

    Raises:
        ConfigError: for a way that there is not.
    """
    if only is not None and only not in WAYS:
        raise ConfigError(f"--only {only}: the benchmarks of this suite are {', '.join(WAYS)}")
    figures = {}
    yield f"{torch.get_num_threads()} torch threads, jax on {jax.devices()[0].device_kind}"
    with tempfile.TemporaryDirectory() as folder:
        pipe = _pipeline(Path(folder, "pipeline"))
        theirs, held = torch_update(pipe)
        yield f"torch: {theirs:.4g} ms, {held / 2**20:.1f} MiB kept for the backward pass"
        figures["torch"] = {"ms": theirs, "kept_bytes": held}
        for name in WAYS if only is None else [only]:
            ours, temporary = our_update(Path(folder, "pipeline"), WAYS[name], Path(folder, "run"))
            figures[name] = {"ms": ours, "temporary_bytes": temporary, "torch / ours": theirs / ours}
            yield f"{name}: {ours:.4g} ms, {theirs / ours:.3g} times torch, {temporary / 2**20:.1f} MiB of temporaries"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "diffusion.json").write_text(json.dumps(figures, indent=1))


def our_update(pipeline: Path, way: dict, workdir: Path) -> tuple[float, int]:
    """Milliseconds of a compiled update, and the bytes that XLA sets aside while it runs."""
    raw = {
        "task": {
            "name": "textual_inversion",
            "pipeline": str(pipeline),
            "words": [{"placeholder_token": "<word>"}],
            "vectors": VECTORS,
            **way,
        },
        "data": {"name": "digit_concepts", "digits": [7], "image_size": SIDE, "batch_size": BATCH},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "train": {"steps": 1},
    }
    _, job = prepare(parse(raw, "benchmark"), workdir, READERS)
    state, frozen = initial_state(job.task, job.feed, job.optimizer, job.executor, jax.random.PRNGKey(0))
    step = compiled_step(job, state, frozen)
    batch = job.executor.put_batch(job.feed.first())
    held = [state]

    def update():
        held[0], _ = step(held[0], frozen, batch)
        jax.block_until_ready(held[0])

    return fastest(update, repeats=5), step.memory_analysis().temp_size_in_bytes


def torch_update(pipe) -> tuple[float, int]:
    """Milliseconds of an update as diffusers' example has it, its autoencoder included, and what autograd keeps."""
    unet, vae, text = (part.requires_grad_(False) for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    known = len(text.get_input_embeddings().weight)
    text.resize_token_embeddings(known + VECTORS, mean_resizing=False)
    table = text.get_input_embeddings().weight.requires_grad_(True)
    original = table.detach().clone()
    optimizer = torch.optim.AdamW([table], lr=1e-3)
    images = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
    ids = torch.full((BATCH, TOKENS), known - 1)
    ids[:, 1:3] = torch.tensor([known, known + 1])

    def update():
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (BATCH,))
        noisy = pipe.scheduler.add_noise(latents, noise, times)
        loss = torch.nn.functional.mse_loss(unet(noisy, times, text(ids)[0]).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        table.grad[:known] = 0
        optimizer.step()
        with torch.no_grad():
            table[:known] = original[:known]

    return torch_milliseconds(update), _kept(update)


def _kept(run: Callable) -> int:
    """Bytes of the tensors that autograd keeps, each storage once; those of frozen weights are among them."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def _pipeline(folder: Path):
    """Writes a Stable Diffusion of random weights; returns it as torch's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(clip_tokenizer(["a photo of a word"], TOKENS))
        words = len(tokenizer)
        text = CLIPTextConfig(**TEXT, vocab_size=words, bos_token_id=words - 2, eos_token_id=words - 1)
        pipe = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**UNET).eval(),
            vae=AutoencoderKL(**VAE).eval(),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            scheduler=DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(folder)
    return pipe
