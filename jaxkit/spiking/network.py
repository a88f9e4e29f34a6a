"""A feed-forward spiking network, to be trained by surrogate gradients."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxkit.spiking.connections import Connection, LinearDense
from jaxkit.spiking.delays import Interpolation
from jaxkit.spiking.neurons import LIF, Neuron
from jaxkit.spiking.surrogate import Surrogate
from jaxkit.spiking.synapses import DeltaPlusCurrent


class Activity(NamedTuple):
    """What a layer did over time."""

    spikes: Float[Array, "t b n"]
    voltage: Float[Array, "t b n"]
    """Of membranes, in thresholds."""


class SpikingLayer(nn.Module):
    """A connection, batch normalisation of its currents over time and batch if there is any, and spiking neurons."""

    connection: Connection
    neuron: Neuron
    norm: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, spikes: Float[Array, "t b n"], window: float | Float[Array, ""], train: bool) -> Activity:
        batch = spikes.shape[1]
        _, currents = self.connection.sequence(self.connection.initialize_carry(batch), spikes, window=window)
        if self.norm is not None:
            # the batch first: it may be normalised in parts
            by_sample = rearrange(currents, "t b n -> b t n")
            currents = rearrange(self.norm(use_running_average=not train, name="norm")(by_sample), "b t n -> t b n")

        def step(carry, current):
            carry, spikes = self.neuron(carry, current)
            return carry, Activity(spikes, carry.voltage)

        return lax.scan(step, self.neuron.initialize_carry(batch), currents)[1]


class SpikingNetwork(nn.Module):
    """Layers of leaky integrate-and-fire neurons behind delays, and a readout whose membranes never spike.

    Membranes are in units of the threshold, and rest at 0: a current of 1 for one step raises them by 1.

    Args:
        num_classes: outputs.
        hidden: neurons of each layer.
        step_time: ms.
        time_constant: ms, of the membranes.
        refractory: ms.
        readout_time_constant: ms; None: the logits are sums over time, and know nothing of order.
        longest_delay: ms; None: no delays.
        delay_per, interpolation, relaxed, execution: of the connections between layers
            (:class:`jaxkit.spiking.connections.Connection`).
        gain: standard deviation of the weights times the square root of the inputs.
        dropout_rate: of hidden neurons, over all time.
        surrogate: derivative of spikes.
        norm: makes the batch normalisation of the currents of hidden layers; None: none.
        dtype: of currents.
    """

    num_classes: int
    hidden: tuple[int, ...]
    step_time: float
    time_constant: float
    refractory: float
    readout_time_constant: float | None
    longest_delay: float | None
    delay_per: str
    interpolation: Interpolation
    relaxed: Interpolation | None
    execution: str
    gain: float
    dropout_rate: float
    surrogate: Surrogate
    norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, spikes: Float[Array, "t b n"], *, window: float | Float[Array, ""] = 1.0, train: bool = False
    ) -> tuple[Float[Array, "b k"], dict[str, Activity]]:
        """Gives logits, and what each layer did: ``layer1``, ``layer2``, ...

        ``window``: steps, the width of the interpolations ``gaussian`` and ``triangle``.
        """
        features, x = {}, spikes.astype(self.dtype)
        for i, size in enumerate(self.hidden, 1):
            connection = self.connection(x.shape[2], size, self.longest_delay)
            activity = SpikingLayer(connection, self.neurons(size), self.norm, name=f"layer{i}")(x, window, train)
            features[f"layer{i}"] = activity
            x = nn.Dropout(self.dropout_rate, broadcast_dims=(0,), deterministic=not train)(activity.spikes)
        readout = self.connection(x.shape[2], self.num_classes, None).clone(parent=self, name="readout")
        _, currents = readout.sequence(readout.initialize_carry(x.shape[1]), x)
        return self.logits(currents.astype(jnp.float32)), features

    def neurons(self, size: int) -> LIF:
        """A layer's neurons."""
        kept = math.exp(-self.step_time / self.time_constant)
        return LIF(
            (size,),
            self.step_time,
            rest_v=0.0,
            reset_v=0.0,
            thresh_v=1.0,
            refrac_t=self.refractory,
            time_constant=self.time_constant,
            resistance=1 / (1 - kept),
            surrogate=self.surrogate,
        )

    def connection(self, inputs: int, outputs: int, longest_delay: float | None) -> LinearDense:
        """Synapses whose current is the spike itself, for a layer to make its own."""
        return LinearDense(
            inputs,
            outputs,
            self.step_time,
            synapse=DeltaPlusCurrent(
                spike_charge=self.step_time, interp_mode=self.interpolation if longest_delay else "previous"
            ),
            bias=True,
            delay=longest_delay,
            delay_per=self.delay_per,
            relaxed_delay=self.relaxed if longest_delay else None,
            out_of_range="project",
            execution=self.execution,
            weight_init=nn.initializers.normal(self.gain / math.sqrt(inputs)),
            bias_init=nn.initializers.zeros,
            delay_init=nn.initializers.uniform(longest_delay or 0.0),
            dtype=self.dtype,
            parent=None,
        )

    def logits(self, currents: Float[Array, "t b k"]) -> Float[Array, "b k"]:
        """The mean over time of the readout's membranes, or the sum of its currents."""
        if self.readout_time_constant is None:
            return currents.sum(0)
        kept = math.exp(-self.step_time / self.readout_time_constant)

        def leak(membrane, current):
            membrane = kept * membrane + (1 - kept) * current
            return membrane, membrane

        return lax.scan(leak, jnp.zeros_like(currents[0]), currents)[1].mean(0)

    @nn.nowrap
    def project(self, params):
        """Moves delays into their range."""
        if self.longest_delay is None:
            return params

        def within(layer):
            delay = jnp.clip(layer["connection"]["delay"], 0, self.longest_delay)
            return layer | {"connection": layer["connection"] | {"delay": delay}}

        return {name: within(part) if name.startswith("layer") else part for name, part in params.items()}
