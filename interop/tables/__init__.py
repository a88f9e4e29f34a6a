"""Which table converts which model: ``table(name)``, data only."""

from importlib import import_module

from interop.engine import Table
from jaxkit.models import MODELS


def table(name: str) -> Table:
    """Looks up the conversion table of the model called ``name``: rows of torch module, flax module, layer kind."""
    return import_module(f"interop.tables.{MODELS[name]}").TABLES[name]
