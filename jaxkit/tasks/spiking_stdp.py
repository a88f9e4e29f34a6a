"""Unsupervised learning by spike timing (Diehl and Cook, 2015): neurons compete for images, labels name them after."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkit.schema.spiking_stdp import SpikingStdp
from jaxkit.spiking.connections import LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.layers import RecurrentSerial
from jaxkit.spiking.neurons import ALIF, LIF
from jaxkit.spiking.pictures import draw_raster, draw_receptive_fields
from jaxkit.spiking.plasticity import STDP, Normalization, Updater
from jaxkit.spiking.plasticity.bounds import bound_multiplicative
from jaxkit.spiking.readouts import MaxRateClassifier
from jaxkit.spiking.synapses import DeltaCurrent, DeltaPlusCurrent
from jaxkit.tasks.encoding import encoder
from jaxkit.tasks.task import Context, Pictures, Task, Variables

LEARNS = "feedfwd_connection"
# Receptive fields that a picture shows.
FIELDS = 100


def make(config: SpikingStdp, context: Context) -> Task:
    """Makes the task that lets excitatory neurons find clusters of encoded images.

    Pixels drive excitatory neurons through weights that learn at every step of time; each drives an inhibitory neuron
    of its own, which holds back all others. Labels change no weight: they only count which neurons fire for which
    class, and evaluation names an image by them. Batches hold ``image [b h w c]`` in [0, 1] and ``label [b]``; a batch
    is shown at once, and its images' changes are averaged. Evaluation: ``top1``, and ``rate``, a neuron's spikes in a
    step. The learning rate of the optimizer, ``sgd``, is a factor on the changes: 1 for what the rule says.
    """
    encode = encoder(config.encoding, config.step_time)
    readout = MaxRateClassifier((config.excitatory.neurons,), context.num_classes, config.decay)
    normalize = Normalization(order=1, scale=config.stdp.total_weight, dim=1)
    respond = responder(config, context, normalize)

    def init(key, batch):
        inputs = jax.eval_shape(encode, key, batch["image"]).shape[2]
        layer = network(config, context, inputs)
        # no step is taken: it would average over devices, of which init knows nothing
        params = layer.init(key, method="parameters")["params"]
        learnt = {LEARNS: normalize(params.pop(LEARNS))}
        state = {"threshold": layer.initialize_carry(1).neurons["feedfwd"].adaptation}
        return Variables(learnt, state | {"rates": readout.initialize_carry()}, frozen=params)

    def update(variables, batch, key):
        spikes, params, threshold = respond(variables, encode(key, batch["image"]), learn=True)
        fired = over_devices(firing_rates(spikes), context.mapped_axis)
        label = over_devices(batch["label"], context.mapped_axis)
        rates = variables.state["rates"]
        correct = (readout.classify(rates, fired) == label).mean()
        state = {"threshold": threshold, "rates": readout.update(rates, fired, label)}
        direction = jax.tree.map(jnp.subtract, variables.params, {LEARNS: params})
        return (1 - correct, (state, {"top1": correct, "rate": fired.mean()})), direction

    def evaluate(variables, batch, key):
        fired = firing_rates(respond(variables, encode(key, batch["image"]), learn=False)[0])
        predicted = readout.classify(variables.state["rates"], fired)
        return {"top1": (predicted == batch["label"]).astype(jnp.float32), "rate": fired.mean(1)}

    def loss(variables, batch, key):
        """The error of the names that neurons have so far; nothing descends it."""
        return update(variables, batch, key)[0]

    return Task(init, loss, evaluate, pictures=pictures(config.step_time, encode, respond, readout), update=update)


def responder(config: SpikingStdp, context: Context, normalize: Normalization) -> Callable:
    """Makes what shows encoded images to the network, from weights and thresholds of the task's variables.

    ``variables, spikes [t b i], learn -> spikes [t b n]``, and weights and thresholds as they are after them.
    """
    given = config.stdp
    rates = {"lr_post": given.lr_post, "lr_pre": given.lr_pre, "tc_post": given.tc_post, "tc_pre": given.tc_pre}
    rule = STDP(**rates, axis_name=context.mapped_axis)
    updater = Updater(weight=partial(bound_multiplicative, max=given.max_weight, min=0.0))

    def respond(variables, spikes, learn: bool):
        layer = network(config, context, spikes.shape[2])
        connection, batch = layer.feedfwd_connection, spikes.shape[1]
        carry = layer.initialize_carry(batch)
        excitatory = carry.neurons["feedfwd"]._replace(adaptation=variables.state["threshold"])
        carry = carry._replace(neurons=carry.neurons | {"feedfwd": excitatory})
        plans = layer.plan({**variables.params, **variables.frozen})

        def step(carry, sent):
            params, carry, traces = carry
            plan = connection.plan(params)
            moved = layer.step(plans | {LEARNS: plan}, carry, sent, adapt=learn)
            spikes = moved.spikes["feedfwd"]
            if learn:
                traces, updates = rule(traces, connection, plan, moved.carry.connections[LEARNS], spikes)
                params = updater(params, updates)
            return (params, moved.carry, traces), spikes

        start = (normalize(variables.params[LEARNS]) if learn else variables.params[LEARNS], carry)
        end, spikes = jax.lax.scan(step, (*start, rule.initialize_carry(connection, batch)), spikes)
        return spikes, end[0], end[1].neurons["feedfwd"].adaptation

    return respond


def pictures(step_time: float, encode: Callable, respond: Callable, readout: MaxRateClassifier) -> Pictures:
    """What fires for an image, and what neurons have learnt, named by their classes."""

    def trace(variables, batch, key):
        images = batch["image"][:1]
        sent = encode(key, images)
        spikes = respond(variables, sent, learn=False)[0]
        weight = variables.params[LEARNS]["weight"][:FIELDS]
        return {
            "spikes": {"input": sent[:, 0], "excitatory": spikes[:, 0]},
            "fields": weight.reshape(-1, *images.shape[1:]).mean(-1) if images[0].size == sent.shape[2] else None,
            "classes": readout.assignments(variables.state["rates"])[:FIELDS],
        }

    def draw(shown):
        drawn = {"raster": draw_raster(shown["spikes"], step_time)}
        if shown["fields"] is not None:
            drawn["receptive_fields"] = draw_receptive_fields(shown["fields"], shown["classes"])
        return drawn

    return Pictures(trace, draw)


def network(config: SpikingStdp, context: Context, inputs: int) -> RecurrentSerial:
    """Excitatory neurons, each with an inhibitory one that holds back all others a step later."""
    dt, size = config.step_time, config.excitatory.neurons
    # of what drives the network some encodings are graded
    graded = DeltaPlusCurrent(spike_charge=dt * config.excitatory.drive)
    shared = {"synapse": DeltaCurrent(spike_charge=dt), "dtype": context.dtype}
    constant = nn.initializers.constant
    inhibitory = config.inhibitory.model_dump(exclude={"drive", "strength"})
    return RecurrentSerial(
        LinearDense(inputs, size, dt, synapse=graded, plastic=True, dtype=context.dtype),
        LinearDirect(size, dt, weight_init=constant(config.inhibitory.drive), **shared),
        LinearLateral(size, dt, weight_init=constant(-config.inhibitory.strength), **shared),
        ALIF(size, dt, **config.excitatory.model_dump(exclude={"neurons", "drive"}), axis_name=context.mapped_axis),
        LIF(size, dt, **inhibitory),
    )


def firing_rates(spikes: Float[Array, "t b n"]) -> Float[Array, "b n"]:
    """Spikes in a step, in float32 whatever the spikes are in."""
    return spikes.mean(0, dtype=jnp.float32)


def over_devices(x: Float[Array, "b ..."] | Array, axis_name: str | None) -> Array:
    """The batch of all devices."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)
