import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup, get_scheduler

from jaxkit.errors import ConfigError
from jaxkit.schedules import make_schedule
from jaxkit.schema.optimizer import SCHEDULES, Sgd

PEAK = 0.3


def optimizer(name, **fields):
    return Sgd(name="sgd", learning_rate=PEAK, schedule=SCHEDULES[name](name=name, **fields))


def rates_of_torch(scheduler_of, steps):
    torch_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = scheduler_of(torch_optimizer)
    rates = []
    for _ in range(steps):
        rates.append(torch_optimizer.param_groups[0]["lr"])
        torch_optimizer.step()
        scheduler.step()
    return np.array(rates)


@pytest.mark.parametrize("steps", [40, 10_000])
@pytest.mark.parametrize(
    ("name", "fields", "reference"),
    [
        ("constant", {}, {}),
        ("constant_with_warmup", {"warmup_steps": 7}, {}),
        ("linear", {}, {}),
        ("linear", {"warmup_steps": 7}, {}),
        ("cosine", {"warmup_steps": 7}, {}),
        ("cosine_with_restarts", {"warmup_steps": 8, "cycles": 4}, {"num_cycles": 4}),
        ("polynomial", {"warmup_steps": 7}, {}),
        ("polynomial", {"power": 2.5}, {"power": 2.5}),
    ],
)
def test_a_schedule_equals_diffusers_at_every_update(name, fields, reference, steps):
    def scheduler_of(torch_optimizer):
        settings = {"num_warmup_steps": fields.get("warmup_steps", 0), "num_training_steps": steps}
        return get_scheduler(name, torch_optimizer, **settings, **reference)

    expected = rates_of_torch(scheduler_of, steps + 1)
    ours = jax.jit(make_schedule(optimizer(name, **fields), steps, 10.0))(jnp.arange(steps + 1))
    # of the peak: a cosine's tail is a difference of numbers near 1, and float32 rounds those by 6e-8
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6 * PEAK)


def test_a_cosine_of_several_cycles_equals_diffusers():
    expected = rates_of_torch(lambda o: get_cosine_schedule_with_warmup(o, 7, 40, num_cycles=1.75), 41)
    ours = make_schedule(optimizer("cosine", warmup_steps=7, cycles=1.75), 40, 10.0)(jnp.arange(41))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6 * PEAK)


def test_a_polynomial_equals_diffusers_down_to_its_end():
    config = optimizer("polynomial", power=2.0, end=1e-3)
    ours = make_schedule(config, 40, 10.0)(jnp.arange(40))
    # diffusers' get_scheduler has no argument for the end
    remaining = 1 - np.arange(40) / 40
    np.testing.assert_allclose(ours, (PEAK - 1e-3) * remaining**2 + 1e-3, rtol=1e-6)


def test_multistep_equals_torchs_milestones_after_teacher_free_kds_warm_up():
    steps_per_epoch, epochs = 9, 12
    torch_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    milestones = torch.optim.lr_scheduler.MultiStepLR(torch_optimizer, milestones=[4, 7], gamma=0.2)
    expected = []
    for _ in range(epochs):
        expected += [torch_optimizer.param_groups[0]["lr"]] * steps_per_epoch
        torch_optimizer.step()
        milestones.step()
    expected[: 2 * steps_per_epoch] = PEAK * (np.arange(2 * steps_per_epoch) + 1) / (2 * steps_per_epoch)

    config = optimizer("multistep", milestone_epochs=[4.0, 7.0], warmup_epochs=2.0, gamma=0.2)
    ours = make_schedule(config, epochs * steps_per_epoch, steps_per_epoch)(jnp.arange(epochs * steps_per_epoch))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_epochs_are_updates_rounded():
    by_epoch = make_schedule(optimizer("multistep", milestone_epochs=[1.5], warmup_epochs=0.5), 60, 10.7)
    by_update = make_schedule(optimizer("multistep", milestones=[16], warmup_steps=5), 60, 10.7)
    np.testing.assert_array_equal(by_epoch(jnp.arange(60)), by_update(jnp.arange(60)))


def test_a_schedule_stays_at_its_last_rate_after_the_run():
    for name in ("linear", "cosine", "cosine_with_restarts"):
        assert make_schedule(optimizer(name), 40, 10.0)(45) == pytest.approx(0.0, abs=1e-9)


def test_the_rate_is_a_plain_float32_whatever_the_count():
    for name in ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"):
        rate = jax.eval_shape(make_schedule(optimizer(name), 40, 10.0), jax.ShapeDtypeStruct((), jnp.int32))
        assert (rate.dtype, rate.weak_type) == (jnp.float32, False)


@pytest.mark.parametrize("fields", [{"warmup_steps": 40}, {"warmup_epochs": 4.0}])
def test_a_warm_up_as_long_as_the_run_is_refused(fields):
    with pytest.raises(ConfigError, match="warm-up of 40 updates leaves none of the run's 40"):
        make_schedule(optimizer("linear", **fields), 40, 10.0)


def test_a_milestone_within_the_warm_up_is_refused():
    with pytest.raises(ConfigError, match="update 10 lies within the warm-up of 20"):
        make_schedule(optimizer("multistep", milestone_epochs=[1.0], warmup_epochs=2.0), 100, 10.0)


def test_a_polynomial_that_would_rise_is_refused():
    with pytest.raises(ValueError, match=r"0\.3 must lie below the learning rate, 0\.3"):
        optimizer("polynomial", end=0.3)
