"""What spiking connections cost, in each execution, and beside inferno-ai."""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from interop.benchmarks.growth import draw_growth
from jaxkit.errors import ConfigError
from jaxkit.spiking.connections import LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.neurons import ALIF, LIF
from jaxkit.spiking.plasticity import STDP, Normalization, Updater
from jaxkit.spiking.plasticity.bounds import bound_multiplicative
from jaxkit.spiking.synapses import DeltaCurrent

EXECUTIONS = ("gather", "grouped", "future", "convolution")


def measure(out: Path | None, only: str | None = None) -> Iterator[str]:
    """Measures each benchmark of the suite, or the one named ``only``; says a line of each figure.

    ``out`` gets ``spiking.json``, and of the benchmark ``growth`` a picture.

    Raises:
        ConfigError: for an unknown benchmark, or without inferno-ai.
    """
    if only is not None and only not in BENCHMARKS:
        raise ConfigError(f"--only {only}: the benchmarks of this suite are {', '.join(BENCHMARKS)}")
    figures = {}
    yield f"{torch.get_num_threads()} torch threads, jax on {jax.devices()[0].device_kind}"
    for name, benchmark in BENCHMARKS.items():
        if only in (None, name):
            figures[name] = {}
            for key, figure, unit in benchmark():
                figures[name][key] = figure
                yield f"{name}: {key}: {figure:.4g} {unit}"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "spiking.json").write_text(json.dumps(figures, indent=1))
        if "growth" in figures:
            draw_growth(figures["growth"], out / "spiking_growth.png")


Figures = Iterator[tuple[str, float, str]]


def delayed(batch: int = 32, inputs: int = 256, outputs: int = 256, steps: int = 25, time_steps: int = 100) -> Figures:
    """A dense connection with a delay of its own at every synapse: forward, and backward through time."""
    theirs = inferno_dense(batch, inputs, outputs, steps)
    yield "inferno forward", theirs, "ms a step"
    gathered = None
    for execution in EXECUTIONS:
        forward, backward = compiled(batch, inputs, outputs, steps, time_steps, execution)
        ms = milliseconds(*forward) / time_steps
        yield f"{execution} forward", ms, "ms a step"
        yield f"{execution} forward, inferno / ours", theirs / ms, "times"
        program, *_ = backward
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        yield f"{execution} forward and backward", milliseconds(*backward, repeats=2) / time_steps, "ms a step"
        yield f"{execution} memory of the gradient", memory, "MiB"
        gathered = gathered or memory
        yield f"memory, gather / {execution}", gathered / memory, "times"


def undelayed(batch: int = 32, size: int = 256, time_steps: int = 500) -> Figures:
    """A dense connection without delays, beside nothing but its matrix products in a scan."""
    (program, *arguments), _ = compiled(batch, size, size, None, time_steps, "auto")
    weight, x = arguments[0]["weight"], arguments[1]
    bare = jax.jit(lambda weight, x: lax.scan(lambda c, x: (c, x @ weight.T), None, x)[1])
    # in turns, so that what else the machine does strikes both
    pairs = [(milliseconds(program, *arguments), milliseconds(bare, weight, x)) for _ in range(5)]
    ours, products = (statistics.median(side) for side in zip(*pairs, strict=True))
    yield "connection", ours / time_steps, "ms a step"
    yield "matrix products alone", products / time_steps, "ms a step"
    yield "connection / products", statistics.median(a / b for a, b in pairs), "times"


def plasticity(batch: int = 20, size: int = 784, neurons: int = 100, time_steps: int = 250) -> Figures:
    """The quickstart of inferno: pixels, neurons that hold each other back, bounded STDP, weights normalised."""
    spikes = (np.random.default_rng(0).random((time_steps, batch, size)) < 0.02).astype(np.float32)
    theirs = inferno_stdp(spikes[:20], neurons)
    yield "inferno", theirs, "ms a step"
    program, *arguments = quickstart(jnp.asarray(spikes), neurons)
    ours = milliseconds(program, *arguments) / time_steps
    yield "ours", ours, "ms a step"
    yield "inferno / ours", theirs / ours, "times"


def growth() -> Figures:
    """How a step grows with the delay, with neurons, and with the batch."""
    base = {"batch": 16, "inputs": 128, "outputs": 128, "steps": 10}
    sweeps = {"steps": (1, 5, 10, 25, 50, 100), "neurons": (32, 64, 128, 256, 512), "batch": (1, 4, 16, 64)}
    for swept, values in sweeps.items():
        for value in values:
            sizes = base | ({"inputs": value, "outputs": value} if swept == "neurons" else {swept: value})
            for execution in EXECUTIONS:
                forward, _ = compiled(**sizes, time_steps=50, execution=execution, backward=False)
                yield f"{swept} {value} {execution}", milliseconds(*forward) / 50, "ms a step"
            yield f"{swept} {value} inferno", inferno_dense(**sizes), "ms a step"


BENCHMARKS = {"delayed": delayed, "undelayed": undelayed, "plasticity": plasticity, "growth": growth}


def compiled(
    batch: int,
    inputs: int,
    outputs: int,
    steps: int | None,
    time_steps: int,
    execution: str,
    backward: bool = True,
):
    """Compiles a connection over a sequence, and its gradient: ``(program, *arguments)`` of both.

    Delays are read linearly between steps, so that they have a gradient; ``steps`` is the longest.
    """
    mode = "linear" if steps else "previous"
    connection = LinearDense(
        inputs,
        outputs,
        1.0,
        synapse=DeltaCurrent(spike_charge=1.0, interp_mode=mode),
        delay=steps and float(steps),
        execution=execution,
    )
    rng = np.random.default_rng(0)
    params = {"weight": jnp.asarray(rng.random((outputs, inputs), np.float32))}
    if steps:
        params["delay"] = jnp.asarray(rng.random((outputs, inputs), np.float32) * steps)
    x = jnp.asarray((rng.random((time_steps, batch, inputs)) < 0.1).astype(np.float32))

    def outputs_of(params, x):
        return connection.apply({"params": params}, connection.initialize_carry(batch), x, method="sequence")[1]

    def loss(params, x):
        return jnp.square(outputs_of(params, x)).mean()

    forward = jax.jit(outputs_of).lower(params, x).compile()
    if not backward:
        return (forward, params, x), None
    return (forward, params, x), (jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile(), params, x)


def quickstart(spikes: jax.Array, neurons: int):
    """Compiles the STDP network over a sequence of spikes."""
    _, batch, inputs = spikes.shape
    learns = LinearDense(inputs, neurons, 1.0, synapse=DeltaCurrent(spike_charge=100.0), plastic=True)
    inhibit = LinearLateral(neurons, 1.0, synapse=DeltaCurrent(spike_charge=100.0))
    trigger = LinearDirect(neurons, 1.0, synapse=DeltaCurrent(spike_charge=75.0))
    excitatory, inhibitory = ALIF(neurons, 1.0, **EXCITATORY), LIF(neurons, 1.0, **INHIBITORY)
    parts = (learns, trigger, inhibit, excitatory, inhibitory)
    rule, normalize = STDP(**RATES), Normalization(order=1, scale=78.4, dim=1)
    updater = Updater(weight=partial(bound_multiplicative, max=1.0, min=0.0))
    plans = [part.plan({"weight": jnp.full(part.weight_shape, w)}) for part, w in ((trigger, 22.5), (inhibit, -180.0))]

    def run(params, carries, traces, spikes):
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
            params = normalize(updater(params, updates))
            return (params, (sent, triggered, inhibited, exc, inh), traces), fired

        return lax.scan(step, (params, carries, traces), spikes)

    params = {"weight": jax.random.uniform(jax.random.key(0), (neurons, inputs), maxval=0.3)}
    state = (params, tuple(part.initialize_carry(batch) for part in parts), rule.initialize_carry(learns, batch))
    return jax.jit(run).lower(*state, spikes).compile(), *state, spikes


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
RATES = {"lr_post": 5e-4, "lr_pre": -5e-6, "tc_post": 20.0, "tc_pre": 20.0}


def inferno_stdp(spikes: np.ndarray, neurons: int) -> float:
    """Milliseconds that inferno takes for a step of the same network, put together as in its quickstart."""
    neural, learn, functional = _inferno()
    shared = {"batch_size": spikes.shape[1]}
    delta = neural.DeltaCurrent.partialconstructor
    connection = neural.LinearDense(
        spikes.shape[2], neurons, 1.0, synapse=delta(100.0), weight_init=lambda x: 0.3 * x, **shared
    )
    lateral = neural.LinearLateral(
        neurons, 1.0, synapse=delta(100.0), weight_init=lambda x: torch.full_like(x, -180.0), **shared
    )
    direct = neural.LinearDirect(
        neurons, 1.0, synapse=delta(75.0), weight_init=lambda x: torch.full_like(x, 22.5), **shared
    )
    excitatory, inhibitory = (
        neural.ALIF(neurons, 1.0, **EXCITATORY, **shared),
        neural.LIF(neurons, 1.0, **INHIBITORY, **shared),
    )
    feedfwd, inhibit = neural.Serial(connection, excitatory), neural.Serial(lateral, excitatory)
    trigger = neural.Serial(direct, inhibitory)
    connection.updater = connection.defaultupdater()
    connection.updater.weight.upperbound(functional.bound_upper_multiplicative, 1.0)
    connection.updater.weight.lowerbound(functional.bound_lower_multiplicative, 0.0)
    trainer = learn.STDP(**RATES)
    trainer.register_cell("feedfwd", feedfwd.cell)
    normalize = neural.Normalization(connection, "weight", order=1, scale=78.4, dim=-1)
    frames = [torch.from_numpy(frame) for frame in spikes]

    def steps():
        for frame in frames:
            inhibit(trigger(feedfwd(frame)))
            trainer()
            connection.update()
            normalize()

    with torch.no_grad():
        return _fastest(steps, repeats=3) / len(frames)


def inferno_dense(batch: int, inputs: int, outputs: int, steps: int, time_steps: int = 5) -> float:
    """Milliseconds that inferno takes for a forward step of a delayed dense connection."""
    neural, _, _ = _inferno()
    synapse = neural.DeltaCurrent.partialconstructor(1.0)
    connection = neural.LinearDense(inputs, outputs, 1.0, synapse=synapse, delay=float(steps), batch_size=batch)
    connection.delay = torch.rand(outputs, inputs) * steps
    frames = [(torch.rand(batch, inputs) < 0.1).float() for _ in range(time_steps)]
    with torch.no_grad():
        return _fastest(lambda: [connection(frame) for frame in frames], repeats=3) / time_steps


def _inferno():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from inferno import functional, learn, neural
    except ModuleNotFoundError:
        raise ConfigError("this suite measures inferno-ai too; pip install inferno-ai==0.0.5") from None
    return neural, learn, functional


def milliseconds(program: Callable, *arguments, repeats: int = 5) -> float:
    """The fastest of some runs of a compiled program."""
    return _fastest(lambda: jax.block_until_ready(program(*arguments)), repeats)


def _fastest(run: Callable, repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)
