"""What a masked transformer and its sampler cost, beside diffusers' on the same weights."""

import json
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from interop.benchmarks.timing import milliseconds, torch_milliseconds
from interop.engine import to_flax
from interop.tables.uvit import UVIT_DIFFUSERS
from jaxkit.losses.masked_tokens import token_cross_entropy
from jaxkit.models.masked.config import to_diffusers_config
from jaxkit.models.masked.uvit import MaskGiTUViT
from jaxkit.sampling.guidance import both_at_once
from jaxkit.sampling.masked import sample_tokens
from jaxkit.sampling.sampler import SAMPLERS

CODES, GRID, BATCH, WORDS = 1024, 16, 2, 16
RATE = 1e-4
MODEL = MaskGiTUViT(
    vocab_size=CODES + 1,
    codebook_size=CODES,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=704,
    in_channels=192,
    block_out_channels=(192,),
    num_res_blocks=1,
    block_num_heads=3,
    encoder_hidden_size=192,
    cond_embed_dim=192,
)


def measure(out: Path | None, only: str | None = None) -> Iterator[str]:
    """Measures a forward pass, a training step and sampling, on both sides; says a line of each figure.

    ``out`` gets ``maskgit.json``. There is nothing to choose by ``only``.
    """
    figures = {}
    yield f"{torch.get_num_threads()} torch threads, jax on {jax.devices()[0].device_kind}"
    for name, ours, theirs in pairs():
        figures[name] = {"ours": ours, "diffusers": theirs, "diffusers / ours": theirs / ours}
        yield f"{name}: {ours:.4g} ms, diffusers {theirs:.4g} ms, {theirs / ours:.3g} times"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "maskgit.json").write_text(json.dumps(figures, indent=1))


def pairs() -> Iterator[tuple[str, float, float]]:
    """What is measured, in milliseconds: ours and diffusers'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AmusedScheduler, UVit2DModel

    torch.manual_seed(0)
    config = {key: value for key, value in to_diffusers_config(MODEL, GRID).items() if key != "_class_name"}
    net = UVit2DModel(**config).eval()
    rng = np.random.default_rng(0)
    given = {
        "tokens": rng.integers(0, CODES, (BATCH, GRID, GRID)),
        "states": rng.normal(size=(BATCH, WORDS, MODEL.encoder_hidden_size)).astype(np.float32),
        "pooled": rng.normal(size=(BATCH, MODEL.cond_embed_dim)).astype(np.float32),
        "micro": np.full((BATCH, 5), 6.0, np.float32),
    }
    tokens, *conditions = (jnp.asarray(array) for array in given.values())
    torch_tokens, *torch_conditions = (torch.tensor(array) for array in given.values())
    like = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, *conditions)
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    params = jax.tree.map(jnp.asarray, to_flax(state, UVIT_DIFFUSERS, like))["params"]

    def forward(params, tokens, *conditions):
        return MODEL.apply({"params": params}, tokens, *conditions)

    with torch.no_grad():
        theirs = torch_milliseconds(partial(net, torch_tokens, *torch_conditions))
    yield (
        "forward",
        milliseconds(jax.jit(forward).lower(params, tokens, *conditions).compile(), params, tokens, *conditions),
        theirs,
    )

    yield "training step", *_training(net, forward, params, (tokens, *conditions), (torch_tokens, *torch_conditions))
    scheduler = AmusedScheduler(mask_token_id=CODES)
    yield "sampling, 12 guided steps", *_sampling(net, scheduler, forward, params, conditions, torch_conditions)


def _training(net, forward, params, given, torch_given) -> tuple[float, float]:
    optimizer = optax.adamw(RATE, weight_decay=0.01)

    def step(params, state, tokens, *conditions):
        def loss(params):
            return token_cross_entropy(forward(params, tokens, *conditions), tokens).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    ours = milliseconds(jax.jit(step).lower(params, state, *given).compile(), params, state, *given)
    torch_optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)

    def torch_step():
        torch_optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(*torch_given), torch_given[0]).backward()
        torch_optimizer.step()

    return ours, torch_milliseconds(torch_step)


def _sampling(net, scheduler, forward, params, conditions, torch_conditions) -> tuple[float, float]:
    sampler = SAMPLERS["amused"]()
    masked = jnp.full((BATCH, GRID, GRID), CODES)
    empty = jax.tree.map(jnp.zeros_like, conditions)

    def sample(params, key):
        logits = both_at_once(lambda tokens, given: forward(params, tokens, *given), conditions, empty)
        return sample_tokens(key, logits, masked, sampler, codebook_size=CODES, mask_token=CODES)

    key = jax.random.key(0)
    ours = milliseconds(jax.jit(sample).lower(params, key).compile(), params, key)
    doubled = [torch.cat([torch.zeros_like(part), part]) for part in torch_conditions]

    @torch.no_grad()
    def torch_sample():
        tokens = torch.full((BATCH, GRID, GRID), CODES)
        scheduler.set_timesteps(sampler.steps)
        for step in scheduler.timesteps:
            without, with_text = net(torch.cat([tokens, tokens]), *doubled).chunk(2)
            guided = without + sampler.guidance.strength * (with_text - without)
            tokens = scheduler.step(guided, step, tokens).prev_sample
        return tokens

    return ours, torch_milliseconds(torch_sample)
