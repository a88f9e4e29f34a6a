"""What things cost, side by side with torch: ``python scripts/benchmark.py --suite NAME``."""

SUITES = {
    "conversion": "memory and time of convert.py on a sharded bfloat16 checkpoint of 2.1 GB; Linux only, needs 9 GB",
    "diffusion": "an update of textual inversion by either backend against diffusers in torch, time and memory",
    "maskgit": "a masked transformer's forward pass, training step and sampling against diffusers'",
    "spiking": "spiking connections and plasticity against inferno-ai, on the same machine in the same run",
}
