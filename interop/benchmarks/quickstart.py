"""inferno's quickstart on both sides: digits as spikes, neurons that hold each other back, bounded STDP.

A batch of 20 images of 28 by 28 pixels is encoded, shown for 250 steps of 1 ms, and learned from at every step; then
the state is cleared and the weights are normalised. Source: inferno, docs/examples/code/quickstart.py, with
scikit-learn's digits in the place of MNIST.
"""

import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from sklearn.datasets import load_digits

from jaxkit.errors import ConfigError
from jaxkit.spiking.connections import LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.neurons import ALIF, LIF
from jaxkit.spiking.plasticity import STDP, Clamping, Normalization, Updater
from jaxkit.spiking.plasticity.bounds import HalfBounds, bound_upper_multiplicative
from jaxkit.spiking.synapses import DeltaCurrent

EXCITATORY = {
    "rest_v": -65.0,
    "reset_v": -60.0,
    "thresh_eq_v": -52.0,
    "refrac_t": 5.0,
    "tc_membrane": 100.0,
    "tc_adaptation": 1e7,
    "spike_increment": 0.05,
}
INHIBITORY = {
    "rest_v": -60.0,
    "reset_v": -45.0,
    "thresh_v": -40.0,
    "refrac_t": 2.0,
    "time_constant": 75.0,
}
RATES = {"lr_post": 5e-4, "lr_pre": -5e-6, "tc_post": 30.0, "tc_pre": 30.0}
NORM = {"order": 1, "scale": 78.4, "dim": -1}


def images(batch: int) -> np.ndarray:
    """Reads digits, enlarged to 20 by 20 pixels of 28 by 28 as in MNIST, in [0, 1]: ``[batch 784]``."""
    digits = load_digits().images[:batch].astype(np.float32) / 16
    enlarged = jax.image.resize(digits, (len(digits), 20, 20), "linear")
    return np.pad(enlarged, ((0, 0), (4, 4), (4, 4))).reshape(len(digits), 784)


def in_jaxkit(weight: np.ndarray, spikes: np.ndarray) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """Compiles what a batch of ``spikes [t b i]`` leads to: weights ``[o i]`` and firing rates ``[b o]``."""
    _, batch, inputs = spikes.shape
    neurons = len(weight)
    learns = LinearDense(inputs, neurons, 1.0, synapse=DeltaCurrent(spike_charge=100.0), plastic=True)
    trigger = LinearDirect(neurons, 1.0, synapse=DeltaCurrent(spike_charge=75.0))
    inhibit = LinearLateral(neurons, 1.0, synapse=DeltaCurrent(spike_charge=100.0))
    excitatory, inhibitory = ALIF(neurons, 1.0, **EXCITATORY), LIF(neurons, 1.0, **INHIBITORY)
    parts = (learns, trigger, inhibit, excitatory, inhibitory)
    rule, normalize, clamp = STDP(**RATES), Normalization(**NORM), Clamping(min=0.0)
    updater = Updater(weight=HalfBounds(upper=partial(bound_upper_multiplicative, limit=1.0)))
    plans = [part.plan({"weight": jnp.full(part.weight_shape, w)}) for part, w in ((trigger, 22.5), (inhibit, -180.0))]

    def learn(params, spikes):
        def step(state, x):
            params, (sent, triggered, inhibited, exc, inh), traces = state
            plan = learns.plan(params)
            sent, current = learns.step(plan, sent, x)
            exc, fired = excitatory(exc, current)
            triggered, current = trigger.step(plans[0], triggered, fired)
            inh, held = inhibitory(inh, current)
            inhibited, current = inhibit.step(plans[1], inhibited, held)
            exc, _ = excitatory(exc, current)
            traces, updates = rule(traces, learns, plan, sent, fired)
            return (clamp(updater(params, updates)), (sent, triggered, inhibited, exc, inh), traces), fired

        carries = tuple(part.initialize_carry(batch) for part in parts)
        state = (normalize(params), carries, rule.initialize_carry(learns, batch))
        (params, *_), fired = lax.scan(step, state, spikes)
        return normalize(params)["weight"], fired.mean(0)

    arguments = {"weight": jnp.asarray(weight)}, jnp.asarray(spikes)
    return partial(jax.jit(learn).lower(*arguments).compile(), *arguments)


def in_inferno(weight: np.ndarray, spikes: np.ndarray) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Puts the same together of inferno's parts."""
    neural, learn, functional = inferno()
    neurons, inputs = weight.shape
    shared = {"batch_size": spikes.shape[1]}
    delta = neural.DeltaCurrent.partialconstructor
    connection = neural.LinearDense(inputs, neurons, 1.0, synapse=delta(100.0), **shared)
    lateral = neural.LinearLateral(
        neurons, 1.0, synapse=delta(100.0), weight_init=lambda x: torch.full_like(x, -180.0), **shared
    )
    direct = neural.LinearDirect(
        neurons, 1.0, synapse=delta(75.0), weight_init=lambda x: torch.full_like(x, 22.5), **shared
    )
    excitatory = neural.ALIF(neurons, 1.0, **EXCITATORY, **shared)
    inhibitory = neural.LIF(neurons, 1.0, **INHIBITORY, **shared)
    feedfwd, inhibit = neural.Serial(connection, excitatory), neural.Serial(lateral, excitatory)
    trigger = neural.Serial(direct, inhibitory)
    updater = connection.updater = connection.defaultupdater()
    clamp = neural.Clamping(updater, "parent.weight", min=0.0)
    clamp.register()
    updater.weight.upperbound(functional.bound_upper_multiplicative, 1.0)
    trainer = learn.STDP(**RATES)
    trainer.register_cell("feedfwd", feedfwd.cell)
    normalize = neural.Normalization(connection, "weight", **NORM)
    frames = list(torch.tensor(spikes))

    @torch.no_grad()
    def steps():
        connection.weight = torch.tensor(weight)
        for part in (connection, lateral, direct, inhibitory, trainer):
            part.clear()
        excitatory.clear(keep_adaptations=False)
        normalize(force=True)
        fired = []
        for frame in frames:
            fired.append(feedfwd(frame))
            inhibit(trigger(fired[-1]))
            trainer()
            connection.update()
        normalize(force=True)
        return connection.weight, torch.stack(fired).float().mean(0)

    return steps


def inferno() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Imports what the benchmarks need of inferno-ai: ``neural, learn, functional``.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from inferno import functional, learn, neural
    except ModuleNotFoundError:
        raise ConfigError("this suite measures inferno-ai too; pip install inferno-ai==0.0.5") from None
    return neural, learn, functional
