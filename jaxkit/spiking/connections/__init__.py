"""Connections: weights, biases and delays between groups of neurons."""

from jaxkit.spiking.connections.base import Connection
from jaxkit.spiking.connections.convolution import Conv2D
from jaxkit.spiking.connections.linear import LinearDense, LinearDirect, LinearLateral
from jaxkit.spiking.connections.plan import Plan
from jaxkit.spiking.connections.receptive import Carry

__all__ = ["Carry", "Connection", "Conv2D", "LinearDense", "LinearDirect", "LinearLateral", "Plan"]
