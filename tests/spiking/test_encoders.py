import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from jaxkit.spiking.encoders import (
    HomogeneousPoissonApproxEncoder,
    HomogeneousPoissonEncoder,
    LatencyEncoder,
    PoissonIntervalEncoder,
    RegularEncoder,
)

pytestmark = pytest.mark.level(1)

KEY = jax.random.key(0)
STEPS = 400
ENCODERS = [
    HomogeneousPoissonEncoder(STEPS, 1.0, 100.0),
    HomogeneousPoissonEncoder(STEPS, 1.0, 100.0, refrac=4.0),
    HomogeneousPoissonApproxEncoder(STEPS, 1.0, 100.0),
    PoissonIntervalEncoder(STEPS, 1.0, 100.0),
    RegularEncoder(STEPS, 1.0, 100.0),
    LatencyEncoder(STEPS, 1.0),
]
every_encoder = pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: type(e).__name__)


def train(encoder, intensity=1.0, neurons=2000, key=KEY):
    return np.asarray(jax.jit(encoder)(key, jnp.full((1, neurons), intensity)))[:, 0]


def intervals(spikes):
    """Steps between successive spikes of one neuron, of all neurons [t n]."""
    neuron, step = np.nonzero(spikes.T)
    return np.diff(step)[np.diff(neuron) == 0]


def original(name, *arguments, **options):
    """An encoder of inferno, as a function of one intensity: spikes [t n]."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("inferno")
        from inferno import neural
    torch.manual_seed(0)
    encoder = getattr(neural, name)(*arguments, **options)
    return lambda intensity: encoder(torch.full((1, 1000), intensity)).numpy()[:, 0]


@every_encoder
def test_digits_become_trains_of_zeros_and_ones_time_first(encoder):
    images = jnp.asarray(load_digits().images[:3, :, :, None] / 16, jnp.bfloat16)
    spikes = jax.jit(encoder)(KEY, images)
    assert spikes.shape == (STEPS, 3, 8, 8, 1)
    assert spikes.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(spikes, np.float32))) == {0, 1}
    # black pixels are silent
    assert not np.asarray(spikes, np.float32)[:, np.asarray(images) == 0].any()


@every_encoder
def test_one_key_makes_one_train_and_a_step_at_a_time_the_same(encoder):
    x = jnp.linspace(0, 1, 6).reshape(2, 3)
    whole = encoder(KEY, x)
    np.testing.assert_array_equal(whole, encoder(KEY, x))
    step, carry = jax.jit(encoder.step), encoder.initialize_carry(KEY, x)
    for spikes in whole[:60]:
        carry, online = step(carry, x)
        np.testing.assert_array_equal(online, spikes)


@pytest.mark.parametrize("encoder", ENCODERS[:-1], ids=lambda e: type(e).__name__)
def test_another_key_makes_another_train(encoder):
    x = jnp.full((1, 20), 0.5)
    assert (encoder(KEY, x) != encoder(jax.random.key(1), x)).any()


def test_vmap_over_keys_makes_the_train_of_each():
    x, keys = jnp.full((2, 3), 0.7), jax.random.split(KEY, 2)
    both = jax.jit(jax.vmap(ENCODERS[1], (0, None)))(keys, x)
    np.testing.assert_array_equal(both[1], ENCODERS[1](keys[1], x))


@pytest.mark.parametrize(("refrac", "compensate"), [(None, True), (4.0, True), (4.0, False), (8.0, True)])
@pytest.mark.parametrize("intensity", [0.2, 1.0])
def test_a_poisson_train_has_its_rate_from_the_first_step_on(refrac, compensate, intensity):
    encoder = HomogeneousPoissonEncoder(STEPS, 1.0, 100.0, refrac=refrac, compensate=compensate)
    spikes = train(encoder, intensity)
    rate = 0.1 * intensity
    if not compensate:
        rate = 1 / (1 / rate + refrac)
    # 5 standard deviations of the mean; the dead time makes counts more regular than independent steps
    for part in (spikes, spikes[:1], spikes[:5]):
        assert abs(part.mean() - rate) < 5 * np.sqrt(rate / part.size)


@pytest.mark.parametrize(("refrac", "steps"), [(None, 1), (0.0, 1), (3.0, 3), (1.1, 2), (6.0, 6)])
def test_no_poisson_interval_is_shorter_than_the_refractory_period_and_some_are_as_long(refrac, steps):
    encoder = HomogeneousPoissonEncoder(STEPS, 1.0, 160.0, refrac=refrac)
    assert intervals(train(encoder)).min() == steps


def test_a_refractory_period_of_whole_steps_is_not_rounded_up_by_float_noise():
    # 2.1 / 0.3 is 7.000000000000001
    encoder = HomogeneousPoissonEncoder(STEPS, 0.3, 400.0, refrac=2.1)
    assert intervals(train(encoder)).min() == 7


@pytest.mark.parametrize("refrac", [1.0, 5.0])
def test_poisson_intervals_are_an_exponential_after_the_refractory_period(refrac):
    # Steps of a 20th of a ms show the distribution within a step; as floor of the difference of times differs from the
    # difference of floors, a step is the resolution of what is tested.
    encoder = HomogeneousPoissonEncoder(4000, 0.05, 100.0, refrac=refrac)
    found = intervals(train(encoder, neurons=300)) * 0.05
    # a train of 200 ms has room for few intervals near its length: the short ones suffice
    short = found[found < 50]
    dither = np.random.default_rng(0).uniform(-0.025, 0.025, len(short))
    exponential = stats.expon(refrac, 10 - refrac)

    def truncated(t):
        # neurons see an interval of t in a share of (200 - t) of the moments that it could begin at
        grid = np.linspace(refrac, 50, 4000)
        density = exponential.pdf(grid) * (200 - grid)
        return np.interp(t, grid, np.cumsum(density) / density.sum())

    assert len(short) > 3000
    assert stats.kstest(short + dither, truncated).pvalue > 0.01


def test_the_number_of_poisson_spikes_has_a_poisson_distribution_where_the_dead_time_is_short():
    # 0.1 ms of dead time in 20 ms between spikes: the variance of counts falls by 1 %
    encoder = HomogeneousPoissonEncoder(2000, 0.1, 50.0)
    counts = train(encoder).sum(0)
    # 5 standard deviations of a variance: mean 10, of 2000 counts, and the 1 %
    assert abs(counts.var() / counts.mean() - 0.99) < 5 * np.sqrt(2 / 2000)


def test_poisson_spikes_follow_an_intensity_that_changes_online():
    encoder = HomogeneousPoissonEncoder(STEPS, 1.0, 100.0, refrac=2.0)
    course = jnp.repeat(jnp.array([0.0, 1.0, 0.2, 0.0]), 100)
    carry = encoder.initialize_carry(KEY, jnp.zeros(2000))
    _, spikes = jax.lax.scan(lambda c, x: encoder.step(c, jnp.full(2000, x)), carry, course)
    for part, rate in zip(np.split(np.asarray(spikes), 4), (0, 0.1, 0.02, 0), strict=True):
        # 5 standard deviations, and one spike per 100 dead steps of adjustment after a change of rate
        assert abs(part.mean() - rate) <= (5 * np.sqrt(rate / part.size) + 0.02 * rate if rate else 0)


@pytest.mark.parametrize("intensity", [0.3, 1.0])
def test_coins_are_independent(intensity):
    spikes = train(HomogeneousPoissonApproxEncoder(STEPS, 1.0, 100.0), intensity)
    rate = 0.1 * intensity
    bound = 5 * np.sqrt(rate / spikes.size)
    assert abs(spikes.mean() - rate) < bound
    # two steps in a row both spike as often as two that know nothing of each other
    assert abs((spikes[1:] * spikes[:-1]).mean() - rate**2) < 5 * rate / np.sqrt(spikes.size)


def test_a_coin_never_exceeds_one_spike_a_step():
    assert train(HomogeneousPoissonApproxEncoder(10, 1.0, 3000.0)).all()


def test_interval_encoder_draws_poisson_numbers_of_steps():
    found = intervals(train(PoissonIntervalEncoder(2000, 1.0, 100.0), 0.5, 500))
    # mean 20 steps, variance 20; of 48,000 intervals 5 standard deviations; long trains lose few of them at their ends
    assert abs(found.mean() - 20) < 5 * np.sqrt(20 / len(found)) + 0.02
    assert abs(found.var() - 20) < 5 * 20 * np.sqrt(2 / len(found)) + 0.3


def test_regular_trains_have_as_many_spikes_as_the_rate_says():
    spikes = train(RegularEncoder(STEPS, 1.0, 100.0), 0.35)
    # 0.035 * 400 = 14, up to the rounding of float32
    assert set(spikes.sum(0)) <= {13, 14, 15}
    assert set(intervals(spikes)) == {28, 29}
    # phases differ: no step has many times the spikes of another
    assert spikes.sum(1).max() < 2 * 0.035 * 2000


def test_a_regular_train_fires_every_step_at_most():
    assert train(RegularEncoder(10, 1.0, 5000.0)).all()


def test_latency_is_when_a_leaky_integrator_reaches_the_threshold():
    x = np.linspace(0, 1, 101, dtype=np.float32)
    encoder = LatencyEncoder(100, 0.5, tc_membrane=10.0, thresh=0.3)
    spikes = np.asarray(encoder(KEY, jnp.asarray(x)))
    membrane, fired, step_time = np.zeros(101), np.full(101, 50.0), 1e-3
    for moment in np.arange(0, 50, step_time):
        membrane = x - (x - membrane) * np.exp(-step_time / 10)
        fired = np.where((membrane >= 0.3) & (fired == 50), moment, fired)
    expected = fired // 0.5
    ours = np.where(spikes.any(0), spikes.argmax(0), 100)
    assert spikes.sum(0).max() == 1
    # a threshold met at the edge of a step may fall on either side
    assert (ours != expected).sum() <= 2
    assert abs(ours - expected).max() <= 1
    assert not spikes[:, x <= 0.3].any()


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("HomogeneousPoissonEncoder", HomogeneousPoissonEncoder),
        ("HomogeneousPoissonApproxEncoder", HomogeneousPoissonApproxEncoder),
        ("PoissonIntervalEncoder", PoissonIntervalEncoder),
    ],
)
def test_intervals_have_the_distribution_of_the_originals(name, ours):
    # its last step is left out: PoissonIntervalEncoder spikes there whatever the rate
    theirs = original(name, STEPS, 1.0, 100.0)(0.6)[:-1]
    mine = train(ours(STEPS, 1.0, 100.0), 0.6, 1000)[:-1]
    a, b = intervals(theirs), intervals(mine)
    assert len(a) > 20_000
    # about 23,000 intervals each: the mean to 5 standard deviations, the distribution to the 0.1 % bound
    assert abs(a.mean() - b.mean()) < 5 * np.sqrt(2 * b.var() / len(a))
    assert stats.ks_2samp(a, b).statistic < 1.95 * np.sqrt(2 / len(a))


def test_the_original_ignores_the_refractory_period_and_ends_intervals_with_a_spike_where_ours_does_not():
    assert intervals(original("HomogeneousPoissonEncoder", STEPS, 1.0, 100.0, refrac=4.0)(1.0)).min() == 1
    assert original("PoissonIntervalEncoder", STEPS, 1.0, 100.0)(1.0)[-1].all()
    # one interval in ten steps: so many trains have a spike there
    assert train(PoissonIntervalEncoder(STEPS, 1.0, 100.0))[-1].mean() < 0.15


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HomogeneousPoissonEncoder(0, 1.0, 10.0), "steps must be a whole number, 1 or more"),
        (lambda: RegularEncoder(10, 0.0, 10.0), "step_time must be positive"),
        (lambda: PoissonIntervalEncoder(10, 1.0, -1.0), "frequency must be 0 Hz or more"),
        (lambda: HomogeneousPoissonEncoder(10, 1.0, 10.0, refrac=-1.0), "refrac must be 0 ms or more"),
        (lambda: HomogeneousPoissonEncoder(10, 1.0, 250.0, refrac=4.0), "less than 250 Hz"),
        (lambda: LatencyEncoder(10, 1.0, thresh=1.0), "thresh must be between 0 and 1"),
        (lambda: LatencyEncoder(10, 1.0, tc_membrane=0.0), "tc_membrane must be positive"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_uncompensated_encoder_may_be_asked_for_any_frequency():
    encoder = HomogeneousPoissonEncoder(STEPS, 1.0, 1e6, refrac=4.0, compensate=False)
    found = intervals(train(encoder, neurons=50))
    # an exponential part of a thousandth of a step
    assert found.min() == 4
    assert found.mean() < 4.01


@every_encoder
def test_no_gradient_reaches_the_intensities(encoder):
    grad = jax.grad(lambda x: encoder(KEY, x).sum())(jnp.full((1, 3), 0.5))
    np.testing.assert_array_equal(grad, np.zeros((1, 3)))


def test_encoders_are_values():
    assert HomogeneousPoissonEncoder(STEPS, 1.0, 100.0) == ENCODERS[0]
    assert len({*ENCODERS, HomogeneousPoissonEncoder(STEPS, 1.0, 100.0)}) == len(ENCODERS)
