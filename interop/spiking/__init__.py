"""Spiking networks in and out: inferno's, in the middle of a run, both ways; and NIR's, as far as it goes."""

from importlib import import_module
from typing import Any

# Where each is defined; imported when it is asked for, as each needs other packages.
_DEFINED = {
    "Running": "live_state",
    "from_inferno": "live_state",
    "to_inferno": "live_state",
    "resized": "live_state",
    "to_inferno_module": "modules",
    "describe": "description",
    "rebuild": "description",
    "save": "files",
    "load": "files",
    "to_nir": "nir_export",
    "from_nir": "nir_import",
    "read_nir": "nir_graph",
    "write_nir": "nir_graph",
    "compare_nir": "nir_trace",
    "run_graph": "nir_trace",
}
__all__ = [
    "Running", "compare_nir", "describe", "from_inferno", "from_nir", "load", "read_nir", "rebuild", "resized",
    "run_graph", "save", "to_inferno", "to_inferno_module", "to_nir", "write_nir",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _DEFINED:
        raise AttributeError(f"module 'interop.spiking' has no attribute {name!r}")
    return getattr(import_module(f"interop.spiking.{_DEFINED[name]}"), name)
