"""The same connection twice, ours and inferno's, drawn at random."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.spiking import connections, synapses

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    inferno = pytest.importorskip("inferno")
    from inferno import neural

KINDS = ("LinearDense", "LinearDirect", "LinearLateral", "Conv2D")
SYNAPSES = ("DeltaCurrent", "DeltaPlusCurrent", "SingleExponentialCurrent", "DoubleExponentialCurrent")
CONSTANTS = {
    "DeltaCurrent": {},
    "DeltaPlusCurrent": {},
    "SingleExponentialCurrent": {"time_constant": 3.0},
    "DoubleExponentialCurrent": {"tc_decay": 5.0, "tc_rise": 2.0},
}


def draw_synapse(rng, step_time, name=None):
    """An inferno constructor and our synapse."""
    name = name or str(rng.choice(SYNAPSES))
    mode = "interp_mode" if name.startswith("Delta") else "spike_interp_mode"
    options = {
        **CONSTANTS[name],
        "spike_charge": 2.0,
        mode: str(rng.choice(["previous", "nearest"])),
        "interp_tol": float(rng.choice([0.0, 1e-6, 0.3 * step_time])),
        "current_overbound": [None, 0.0, 1.5][rng.integers(3)],
    }
    return getattr(neural, name).partialconstructor(**options), getattr(synapses, name)(**options)


def draw_shape(rng):
    return tuple(int(size) for size in rng.integers(1, 4, rng.integers(1, 3)))


def draw_connection(rng, kind=None, execution="auto", batch=1, delay="draw", synapse=None, step_time=None):
    """Inferno's connection, ours, and our parameters; delays in range, at its ends, out of it, on the grid and off."""
    kind = kind or str(rng.choice(KINDS))
    step_time = step_time or float(rng.choice([0.1, 0.25, 0.5, 1.0, 1.3]))
    if delay == "draw":
        delay = [None, 0.0, float(step_time * rng.integers(1, 5)), float(step_time * rng.uniform(0.5, 4.5))][
            rng.integers(4)
        ]
    their_synapse, our_synapse = draw_synapse(rng, step_time, synapse)
    bias = bool(rng.integers(2))
    if kind == "LinearDense":
        shapes, options = (draw_shape(rng), draw_shape(rng), step_time), {}
    elif kind == "Conv2D":
        height, width, channels, filters, kh, kw = (
            int(n) for n in rng.integers([4, 4, 1, 1, 1, 1], [7, 7, 3, 3, 4, 4])
        )
        shapes = (height, width, channels, filters, step_time, (kh, kw))
        options = {"stride": int(rng.integers(1, 3)), "padding": int(rng.integers(2))}
    else:
        shapes, options = (draw_shape(rng), step_time), {}
    theirs = getattr(neural, kind)(*shapes, synapse=their_synapse, bias=bias, delay=delay, batch_size=batch, **options)
    ours = getattr(connections, kind)(
        *shapes, synapse=our_synapse, bias=bias, delay=delay, execution=execution, **options
    )
    theirs.weight = torch.tensor(rng.normal(size=theirs.weight.shape), dtype=torch.float32)
    params = {"weight": theirs.weight.detach().numpy()}
    if bias:
        theirs.bias = torch.tensor(rng.normal(size=theirs.bias.shape), dtype=torch.float32)
        params["bias"] = theirs.bias.detach().numpy()
    if delay is not None:
        drawn = rng.uniform(-0.5, delay + 0.5, size=theirs.delay.shape)
        on_grid = rng.random(drawn.shape) < 0.5
        drawn = np.where(on_grid, np.round(drawn / step_time) * step_time, drawn)
        theirs.delay = torch.tensor(drawn, dtype=torch.float32)
        params["delay"] = theirs.delay.detach().numpy()
    return theirs, ours, {name: jnp.asarray(value) for name, value in params.items()}


def draw_inputs(rng, connection, steps, batch):
    """Spikes ``[t b ...]``, and for synapses that take them currents now and then."""
    shape = (steps, batch, *connection.inshape)
    inputs = [(rng.random(shape) < 0.4).astype(np.float32)]
    if connection.synapse.injectable and rng.integers(2):
        inputs.append((rng.normal(size=shape) * (rng.random(shape) < 0.3)).astype(np.float32))
    return inputs
