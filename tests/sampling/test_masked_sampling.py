import dataclasses
import math
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkit.errors import ConfigError
from jaxkit.sampling import masked
from jaxkit.sampling.choices import draw_tokens
from jaxkit.sampling.guidance import Guidance
from jaxkit.sampling.masked import Noise
from jaxkit.sampling.sampler import SAMPLERS, Sampler
from jaxkit.sampling.schedules import arccos, compounding, constant, linear, linspace, mask_schedule, remaining

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AmusedScheduler
    from diffusers.schedulers import scheduling_amused

pytestmark = pytest.mark.level(1)

K = 11
MASK = 12
METHODS = ("maskgit", "lucidrains", "halton", "predict_all", "random_replace")
SIZES = {"codebook_size": K, "mask_token": MASK}
# each program runs once or twice: XLA's cheapest code is ready soonest
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def sample_tokens(key, logits, tokens, sampler, **arguments):
    return _compiled(masked.sample_tokens, key, logits, tokens, sampler, **arguments)


def sample_trajectory(key, logits, tokens, sampler, **arguments):
    return _compiled(masked.sample_trajectory, key, logits, tokens, sampler, **arguments)


def _compiled(function, key, logits, tokens, sampler, noise=Noise(), **constants):  # noqa: B008 (immutable)
    call = lambda key, tokens, noise: function(key, logits, tokens, sampler, noise=noise, **constants)  # noqa: E731
    return jax.jit(call, compiler_options=QUICK)(key, tokens, noise)


def network(seed, steps, b, h, w, k=K):
    """Logits of random weights: a table of each step, shifted by what the tokens around are."""
    rng = np.random.default_rng(seed)
    table = jnp.asarray(rng.normal(size=(steps, b, h, w, k)), jnp.float32) * 2
    embedding = jnp.asarray(rng.normal(size=(MASK + 1, k)), jnp.float32)

    def logits(tokens, step):
        around = embedding[tokens]
        return table[step] + jnp.roll(around, 1, 1) + jnp.roll(around, 1, 2)

    return logits


def all_masked(b, h, w):
    return jnp.full((b, h, w), MASK, jnp.int32)


def partly_masked(seed, b, h, w):
    """Random tokens with a different share masked in each sample: none in the first, all in the last."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, K, (b, h, w))
    share = np.linspace(0, 1, b)[:, None, None]
    return jnp.asarray(np.where(rng.uniform(size=tokens.shape) < share, MASK, tokens), jnp.int32)


def diffusers_sample(logits, tokens, steps, schedule, temperature, starting_mask_ratio=1.0, start=0, seed=0):
    """Runs AmusedScheduler; gives its tokens after each step, and what it drew: ids and uniforms."""
    scheduler = AmusedScheduler(mask_token_id=MASK, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature)
    generator, uniforms, ids, after = torch.Generator().manual_seed(seed), [], [], []
    gumbel_noise = scheduling_amused.gumbel_noise

    def recording(t, generator):
        twin = torch.Generator()
        twin.set_state(generator.get_state())
        uniforms.append(torch.zeros_like(t).uniform_(0, 1, generator=twin).reshape(tokens.shape).numpy())
        return gumbel_noise(t, generator)

    scheduling_amused.gumbel_noise = recording
    try:
        for step in range(start, steps):
            out = torch.from_numpy(np.array(rearrange(logits(tokens, step), "b h w k -> b k h w")))
            sample = torch.from_numpy(np.array(tokens)).long()
            ratio = torch.tensor(starting_mask_ratio)
            timestep = scheduler.timesteps[step]
            stepped = scheduler.step(out, timestep, sample, starting_mask_ratio=ratio, generator=generator)
            ids.append(stepped.pred_original_sample.numpy())
            tokens = jnp.asarray(stepped.prev_sample.numpy(), jnp.int32)
            after.append(np.asarray(tokens))
    finally:
        scheduling_amused.gumbel_noise = gumbel_noise
    uniforms.append(np.full(tokens.shape, 0.5, np.float32))  # the last step masks nothing
    return np.stack(after), Noise(
        tokens=jnp.asarray(np.stack(ids), jnp.int32), uniforms=jnp.asarray(np.stack(uniforms))
    )


def after_each_step(trajectory):
    return np.where(trajectory.masked, MASK, trajectory.tokens)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "temperature"), [(12, (2.0, 0.0)), (5, (4.5, 1.0)), (1, (2.0, 0.0))])
def test_every_step_gives_the_tokens_of_amused_scheduler(schedule, steps, temperature):
    b, h, w = 3, 8, 6
    logits = network(0, steps, b, h, w)
    theirs, noise = diffusers_sample(logits, all_masked(b, h, w), steps, schedule, temperature)
    sampler = Sampler(
        steps=steps, schedule=mask_schedule(schedule), choice_temperature=linspace(temperature[0], temperature[1])
    )
    ours = sample_trajectory(jax.random.key(0), logits, all_masked(b, h, w), sampler, noise=noise, **SIZES)
    np.testing.assert_array_equal(after_each_step(ours), theirs)


def test_inpainting_gives_the_tokens_of_amused_scheduler():
    b, h, w, steps = 2, 8, 8, 10
    logits = network(1, steps, b, h, w)
    # a quarter of each image, the only case in which diffusers' one ratio for the batch is each sample's own
    tokens = np.random.default_rng(0).integers(0, K, (b, h, w))
    tokens[:, 2:6, 3:7] = MASK
    tokens = jnp.asarray(tokens, jnp.int32)
    theirs, noise = diffusers_sample(logits, tokens, steps, "linear", (2.0, 0.0), starting_mask_ratio=0.25)
    sampler = Sampler(steps=steps, schedule=linear())
    ours = sample_trajectory(jax.random.key(0), logits, tokens, sampler, noise=noise, **SIZES)
    np.testing.assert_array_equal(after_each_step(ours), theirs)


def test_an_image_taken_up_midway_gives_the_tokens_of_amused_scheduler():
    b, h, w, steps = 2, 8, 8, 10
    logits, sampler = network(2, steps, b, h, w), Sampler(steps=10)
    start = sampler.start(0.6)
    assert start == 4
    tokens = jnp.where(jax.random.uniform(jax.random.key(3), (b, h, w)) < 0.8, MASK, 5).astype(jnp.int32)
    theirs, noise = diffusers_sample(logits, tokens, steps, "cosine", (2.0, 0.0), start=start)
    ours = sample_trajectory(jax.random.key(0), logits, tokens, sampler, noise=noise, start=start, total=h * w, **SIZES)
    np.testing.assert_array_equal(after_each_step(ours), theirs)


def lucidrains_sample(logits, tokens, steps, gumbels, top_k):
    """The loop of muse-maskgit-pytorch in NumPy, from its description: masks first, then draws."""
    tokens = np.array(tokens)
    b, h, w = tokens.shape
    scores = np.zeros((b, h * w))
    for step, t in enumerate(np.linspace(0, 1, steps)):
        count = max(int(math.cos(t * math.pi / 2) * h * w), 1)
        flat = tokens.reshape(b, -1)
        for row in range(b):
            flat[row, np.argsort(-scores[row], kind="stable")[:count]] = MASK
        raw = np.asarray(logits(jnp.asarray(tokens), step), np.float64)
        least = np.sort(raw, -1)[..., -top_k, None]
        temperature = max((steps - 1 - step) / steps, 1e-10)
        drawn = (np.where(raw < least, -np.inf, raw) / temperature + gumbels[step]).argmax(-1)
        masked = tokens == MASK
        tokens = np.where(masked, drawn, tokens)
        p = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
        scores = np.where(masked, 1 - np.take_along_axis(p, drawn[..., None], -1)[..., 0], -1e5).reshape(b, -1)
    return tokens


@pytest.mark.parametrize("steps", [1, 2, 7, 18])
def test_lucidrains_variant_gives_the_tokens_of_a_loop_written_out(steps):
    b, h, w = 2, 5, 7
    logits = network(3, steps, b, h, w)
    gumbels = np.random.default_rng(4).gumbel(size=(steps, b, h, w, K)).astype(np.float32)
    sampler = dataclasses.replace(SAMPLERS["lucidrains"](), steps=steps, top_k=0.4)
    noise = Noise(gumbels=jnp.asarray(gumbels))
    ours = sample_tokens(jax.random.key(0), logits, all_masked(b, h, w), sampler, noise=noise, **SIZES)
    np.testing.assert_array_equal(ours, lucidrains_sample(logits, all_masked(b, h, w), steps, gumbels, top_k=5))


@settings(max_examples=12, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    steps=st.integers(1, 9),
    grid=st.sampled_from([(1, 1), (1, 4), (4, 4), (3, 5)]),
    seed=st.integers(0, 1000),
)
def test_given_tokens_never_change_and_the_last_step_leaves_no_mask(method, steps, grid, seed):
    b = 4
    tokens = partly_masked(seed, b, *grid)
    logits = network(seed, steps, b, *grid)
    trajectory = sample_trajectory(jax.random.key(seed), logits, tokens, Sampler(method=method, steps=steps), **SIZES)
    known = np.asarray(tokens) != MASK
    for step in range(steps):
        np.testing.assert_array_equal(trajectory.tokens[step][known], tokens[known])
        assert not np.any(trajectory.masked[step] & known)
    final = np.asarray(trajectory.tokens[-1])
    assert final.min() >= 0
    assert final.max() < K
    assert not np.any(trajectory.masked[-1])


@settings(max_examples=8, deadline=None)
@given(
    steps=st.integers(1, 12),
    grid=st.sampled_from([(1, 3), (4, 4), (3, 5)]),
    seed=st.integers(0, 1000),
    name=st.sampled_from(["cosine", "linear", "root", "pow3", "arccos"]),
)
def test_each_sample_masks_again_the_count_of_its_own_unknown_tokens(steps, grid, seed, name):
    b, schedule = 5, mask_schedule(name)
    tokens, logits = partly_masked(seed, b, *grid), network(seed, steps, b, *grid)
    sampler = Sampler(steps=steps, schedule=schedule)
    counts = np.asarray(sample_trajectory(jax.random.key(seed), logits, tokens, sampler, **SIZES).masked.sum((2, 3)))
    unknown = first = np.asarray((tokens == MASK).sum((1, 2)))
    for step in range(steps - 1):
        share = np.floor(first.astype(np.float32) * np.asarray(schedule((step + 1) / steps)))
        expected = np.where(unknown > 0, np.maximum(1, np.minimum(unknown - 1, share)), 0)
        np.testing.assert_array_equal(counts[step], expected)
        unknown = counts[step]


def test_an_unmasked_picture_is_a_fixed_point_even_for_logits_that_are_not_numbers():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, K, (2, 3, 4)), jnp.int32)
    for method in METHODS:
        sampler = Sampler(method=method, steps=4)
        for logits in (network(0, 4, 2, 3, 4), lambda tokens, step: jnp.full((*tokens.shape, K), jnp.nan)):
            np.testing.assert_array_equal(sample_tokens(jax.random.key(0), logits, tokens, sampler, **SIZES), tokens)


def test_broken_logits_never_mask_a_known_token():
    tokens = partly_masked(0, 4, 4, 4)
    logits = lambda tokens, step: jnp.full((*tokens.shape, K), jnp.nan)  # noqa: E731
    sampled = sample_tokens(jax.random.key(0), logits, tokens, Sampler(steps=5), **SIZES)
    np.testing.assert_array_equal(sampled[tokens != MASK], tokens[tokens != MASK])


def test_the_same_key_gives_the_same_tokens_jitted_or_not_and_another_key_others():
    logits, tokens = network(0, 6, 2, 4, 4), all_masked(2, 4, 4)
    for method in ("maskgit", "random_replace"):
        sample = partial(masked.sample_tokens, logits=logits, tokens=tokens, sampler=Sampler(method=method, steps=6))
        jitted = jax.jit(partial(sample, **SIZES), compiler_options=QUICK)
        once = jitted(jax.random.key(1))
        np.testing.assert_array_equal(sample(jax.random.key(1), **SIZES), once)
        assert np.any(jitted(jax.random.key(2)) != once)


def test_the_network_is_traced_once_whatever_the_steps():
    calls = []
    table = network(0, 50, 1, 4, 4)

    def logits(tokens, step):
        calls.append(step)
        return table(tokens, step)

    sample_tokens(jax.random.key(0), logits, all_masked(1, 4, 4), Sampler(steps=50), **SIZES)
    assert len(calls) == 1


def test_one_step_draws_from_the_softmax_of_the_logits():
    p = np.asarray([0.5, 0.3, 0.15, 0.05])
    logits = lambda tokens, step: jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), (*tokens.shape, 4))  # noqa: E731
    n = 40 * 32 * 32

    def frequencies(**options):
        sampler = Sampler(steps=1, **options)
        drawn = sample_tokens(
            jax.random.key(0), logits, all_masked(40, 32, 32), sampler, codebook_size=4, mask_token=MASK
        )
        return np.bincount(np.asarray(drawn).ravel(), minlength=4) / n

    def close(expected):
        # four standard deviations of a share of n draws
        return pytest.approx(expected, abs=4 * math.sqrt(0.25 / n))

    assert frequencies() == close(p)
    assert frequencies(token_temperature=constant(2.0)) == close(np.sqrt(p) / np.sqrt(p).sum())
    assert frequencies(token_temperature=constant(0.0)) == close([1, 0, 0, 0])
    assert frequencies(top_k=2) == close([0.625, 0.375, 0, 0])
    assert frequencies(top_k=0.75) == close(np.asarray([0.5, 0.3, 0.15, 0]) / 0.95)
    assert frequencies(top_p=0.75) == close([0.625, 0.375, 0, 0])
    assert frequencies(top_p=0.4) == close([1, 0, 0, 0])


@pytest.mark.parametrize("size", [1, 2, 9, 10, 37])
def test_a_codebook_of_any_size_is_drawn_from_by_its_probabilities(size):
    p = np.random.default_rng(size).dirichlet(np.full(size, 0.5))
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), (50, 40, 40, size))
    drawn = np.asarray(draw_tokens(jax.random.key(0), logits)).ravel()
    # five standard deviations of a share of n draws, and one draw where there is hardly any probability
    bound = 5 * np.sqrt(p * (1 - p) / drawn.size) + 1 / drawn.size
    assert np.all(np.abs(np.bincount(drawn, minlength=size) / drawn.size - p) <= bound)


def test_guidance_drives_the_logits_by_its_schedule():
    scales = Guidance(strength=3.0, schedule="linear").scales(4)
    conditional, unconditional = network(0, 4, 2, 3, 3), network(1, 4, 2, 3, 3)
    pair = lambda tokens, step: (conditional(tokens, step), unconditional(tokens, step))  # noqa: E731

    def guided(tokens, step):
        c, u = pair(tokens, step)
        return u + jnp.asarray(scales)[step] * (c - u)

    key, tokens = jax.random.key(5), all_masked(2, 3, 3)
    sampler = Sampler(steps=4, guidance=Guidance(strength=3.0, schedule="linear"))
    plain = dataclasses.replace(sampler, guidance=None)
    np.testing.assert_array_equal(
        sample_tokens(key, pair, tokens, sampler, **SIZES), sample_tokens(key, guided, tokens, plain, **SIZES)
    )


def test_logits_beyond_the_codebook_are_never_drawn_and_half_precision_is_sampled_in_float32():
    logits = lambda tokens, step: jnp.zeros((*tokens.shape, 20), jnp.bfloat16).at[..., K:].set(100)  # noqa: E731
    sampled = sample_tokens(jax.random.key(0), logits, all_masked(4, 8, 8), Sampler(steps=3), **SIZES)
    assert set(np.unique(sampled)) == set(range(K))


def test_a_mask_token_of_minus_one_is_googles():
    logits = network(0, 4, 1, 4, 4)
    by_id = lambda tokens, step: logits(jnp.where(tokens == -1, MASK, tokens), step)  # noqa: E731
    key, sampler = jax.random.key(0), Sampler(steps=4)
    np.testing.assert_array_equal(
        sample_tokens(key, by_id, jnp.full((1, 4, 4), -1, jnp.int32), sampler, codebook_size=K, mask_token=-1),
        sample_tokens(key, logits, all_masked(1, 4, 4), sampler, **SIZES),
    )


def test_predict_all_may_mask_a_token_it_had_revealed_and_random_replace_shows_no_mask():
    seen = []
    table = network(0, 12, 1, 6, 6)

    def logits(tokens, step):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), tokens)
        return table(tokens, step)

    sampler = Sampler(method="predict_all", steps=12)
    again = np.asarray(sample_trajectory(jax.random.key(0), table, all_masked(1, 6, 6), sampler, **SIZES).masked)
    assert np.any(again[1:] & ~again[:-1])
    sampler = Sampler(method="random_replace", steps=12)
    trajectory = sample_trajectory(jax.random.key(0), logits, all_masked(1, 6, 6), sampler, **SIZES)
    jax.effects_barrier()
    assert len(seen) == 12
    assert np.max(seen) < K
    rounded = np.maximum(1, np.round(36 * np.cos(np.arange(1, 12) / 12 * np.pi / 2)))
    np.testing.assert_array_equal(trajectory.masked[:-1].sum((1, 2, 3)), rounded)


def test_confidence_masks_the_unlikeliest_where_there_is_no_noise():
    logits = network(0, 3, 2, 4, 4)
    sampler = Sampler(steps=3, choice_temperature=constant(0.0))
    trajectory = sample_trajectory(jax.random.key(0), logits, all_masked(2, 4, 4), sampler, **SIZES)
    log_p = jax.nn.log_softmax(logits(all_masked(2, 4, 4), 0))
    confidence = np.asarray(jnp.take_along_axis(log_p, trajectory.tokens[0][..., None], -1)[..., 0])
    again = np.asarray(trajectory.masked[0])
    for row in range(2):
        assert confidence[row][again[row]].max() < confidence[row][~again[row]].min()


@pytest.mark.parametrize("name", SAMPLERS)
def test_published_samplers_are_hashable_and_sample(name):
    sampler = SAMPLERS[name]()
    assert hash(sampler) == hash(SAMPLERS[name]())
    assert sampler == SAMPLERS[name]()
    table = network(0, sampler.steps, 1, 4, 4)
    logits = (lambda tokens, step: (table(tokens, step), table(tokens, step))) if sampler.guidance else table
    assert np.asarray(sample_tokens(jax.random.key(0), logits, all_masked(1, 4, 4), sampler, **SIZES)).max() < K


def test_annealings_differ_in_what_they_sample():
    table = network(0, 8, 4, 4, 4)
    sampled = [
        np.asarray(
            sample_tokens(
                jax.random.key(0), table, all_masked(4, 4, 4), Sampler(steps=8, choice_temperature=annealing), **SIZES
            )
        )
        for annealing in (linspace(4.5, 0.0), remaining(4.5), compounding(4.5))
    ]
    assert np.any(sampled[0] != sampled[1])
    assert np.any(sampled[1] != sampled[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "sampler.steps"),
        ({"top_k": 0}, "sampler.top_k"),
        ({"top_k": 2.5}, "sampler.top_k"),
        ({"top_p": 1.0}, "sampler.top_p"),
        ({"method": "halton", "choice_temperature": constant(1.0)}, "does not choose by confidence"),
        ({"rolled": True}, "sampler.rolled"),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampler(**options)


def test_strength_says_at_which_step_to_start():
    sampler = Sampler(steps=12)
    assert [sampler.start(strength) for strength in (1.0, 0.5, 0.7, 0.1)] == [0, 6, 4, 11]
    for strength in (0.05, 1.1, math.nan):
        with pytest.raises((ConfigError, ValueError), match=r"strength|NaN"):
            sampler.start(strength)


def test_calls_that_cannot_work_are_refused():
    table, tokens, key = network(0, 12, 1, 4, 4), all_masked(1, 4, 4), jax.random.key(0)
    with pytest.raises(ValueError, match="is a token of the codebook"):
        sample_tokens(key, table, tokens, Sampler(), codebook_size=K, mask_token=3)
    with pytest.raises(ValueError, match="start is 12"):
        sample_tokens(key, table, tokens, Sampler(), start=12, **SIZES)
    with pytest.raises(ValueError, match="one array of logits"):
        sample_tokens(key, table, tokens, Sampler(guidance=Guidance(strength=2.0)), **SIZES)
    with pytest.raises(ValueError, match="two logits"):
        sample_tokens(key, lambda tokens, step: (table(tokens, step),) * 2, tokens, Sampler(), **SIZES)
    with pytest.raises(ValueError, match="logits of 11 tokens"):
        sample_tokens(key, table, tokens, Sampler(), codebook_size=12, mask_token=MASK)


def test_halton_reveals_in_its_order_whatever_the_logits():
    sampler = Sampler(method="halton", steps=6, schedule=arccos())
    first, second = (
        sample_trajectory(jax.random.key(seed), network(seed, 6, 2, 4, 6), all_masked(2, 4, 6), sampler, **SIZES)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first.masked, second.masked)
    revealed = 24 - np.asarray(first.masked[:, 0].sum((1, 2)))
    expected = [int((1 - math.acos((step + 1) / 6) / (math.pi / 2)) * 24) for step in range(6)]
    np.testing.assert_array_equal(revealed, expected)


def test_a_rolled_order_starts_elsewhere_in_each_sample():
    sampler = Sampler(method="halton", steps=24, schedule=linear(), rolled=True)
    again = sample_trajectory(jax.random.key(0), network(0, 24, 5, 4, 6), all_masked(5, 4, 6), sampler, **SIZES).masked
    firsts = {int(np.argmin(row)) for row in np.asarray(again[0]).reshape(5, -1)}
    assert len(firsts) > 1
    np.testing.assert_array_equal(again.sum((2, 3)), np.arange(23, -1, -1)[:, None].repeat(5, 1))


def test_a_batch_over_eight_devices_gives_the_tokens_of_one():
    mesh = jax.make_mesh((8,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))
    logits = network(0, 4, 8, 4, 4)
    sample = jax.jit(lambda key, tokens: masked.sample_tokens(key, logits, tokens, Sampler(steps=4), **SIZES))
    alone = sample(jax.random.key(0), all_masked(8, 4, 4))
    spread = sample(jax.random.key(0), jax.device_put(all_masked(8, 4, 4), sharding))
    np.testing.assert_array_equal(spread, alone)
