import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from jaxkit.errors import ConfigError
from jaxkit.optimizer import (
    AverageState,
    averaged_params,
    decay_mask,
    loss_scale,
    make_optimizer,
    scale_by_adam,
)
from jaxkit.schema.optimizer import OPTIMIZERS, SCHEDULES, Ema

STEPS = 30
RNG = np.random.default_rng(0)
SHAPES = {"conv": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,)}}
# within 1 of 0, so that 1e-6 is some ten roundings of float32
START = jax.tree.map(lambda shape: RNG.uniform(-1, 1, shape), SHAPES, is_leaf=lambda node: isinstance(node, tuple))
GRADIENTS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), START) for _ in range(STEPS)]


def section(name, schedule=None, **fields):
    schedule = SCHEDULES["constant"]() if schedule is None else SCHEDULES[schedule["name"]](**schedule)
    return OPTIMIZERS[name](**({"name": name, "learning_rate": 0.01, "schedule": schedule} | fields))


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def trajectory(optimizer, gradients=GRADIENTS):
    """Parameters after each update, from the same start."""
    params = as_jax(START)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    visited = []
    for gradient in gradients:
        updates, state = update(as_jax(gradient), state, params)
        params = optax.apply_updates(params, updates)
        visited.append(params)
    return visited, state


def torch_trajectory(make, dtype, clip=None, schedule=None, gradients=GRADIENTS, observe=None):
    params = [torch.nn.Parameter(torch.tensor(leaf, dtype=dtype)) for leaf in jax.tree.leaves(START)]
    optimizer = make(params)
    scheduler = schedule(optimizer) if schedule else None
    visited = []
    for gradient in gradients:
        for p, g in zip(params, jax.tree.leaves(gradient), strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        if clip:
            clip(params)
        optimizer.step()
        if scheduler:
            scheduler.step()
        if observe:
            observe(params)
        visited.append([p.detach().numpy().copy() for p in params])
    return visited


def assert_same(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(jax.tree.leaves(mine), other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


RULES = [
    ("sgd", {}, torch.optim.SGD),
    ("sgd", {"weight_decay": 0.1}, torch.optim.SGD),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.1}, torch.optim.SGD),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, torch.optim.SGD),
    ("adam", {"b1": 0.8, "b2": 0.999}, torch.optim.Adam),
    ("adam", {"weight_decay": 0.1, "eps": 1e-6}, torch.optim.Adam),
    ("adamw", {"weight_decay": 0.1, "b1": 0.9, "b2": 0.95}, torch.optim.AdamW),
    ("adamw", {"weight_decay": 0.0}, torch.optim.AdamW),
]


@pytest.mark.parametrize(("name", "fields", "rule"), RULES)
@pytest.mark.parametrize("schedule", [None, "linear", "cosine"])
def test_thirty_updates_equal_torchs(name, fields, rule, schedule):
    ours = section(name, schedule and {"name": schedule, "warmup_steps": 5}, **fields)
    theirs = schedule and (
        lambda torch_optimizer: get_scheduler(schedule, torch_optimizer, num_warmup_steps=5, num_training_steps=STEPS)
    )
    settings = {key: value for key, value in fields.items() if key not in ("b1", "b2")}
    if "b1" in fields:
        settings["betas"] = (fields["b1"], fields["b2"])
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        expected = torch_trajectory(lambda p: rule(p, lr=0.01, **settings), dtype, schedule=theirs)
        with jax.enable_x64(dtype == torch.float64):
            assert_same(trajectory(make_optimizer(ours, STEPS, 10.0))[0], expected, tolerance)


def test_adams_direction_in_float32_is_that_of_float64_to_its_last_digits():
    def direction():
        optimizer, params = scale_by_adam(0.9, 0.999, 1e-8), as_jax(START)
        state = optimizer.init(params)
        for gradient in GRADIENTS[:3]:
            updates, state = optimizer.update(as_jax(gradient), state)
        return jax.tree.leaves(updates)

    with jax.enable_x64(True):
        exact = direction()
    for single, double in zip(direction(), exact, strict=True):
        # a few roundings of 6e-8; optax's own bias correction is off by 6e-6
        np.testing.assert_allclose(single, double, rtol=1e-6)


def test_lion_equals_its_paper():
    b1, b2, rate, decay = 0.9, 0.99, 0.01, 0.1
    params = jax.tree.leaves(START)
    moments = [np.zeros_like(p) for p in params]
    expected = []
    for gradient in GRADIENTS:
        for i, g in enumerate(jax.tree.leaves(gradient)):
            step = np.sign(b1 * moments[i] + (1 - b1) * g)
            params[i] = params[i] - rate * (step + decay * params[i])
            moments[i] = b2 * moments[i] + (1 - b2) * g
        expected.append(list(params))
    config = section("lion", weight_decay=decay)
    assert_same(trajectory(make_optimizer(config, STEPS, 10.0))[0], expected, 1e-6)
    with jax.enable_x64(True):
        assert_same(trajectory(make_optimizer(config, STEPS, 10.0))[0], expected, 1e-12)


@pytest.mark.parametrize(
    ("fields", "clip"),
    [
        # some of the gradients' norms lie above 4.5 and some below; 1e-3 shows the 1e-6 in torch's denominator
        ({"clip_norm": 4.5}, lambda params: torch.nn.utils.clip_grad_norm_(params, 4.5)),
        ({"clip_norm": 1e-3}, lambda params: torch.nn.utils.clip_grad_norm_(params, 1e-3)),
        ({"clip_value": 0.5}, lambda params: torch.nn.utils.clip_grad_value_(params, 0.5)),
    ],
)
def test_clipping_equals_torchs(fields, clip):
    norms = [np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient))) for gradient in GRADIENTS]
    assert min(norms) < 4.5 < max(norms)
    expected = torch_trajectory(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), torch.float64, clip)
    config = section("sgd", momentum=0.9, **fields)
    with jax.enable_x64(True):
        assert_same(trajectory(make_optimizer(config, STEPS, 10.0))[0], expected, 1e-12)


def test_only_parameters_that_no_pattern_matches_are_decayed():
    params = as_jax(START)
    mask = decay_mask(params, ("bias$", "norm"))
    assert mask == {"conv": {"kernel": True, "bias": False}, "norm": {"scale": False}}

    optimizer = make_optimizer(section("adamw", weight_decay=0.1, no_decay=["bias$", "norm"]), STEPS, 10.0)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.01 * 0.1 * START["conv"]["kernel"], rtol=1e-6)
    assert not np.any(updates["conv"]["bias"])
    assert not np.any(updates["norm"]["scale"])


def test_a_pattern_that_matches_no_parameter_is_refused():
    optimizer = make_optimizer(section("sgd", weight_decay=0.1, no_decay=["bias$", "layernorm"]), STEPS, 10.0)
    with pytest.raises(ConfigError, match=r"no parameter matches \['layernorm'\].*conv/kernel.*norm/scale"):
        optimizer.init(as_jax(START))


def test_the_average_equals_diffusers_ema_step_for_step():
    shadow = EMAModel([torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(START)], decay=0.6)
    expected = []

    def observe(params):
        shadow.step(params)
        expected.append([p.numpy().copy() for p in shadow.shadow_params])

    torch_trajectory(lambda p: torch.optim.SGD(p, lr=0.01), torch.float64, observe=observe)
    optimizer = make_optimizer(section("sgd", ema=Ema(decay=0.6)), STEPS, 10.0)
    # of 30 updates the first 12 are warm-up: (1 + 13) / (10 + 13) > 0.6
    for steps in (1, 2, 13, STEPS):
        _, state = trajectory(optimizer, GRADIENTS[:steps])
        assert_same([averaged_params(state, as_jax(START))], [expected[steps - 1]], 1e-6)


def test_without_warm_up_the_average_has_its_decay_from_the_first_update():
    visited, state = trajectory(make_optimizer(section("sgd", ema=Ema(decay=0.9, warmup=False)), STEPS, 10.0))
    expected = START["conv"]["bias"]
    for params in visited:
        expected = 0.9 * expected + 0.1 * np.asarray(params["conv"]["bias"])
    np.testing.assert_allclose(averaged_params(state, visited[-1])["conv"]["bias"], expected, rtol=1e-6)


def test_params_stand_for_an_average_that_is_not_kept():
    visited, state = trajectory(make_optimizer(section("adam"), STEPS, 10.0))
    assert averaged_params(state, visited[-1]) is visited[-1]


def test_the_average_is_float32_and_comes_back_in_the_dtype_of_the_parameters():
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), START)
    state = make_optimizer(section("sgd", ema=Ema()), STEPS, 10.0).init(params)
    kept = next(part for part in state if isinstance(part, AverageState))
    assert {leaf.dtype for leaf in jax.tree.leaves(kept.average)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(averaged_params(state, params))} == {jnp.dtype("bfloat16")}


EVERYTHING = {"weight_decay": 0.1, "no_decay": ["bias"], "clip_norm": 1.0, "clip_value": 0.1, "ema": Ema()}
SCHEDULE = {"name": "cosine", "warmup_steps": 5}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_overflow_moves_no_parameter_and_no_moment_but_the_schedule_goes_on(name):
    optimizer = make_optimizer(section(name, SCHEDULE, **EVERYTHING), STEPS, 10.0, "fp16")
    visited, state = trajectory(optimizer, GRADIENTS[:7])
    gradients = as_jax(GRADIENTS[7])
    gradients["conv"]["bias"] = gradients["conv"]["bias"].at[0].set(jnp.inf)
    updates, skipped = jax.jit(optimizer.update)(gradients, state, visited[-1])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    jax.tree.map(np.testing.assert_array_equal, skipped[0].inner, state[0].inner)
    # a torch loop calls scheduler.step() after a skipped update too
    assert int(optax.tree.get(skipped[1], "count")) == int(optax.tree.get(state[1], "count")) + 1
    assert float(loss_scale(skipped)) == float(loss_scale(state)) / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scaled_run_with_overflows_repeats_the_plain_run_without_them(name):
    config = section(name, **EVERYTHING)  # at a constant rate: a schedule counts the skipped updates
    plain, _ = trajectory(make_optimizer(config, STEPS, 10.0))
    optimizer = make_optimizer(config, STEPS, 10.0, "fp16")
    params = as_jax(START)
    state = optimizer.init(params)
    for step, gradient in enumerate(GRADIENTS):
        for bad in (True, False) if step in (0, 11) else (False,):
            scale = jnp.inf if bad else loss_scale(state)
            updates, state = optimizer.update(jax.tree.map(lambda g, s=scale: g * s, as_jax(gradient)), state, params)
            params = optax.apply_updates(params, updates)
    # scales are powers of two, so scaling loses nothing; jit and op-by-op execution round apart in the last digit
    assert_same([params], [jax.tree.leaves(plain[-1])], 1e-6)


def test_the_loss_scale_is_one_where_there_is_none():
    for precision in ("no", "bf16"):
        optimizer = make_optimizer(section("sgd", momentum=0.9), STEPS, 10.0, precision)
        assert loss_scale(optimizer.init(as_jax(START))) == 1.0


@pytest.mark.parametrize("precision", ["no", "fp16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_donated_state_keeps_its_structure_and_types(name, precision):
    optimizer = make_optimizer(section(name, SCHEDULE, **EVERYTHING), STEPS, 10.0, precision)
    params, gradients = as_jax(START), as_jax(GRADIENTS[0])

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    inputs = jax.eval_shape(lambda p: (p, optimizer.init(p)), params)
    outputs = jax.eval_shape(step, *inputs, gradients)
    assert jax.tree.structure(outputs) == jax.tree.structure(inputs)
    assert types(outputs) == types(inputs)

    # donation fails where params and state share a buffer
    compiled = jax.jit(step, donate_argnums=(0, 1))
    params, state = compiled(params, optimizer.init(params), gradients)
    params, state = compiled(params, state, gradients)
    assert compiled._cache_size() == 1


def test_scaled_rates_are_those_of_torch_parameter_groups():
    visited, _ = trajectory(
        make_optimizer(section("sgd", momentum=0.9, rate_scale={"conv": 10.0, "bias": 0.5}), STEPS, 1)
    )
    # leaves in the order of the tree: conv/bias, conv/kernel, norm/scale
    rates = [0.01 * 10 * 0.5, 0.01 * 10, 0.01]

    def groups(params):
        return torch.optim.SGD(
            [{"params": [p], "lr": rate} for p, rate in zip(params, rates, strict=True)], momentum=0.9
        )

    expected = torch_trajectory(groups, torch.float64)
    for ours, theirs in zip(visited, expected, strict=True):
        for a, b in zip(jax.tree.leaves(ours), theirs, strict=True):
            # some ten roundings of float32, of values around 1
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_rate_scale_that_matches_no_parameter_is_refused():
    optimizer = make_optimizer(section("sgd", rate_scale={"delay": 10.0}), STEPS, 1)
    with pytest.raises(ConfigError, match=r"optimizer.rate_scale: no parameter matches \['delay'\]"):
        optimizer.init(as_jax(START))
