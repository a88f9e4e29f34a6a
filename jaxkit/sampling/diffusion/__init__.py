"""Latent diffusion: noise schedules, solvers of the reverse process, and guidance by text."""
