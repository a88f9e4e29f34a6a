"""Spiking networks: neurons, synapses, connections with delays, and how they learn."""
