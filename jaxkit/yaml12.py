"""YAML with the scalars of version 1.2: ``1e-3`` is a number, ``no`` is a word, ``010`` is ten."""

import re
from typing import Any

import yaml

from jaxkit.errors import ConfigError

# of each tag: what its scalars look like, the characters they start with, and their value
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "-+0123456789",
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
    ),
}


def read(text: str) -> Any:
    """Reads one YAML document.

    Raises:
        ConfigError: if it is none, repeats a key, or has a tag that YAML 1.2's core schema has not.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(str(error)) from None


def write(value: Any) -> str:
    """Writes a value as YAML that :func:`read` and readers of YAML 1.1 take for the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attributes
    yaml_constructors = {}  # noqa: RUF012

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes the words that look like other things in either version."""


def _constructor(kind: str):
    pattern, _, value = _SCALARS[kind]

    def construct(loader, node):
        text = loader.construct_scalar(node)
        if not re.fullmatch(pattern, text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {kind}", node.start_mark)
        return value(text)

    return construct


for _kind, (_pattern, _first, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _constructor(_kind))
for _kind in ("str", "seq", "map"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(yaml.SafeLoader, f"construct_yaml_{_kind}"))
_Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)
