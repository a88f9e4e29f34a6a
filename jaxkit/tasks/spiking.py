"""Classification by a spiking network: surrogate gradients teach its weights and delays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxkit.losses.classification import cross_entropy
from jaxkit.schema.spiking import Delay, Network, Spiking
from jaxkit.spiking.network import SpikingNetwork
from jaxkit.spiking.pictures import draw_delays, draw_membranes, draw_raster, draw_receptive_fields
from jaxkit.spiking.surrogate import surrogate_named
from jaxkit.tasks.classifier import in_top
from jaxkit.tasks.encoding import encoder
from jaxkit.tasks.task import Context, Pictures, Task, Variables

# What pictures show: neurons in time, and receptive fields.
TRACED, FIELDS = 6, 36
READOUT = "readout"


def make(config: Spiking, context: Context) -> Task:
    """Makes the task that minimises the cross-entropy of a network's readout over encoded images.

    Batches hold ``image [b h w c]`` in [0, 1] and ``label [b]``. Evaluation takes delays at whole steps where training
    reads a window around them (Hammouamri et al., 2023): ``top1``, ``top5``, ``loss``, and ``rate``, the spikes of
    a hidden neuron in a step. State: the width of that window, and batch statistics.
    """
    encode = encoder(config.encoding, config.network.step_time)
    delay = config.network.delay
    trained = network(config, context, delay)
    rounds = delay is not None and delay.window is not None and not delay.straight_through
    tested = trained.clone(interpolation="nearest") if rounds else trained

    def init(key, batch):
        collections = dict(jax.jit(trained.init)(key, encode(key, batch["image"])))
        width = 1.0 if delay is None or delay.window is None else delay.window.start
        return Variables(collections.pop("params"), {"window": jnp.float32(width), "collections": collections}, {})

    def loss(variables, batch, key):
        key_encode, key_dropout = jax.random.split(key)
        params = variables.params if delay is None or delay.learned else without_delay_gradient(variables.params)
        window, collections = variables.state["window"], variables.state["collections"]
        (logits, features), collections = trained.apply(
            {"params": params, **collections},
            encode(key_encode, batch["image"]),
            window=window,
            train=True,
            mutable=list(collections),
            rngs={"dropout": key_dropout},
        )
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), config.label_smoothing)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        metrics = {"top1": (logits.argmax(-1) == batch["label"]).mean(), "rate": rates(features).mean()}
        return value, ({"window": narrowed(window, delay), "collections": collections}, metrics)

    def respond(variables, spikes):
        return tested.apply({"params": variables.params, **variables.state["collections"]}, spikes)

    def evaluate(variables, batch, key):
        logits, features = respond(variables, encode(key, batch["image"]))
        return {
            "top1": in_top(logits, batch["label"], 1),
            "top5": in_top(logits, batch["label"], 5),
            "loss": cross_entropy(logits, batch["label"]),
            "rate": rates(features),
        }

    return Task(init, loss, evaluate, pictures=pictures(config.network, encode, respond), project=trained.project)


def pictures(config: Network, encode: Callable, respond: Callable) -> Pictures:
    """What an image makes neurons and membranes do, and what weights and delays have become."""

    def trace(variables, batch, key):
        images = batch["image"][:1]
        sent = encode(key, images)
        _, features = respond(variables, sent)
        shown = {
            "spikes": {"input": sent[:, 0], **{name: layer.spikes[:, 0] for name, layer in features.items()}},
            "voltage": features["layer1"].voltage[:, 0, :TRACED],
        }
        if config.delay is not None:
            shown["delays"] = {
                name: part["connection"]["delay"] for name, part in variables.params.items() if name != READOUT
            }
        if images[0].size == sent.shape[2]:
            weight = variables.params["layer1"]["connection"]["weight"][:FIELDS]
            shown["fields"] = weight.reshape(-1, *images.shape[1:]).mean(-1)
        return shown

    def draw(shown):
        step_time = config.step_time
        spikes = shown["spikes"]["layer1"][:, :TRACED]
        drawn = {
            "raster": draw_raster(shown["spikes"], step_time),
            "membranes": draw_membranes(shown["voltage"], 1.0, spikes, step_time, unit="thresholds"),
        }
        for name, delays in shown.get("delays", {}).items():
            drawn[f"delays_{name}"] = draw_delays(delays, config.delay.longest, step_time)
        if "fields" in shown:
            drawn["receptive_fields"] = draw_receptive_fields(shown["fields"])
        return drawn

    return Pictures(trace, draw)


def network(config: Spiking, context: Context, delay: Delay | None) -> SpikingNetwork:
    """The network of a config."""
    given = config.network
    soft = delay.interpolation if delay else "previous"
    straight = delay is not None and delay.straight_through
    return SpikingNetwork(
        num_classes=context.num_classes,
        hidden=given.hidden,
        step_time=given.step_time,
        time_constant=given.time_constant,
        refractory=given.refractory,
        readout_time_constant=given.readout_time_constant,
        longest_delay=delay.longest if delay else None,
        delay_per=delay.per if delay else "synapse",
        interpolation="previous" if straight else soft,
        relaxed=soft if straight else None,
        execution=given.execution,
        gain=given.gain,
        dropout_rate=given.dropout_rate,
        surrogate=surrogate_named(given.surrogate)(),
        norm=context.norm if given.batch_norm else None,
        dtype=context.dtype,
    )


def narrowed(width, delay: Delay | None):
    """The width of the window after another step."""
    if delay is None or delay.window is None:
        return width
    window = delay.window
    factor = (window.end / window.start) ** (1 / window.steps)
    stop = jnp.minimum if factor > 1 else jnp.maximum
    return stop(width * factor, window.end)


def rates(features):
    """Spikes of a hidden neuron in a step, the mean over each sample ``[b]``."""
    return jnp.mean(jnp.stack([layer.spikes.astype(jnp.float32).mean((0, 2)) for layer in features.values()]), 0)


def without_delay_gradient(params):
    """The same parameters, with delays that no gradient reaches."""
    stopped = {name: jax.lax.stop_gradient(part) if name == "delay" else part for name, part in params.items()}
    return {name: without_delay_gradient(part) if isinstance(part, dict) else part for name, part in stopped.items()}
