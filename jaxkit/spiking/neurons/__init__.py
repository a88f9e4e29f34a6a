"""Neurons: functions of a carry and a current, frozen and hashable, named as in inferno."""

from jaxkit.spiking.neurons.linear import ALIF, GLIF1, GLIF2, LIF
from jaxkit.spiking.neurons.neuron import Neuron, NeuronCarry
from jaxkit.spiking.neurons.nonlinear import EIF, QIF, AdEx, Izhikevich

NEURONS: dict[str, type[Neuron]] = {
    neuron.__name__: neuron for neuron in (LIF, ALIF, GLIF1, GLIF2, QIF, Izhikevich, EIF, AdEx)
}

__all__ = ["ALIF", "EIF", "GLIF1", "GLIF2", "LIF", "NEURONS", "QIF", "AdEx", "Izhikevich", "Neuron", "NeuronCarry"]
