"""Which table converts which model: ``table(name)``, data only."""

from importlib import import_module

from interop.engine import Table
from jaxkit.errors import ConfigError
from jaxkit.models import MODELS
from jaxkit.spelling import nearest


def table(name: str) -> Table:
    """Looks up the conversion table of the model called ``name``: rows of torch module, flax module, layer kind.

    Raises ConfigError if there is no such model.
    """
    if name not in MODELS:
        raise ConfigError(f"no model is named {name!r}{nearest(name, MODELS)}")
    return import_module(f"interop.tables.{MODELS[name]}").TABLES[name]
