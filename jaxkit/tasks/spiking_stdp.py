"""Unsupervised learning by spike timing (Diehl and Cook, 2015): neurons compete for images, labels name them after."""

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
from jaxkit.spiking.synapses import DeltaCurrent
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
    rule = STDP(
        lr_post=config.stdp.lr_post,
        lr_pre=config.stdp.lr_pre,
        tc_post=config.stdp.tc_post,
        tc_pre=config.stdp.tc_pre,
        axis_name=context.axis_name,
    )
    updater = Updater(weight=partial(bound_multiplicative, max=config.stdp.max_weight, min=0.0))
    normalize = Normalization(order=1, scale=config.stdp.total_weight, dim=1)

    def init(key, batch):
        images = batch["image"]
        layer = network(config, images[0].size, context.axis_name)
        params = layer.init(key, layer.initialize_carry(1), jnp.zeros((1, images[0].size)))["params"]
        learnt = {LEARNS: normalize(params.pop(LEARNS))}
        state = {"threshold": layer.initialize_carry(1).neurons["feedfwd"].adaptation}
        return Variables(learnt, state | {"rates": readout.initialize_carry()}, frozen=params)

    def respond(variables, spikes, learn: bool):
        """Shows encoded images: the spikes that come back, weights and thresholds after them."""
        layer = network(config, spikes.shape[2], context.axis_name)
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

    def update(variables, batch, key):
        spikes, params, threshold = respond(variables, encode(key, batch["image"]), learn=True)
        fired = over_devices(spikes.mean(0), context.axis_name)
        label = over_devices(batch["label"], context.axis_name)
        rates = variables.state["rates"]
        correct = (readout.classify(rates, fired) == label).mean()
        state = {"threshold": threshold, "rates": readout.update(rates, fired, label)}
        direction = jax.tree.map(jnp.subtract, variables.params, {LEARNS: params})
        return (1 - correct, (state, {"top1": correct, "rate": spikes.mean()})), direction

    def evaluate(variables, batch, key):
        fired = respond(variables, encode(key, batch["image"]), learn=False)[0].mean(0)
        predicted = readout.classify(variables.state["rates"], fired)
        return {"top1": (predicted == batch["label"]).astype(jnp.float32), "rate": fired.mean(1)}

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
        drawn = {"raster": draw_raster(shown["spikes"], config.step_time)}
        if shown["fields"] is not None:
            drawn["receptive_fields"] = draw_receptive_fields(shown["fields"], shown["classes"])
        return drawn

    def loss(variables, batch, key):
        """The error of the names that neurons have so far; nothing descends it."""
        return update(variables, batch, key)[0]

    return Task(init, loss, evaluate, pictures=Pictures(trace, draw), update=update)


def network(config: SpikingStdp, inputs: int, axis_name: str | None) -> RecurrentSerial:
    """Excitatory neurons, each with an inhibitory one that holds back all others a step later."""
    dt, size = config.step_time, config.excitatory.neurons
    synapse = DeltaCurrent(spike_charge=dt)
    constant = nn.initializers.constant
    inhibitory = config.inhibitory.model_dump(exclude={"drive", "strength"})
    return RecurrentSerial(
        LinearDense(inputs, size, dt, synapse=DeltaCurrent(spike_charge=dt * config.excitatory.drive), plastic=True),
        LinearDirect(size, dt, synapse=synapse, weight_init=constant(config.inhibitory.drive)),
        LinearLateral(size, dt, synapse=synapse, weight_init=constant(-config.inhibitory.strength)),
        ALIF(size, dt, **config.excitatory.model_dump(exclude={"neurons", "drive"}), axis_name=axis_name),
        LIF(size, dt, **inhibitory),
    )


def over_devices(x: Float[Array, "b ..."] | Array, axis_name: str | None) -> Array:
    """The batch of all devices."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)
