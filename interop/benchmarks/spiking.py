"""What spiking connections cost, in each execution, and beside inferno-ai."""

import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from interop.benchmarks import quickstart
from interop.benchmarks.growth import draw_growth
from interop.benchmarks.timing import milliseconds, torch_milliseconds
from jaxkit.errors import ConfigError
from jaxkit.spiking.connections import LinearDense
from jaxkit.spiking.encoders import HomogeneousPoissonEncoder
from jaxkit.spiking.synapses import DeltaCurrent

FREQUENCY = 128.0
"""Of the quickstart's encoder, Hz."""
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


def plasticity(batch: int = 20, neurons: int = 100, time_steps: int = 250) -> Figures:
    """The quickstart of inferno: a batch of images is encoded, shown and learned from."""
    pixels = quickstart.images(batch)
    encoder = HomogeneousPoissonEncoder(time_steps, 1.0, FREQUENCY)
    key = jax.random.key(0)
    encode = jax.jit(encoder).lower(key, pixels).compile()
    neural, *_ = quickstart.inferno()
    their_encoder = neural.HomogeneousPoissonEncoder(time_steps, 1.0, frequency=FREQUENCY)
    theirs = torch_milliseconds(partial(their_encoder, torch.tensor(pixels))) / time_steps
    ours = milliseconds(encode, key, pixels) / time_steps
    yield "encoding, inferno", theirs, "ms a step"
    yield "encoding, ours", ours, "ms a step"

    weight = 0.3 * np.random.default_rng(0).random((neurons, pixels.shape[1]), np.float32)
    spikes = np.asarray(encode(key, pixels))
    mine = milliseconds(quickstart.in_jaxkit(weight, spikes)) / time_steps
    yield "learning, ours", mine, "ms a step"
    learn = torch_milliseconds(quickstart.in_inferno(weight, spikes)) / time_steps
    yield "learning, inferno", learn, "ms a step"
    yield "learning, inferno / ours", learn / mine, "times"
    yield "both, inferno / ours", (learn + theirs) / (mine + ours), "times"


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


def inferno_dense(batch: int, inputs: int, outputs: int, steps: int, time_steps: int = 5) -> float:
    """Milliseconds that inferno takes for a forward step of a delayed dense connection."""
    neural, *_ = quickstart.inferno()
    synapse = neural.DeltaCurrent.partialconstructor(1.0)
    connection = neural.LinearDense(inputs, outputs, 1.0, synapse=synapse, delay=float(steps), batch_size=batch)
    connection.delay = torch.rand(outputs, inputs) * steps
    frames = [(torch.rand(batch, inputs) < 0.1).float() for _ in range(time_steps)]
    with torch.no_grad():
        return torch_milliseconds(lambda: [connection(frame) for frame in frames]) / time_steps
