import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.nn.norms import BatchNorm

eight_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (virtual) devices")

# A few roundings of float32 (1.2e-7 each) of values around 1.
ROUNDING = {"rtol": 2e-6, "atol": 2e-6}


def normal(rng, shape, mean=0.0, std=1.0):
    return jnp.asarray(rng.normal(mean, std, shape), jnp.float32)


def variables(rng, channels):
    def draw(low, high):
        return jnp.asarray(rng.uniform(low, high, channels), jnp.float32)

    return {
        "params": {"scale": draw(0.5, 1.5), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


def torch_norm(values, **fields):
    norm = torch.nn.BatchNorm2d(len(values["params"]["scale"]), **fields)
    state = {
        "weight": values["params"]["scale"],
        "bias": values["params"]["bias"],
        "running_mean": values["batch_stats"]["mean"],
        "running_var": values["batch_stats"]["var"],
        "num_batches_tracked": np.zeros((), np.int64),
    }
    norm.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return norm


def nchw(x):
    x = np.array(x, np.float32)
    return torch.from_numpy(x.reshape(len(x), -1, 1, x.shape[-1]).transpose(0, 3, 1, 2).copy())


def nhwc(x, shape):
    return x.detach().numpy().transpose(0, 2, 3, 1).reshape(shape)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 5), (3, 1, 1, 5)])
def test_training_matches_torch_in_outputs_gradients_and_running_statistics(shape):
    rng = np.random.default_rng(0)
    values = variables(rng, shape[-1])
    reference = torch_norm(values)
    norm = BatchNorm()
    for _ in range(3):
        x, weight = (normal(rng, shape) for _ in range(2))

        def loss(params, x, stats=values["batch_stats"], weight=weight):
            y, state = norm.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats")
            return (y * weight).sum(), (y, state["batch_stats"])

        (grads, grad_x), (y, stats) = jax.grad(loss, (0, 1), has_aux=True)(values["params"], x)
        values["batch_stats"] = stats

        tx = nchw(x).requires_grad_()
        ty = reference(tx)
        reference.zero_grad()
        (ty * nchw(weight)).sum().backward()

        np.testing.assert_allclose(y, nhwc(ty, shape), **ROUNDING)
        # Sums whose terms cancel lose a digit more.
        np.testing.assert_allclose(grad_x, nhwc(tx.grad, shape), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(grads["scale"], reference.weight.grad, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(grads["bias"], reference.bias.grad, **ROUNDING)
        np.testing.assert_allclose(stats["mean"], reference.running_mean, **ROUNDING)
        np.testing.assert_allclose(stats["var"], reference.running_var, **ROUNDING)


def test_evaluation_matches_torch_and_needs_no_mutable_collection():
    rng = np.random.default_rng(1)
    values = variables(rng, 3)
    x = normal(rng, (2, 4, 4, 3))
    y = BatchNorm(use_running_average=True).apply(values, x)
    np.testing.assert_allclose(y, nhwc(torch_norm(values).eval()(nchw(x)), x.shape), **ROUNDING)


def test_momentum_and_epsilon_mean_what_they_mean_in_torch():
    rng = np.random.default_rng(2)
    values = variables(rng, 3)
    x = normal(rng, (4, 2, 2, 3), std=0.01)
    reference = torch_norm(values, momentum=0.3, eps=1e-3)
    y, state = BatchNorm(momentum=0.3, epsilon=1e-3).apply(values, x, mutable="batch_stats")
    np.testing.assert_allclose(y, nhwc(reference(nchw(x)), x.shape), **ROUNDING)
    np.testing.assert_allclose(state["batch_stats"]["var"], reference.running_var, **ROUNDING)


def test_the_variance_survives_a_mean_that_dwarfs_it():
    # Around 1000 float32 has steps of 6e-5, so E[x²] - E[x]² would be off by 0.06 for a variance of 1.
    x = normal(np.random.default_rng(3), (512, 2), mean=1000)
    _, state = BatchNorm(momentum=1.0).apply(BatchNorm().init(jax.random.key(0), x), x, mutable="batch_stats")
    np.testing.assert_allclose(state["batch_stats"]["var"], np.float64(x).var(0, ddof=1), rtol=1e-5)


def test_groups_are_normalised_as_separate_batches_and_their_statistics_averaged():
    rng = np.random.default_rng(4)
    values = variables(rng, 3)
    x = normal(rng, (12, 2, 2, 3))
    y, state = BatchNorm(groups=3).apply(values, x, mutable="batch_stats")

    references = [torch_norm(values) for _ in range(3)]
    expected = [nhwc(r(nchw(part)), part.shape) for r, part in zip(references, jnp.split(x, 3), strict=True)]
    np.testing.assert_allclose(y, np.concatenate(expected), **ROUNDING)
    for name, buffer in ("mean", "running_mean"), ("var", "running_var"):
        mean = np.mean([getattr(r, buffer).numpy() for r in references], axis=0)
        np.testing.assert_allclose(state["batch_stats"][name], mean, **ROUNDING)


@eight_devices
def test_synchronised_devices_compute_what_one_device_does_with_the_whole_batch():
    rng = np.random.default_rng(5)
    values = variables(rng, 3)
    x, weight = (normal(rng, (16, 2, 2, 3)) for _ in range(2))

    def loss(params, x, weight, norm):
        y, state = norm.apply({**values, "params": params}, x, mutable="batch_stats")
        return (y * weight).mean(), (y, state["batch_stats"])

    def on_device(params, x, weight):
        grads, aux = jax.grad(loss, has_aux=True)(params, x, weight, BatchNorm(axis_name="data"))
        return jax.lax.pmean(grads, "data"), aux

    parts = (array.reshape(8, 2, *array.shape[1:]) for array in (x, weight))
    grads, (y, stats) = jax.pmap(on_device, "data", in_axes=(None, 0, 0))(values["params"], *parts)
    whole_grads, (whole_y, whole_stats) = jax.grad(loss, has_aux=True)(values["params"], x, weight, BatchNorm())

    np.testing.assert_allclose(y.reshape(x.shape), whole_y, **ROUNDING)
    for name, values_per_device in {**grads, **stats}.items():
        for value in values_per_device:
            np.testing.assert_allclose(value, {**whole_grads, **whole_stats}[name], **ROUNDING)


@eight_devices
def test_groups_in_one_program_compute_what_unsynchronised_devices_do():
    rng = np.random.default_rng(6)
    values = variables(rng, 3)
    x = normal(rng, (16, 2, 2, 3))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def apply(norm):
        return lambda x: norm.apply(values, x, mutable="batch_stats")

    y, state = jax.jit(apply(BatchNorm(groups=8)))(jax.device_put(x, split))
    apart_y, apart_state = jax.pmap(apply(BatchNorm()), "data")(x.reshape(8, 2, *x.shape[1:]))
    np.testing.assert_allclose(y, apart_y.reshape(x.shape), **ROUNDING)
    for name, value in state["batch_stats"].items():
        np.testing.assert_allclose(value, apart_state["batch_stats"][name].mean(0), **ROUNDING)


@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_statistics_of_a_half_precision_input_are_float32(low):
    rng = np.random.default_rng(7)
    values = variables(rng, 3)
    x = jnp.asarray(rng.normal(1, 2, size=(64, 3)), low)
    y, state = BatchNorm().apply(values, x, mutable="batch_stats")
    exact, exact_state = BatchNorm().apply(values, x.astype(jnp.float32), mutable="batch_stats")

    assert y.dtype == low
    assert BatchNorm(dtype=jnp.float32).apply(values, x, mutable="batch_stats")[0].dtype == jnp.float32
    np.testing.assert_array_equal(y, exact.astype(low))
    for name, value in state["batch_stats"].items():
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, exact_state["batch_stats"][name])


def test_a_single_value_per_channel_is_refused_in_training_as_in_torch():
    x = jnp.ones((1, 1, 1, 3))
    values = BatchNorm().init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch_norm(values).train()(nchw(x))
    with pytest.raises(ValueError, match="more than one value per channel"):
        BatchNorm().apply(values, x, mutable="batch_stats")
    assert BatchNorm(use_running_average=True).apply(values, x).shape == x.shape


def test_a_batch_that_groups_do_not_divide_is_refused():
    x = jnp.ones((5, 3))
    with pytest.raises(ValueError, match="5 cannot be cut into 2"):
        BatchNorm(groups=2).apply(BatchNorm().init(jax.random.key(0), x), x, mutable="batch_stats")


def test_an_initialisation_needs_no_mapped_axis_and_starts_from_standard_statistics():
    values = BatchNorm(axis_name="data").init(jax.random.key(0), 5 + jnp.ones((4, 3)))
    np.testing.assert_array_equal(values["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(values["batch_stats"]["var"], np.ones(3))
