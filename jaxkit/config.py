"""YAML and dotted overrides in, one validated, typed, frozen config out; or every problem at once."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError, create_model, model_validator

from jaxkit.errors import ConfigError
from jaxkit.schema import task_section
from jaxkit.schema.data import SOURCES
from jaxkit.schema.model import Pretrained
from jaxkit.schema.optimizer import OPTIMIZERS
from jaxkit.schema.section import Section, one_of
from jaxkit.schema.train import Tracking, Train
from jaxkit.tasks import TASKS


class Config(Section):
    """One experiment. ``task`` has the type its name chooses."""

    task: Section
    data: one_of(SOURCES)
    optimizer: one_of(OPTIMIZERS)
    train: Train
    tracking: Annotated[Tracking, Field(validate_default=True)] = Tracking()

    @model_validator(mode="after")
    def _fits_together(self):
        if self.data.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"data.batch_size = {self.data.batch_size} cannot be cut into "
                f"optimizer.accumulate = {self.optimizer.accumulate} equal pieces"
            )
        warmup = getattr(self.optimizer.schedule, "warmup_steps", 0)
        if self.train.steps and warmup >= self.train.steps:
            raise ValueError(
                f"optimizer.schedule.warmup_steps = {warmup} leaves none of train.steps = {self.train.steps}"
            )
        metrics = type(self.task).METRICS
        if self.train.best_metric not in (None, *metrics):
            raise ValueError(
                f"train.best_metric = {self.train.best_metric!r} is no metric of this task; it has {', '.join(metrics)}"
            )
        return self

    def ranking(self) -> tuple[str, str]:
        """The metric that ranks checkpoints, and whether its ``max`` or its ``min`` is best."""
        metrics = type(self.task).METRICS
        metric = self.train.best_metric or next(iter(metrics))
        return metric, metrics[metric]

    def yaml(self) -> str:
        """Writes the config in full, defaults included, as YAML that loads to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """Hash of everything that can change a result (tracking cannot), teachers' configs included: 12 hex digits."""
        teachers = []

        def unpinned(source: Pretrained) -> Pretrained:
            if source.config is not None and source.pinned is None:
                teachers.append(source_config(source).digest())
            return source.model_copy(update={"pinned": None})

        content = with_sources(self, unpinned).model_dump(mode="json", exclude={"tracking"}) | {"teachers": teachers}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _schema(task: str) -> type[Config]:
    return create_model("Config", __base__=Config, task=(task_section(task), ...))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: ``1e-3`` is a number and ``no`` is a word; a key given twice is an error."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def load(path: str | Path, overrides: tuple[str, ...] = (), above: tuple[str, ...] = ()) -> Config:
    """Reads the YAML file at ``path``, applies ``section.key=value`` overrides in order, validates.

    ``above`` are the configs that this one is a teacher in.

    Raises:
        ConfigError: with every problem found, one a line, each with its dotted path.
    """
    raw = _read(Path(path))
    for override in overrides:
        _override(raw, override)
    return parse(raw, str(path), above)


def parse(raw: dict, origin: str, above: tuple[str, ...] = ()) -> Config:
    """Validates a config given as nested dicts; ``origin`` names it in errors."""
    task = raw.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    schema = _schema(name) if isinstance(name, str) and name in TASKS else Config
    try:
        config = schema.model_validate(raw)
        if schema is Config:
            raise ConfigError(_message(origin, [_unknown_task(name)]))
    except ValidationError as error:
        problems = [_describe(problem, raw, schema) for problem in error.errors(include_url=False)]
        if schema is Config:
            problems = [_unknown_task(name), *(p for p in problems if not p.startswith("task"))]
        raise ConfigError(_message(origin, problems)) from None
    above = (*above, str(Path(origin).resolve()))
    if above[-1] in above[:-1]:
        raise ConfigError(f"{origin} is a teacher in its own training: {' needs '.join(above)}")
    return with_sources(config, lambda source: _with_model(source, above))


def _read(path: Path) -> dict:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1, 0.4)
        raise ConfigError(
            f"{path}: no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping with the keys {', '.join(Config.model_fields)}")
    return raw


def _override(raw: dict, override: str) -> None:
    """Sets the value at a dotted path in place; numbers in the path are places in a list."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"{override!r} is not an override: write section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from None
    *parents, last = path.split(".")
    node: Any = raw
    for depth, key in enumerate(parents):
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = _child(node, key, override, ".".join(parents[:depth]))
    if isinstance(node, dict):
        node[last] = value
    else:
        _child(node, last, override, ".".join(parents))
        node[int(last)] = value


def _child(node, key: str, override: str, where: str):
    if isinstance(node, dict):
        return node[key]
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    held = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    raise ConfigError(f"{override!r}: {where or 'the config'} is {held}, so it has no {key!r}")


def _message(origin: str, problems: list[str]) -> str:
    return f"{origin}: {len(problems)} problem{'s' * (len(problems) > 1)}\n" + "\n".join(f"  {p}" for p in problems)


def _unknown_task(name) -> str:
    if name is None:
        return f"task.name: is missing; the tasks are {', '.join(TASKS)}"
    return f"task.name: no task is named {name!r}{_nearest(str(name), TASKS)}; the tasks are {', '.join(TASKS)}"


def _nearest(name: str, names) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _describe(problem: dict, raw: dict, schema: type[Section]) -> str:
    """One line for one of pydantic's errors: the dotted path as the user wrote it, what is wrong, what is right."""
    path, sections = _locate(problem, raw, schema)
    dotted, key = ".".join(path) or "config", path[-1] if path else ""
    match problem["type"]:
        case "extra_forbidden":
            siblings = [name for section in sections for name in section.model_fields]
            return f"{dotted}: unknown key{_nearest(key, siblings) or _elsewhere(key, path[0], schema)}"
        case "missing":
            return f"{dotted}: is missing"
        case "union_tag_invalid":
            kinds = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
            name = problem["input"]["name"]
            return f"{dotted}.name: {name!r} is unknown{_nearest(str(name), kinds)}; one of {', '.join(kinds)}"
        case "union_tag_not_found":
            return f"{dotted}.name: is missing"
        case "value_error":
            return f"{dotted}: {problem['ctx']['error']}"
    return f"{dotted}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _locate(problem: dict, raw: dict, schema: type[Section]) -> tuple[list[str], list[type[Section]]]:
    """The path of a problem in the user's own file, and the section classes its last key could belong to.

    pydantic puts the tags of unions into a location; those are no keys of the file and are passed over.
    """
    path, node, sections = [], raw, [schema]
    location = problem["loc"]
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if isinstance(node, dict) and (part in node or (last and problem["type"] == "missing")):
            if not last:
                sections = _sections(
                    [s.model_fields[part].annotation for s in sections if part in s.model_fields], node[part]
                )
            path.append(str(part))
            node = node.get(part)
        elif isinstance(node, (list, tuple)) and isinstance(part, int):
            path.append(str(part))
            node = node[part]
    return path, sections


def _sections(annotations, value) -> list[type[Section]]:
    """The section classes named in type annotations; where ``value`` has a name that chooses among them, that one."""
    found, pending = [], list(annotations)
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.append(annotation)
        pending.extend(get_args(annotation))
    name = value.get("name") if isinstance(value, dict) else None
    return [
        s for s in found if "name" in s.model_fields and name in get_args(s.model_fields["name"].annotation)
    ] or found


def _elsewhere(key: str, here: str, schema: type[Section]) -> str:
    """Says in which other section a key would be right that is unknown ``here``."""
    for top, field in schema.model_fields.items():
        if top == here:
            continue
        if key == top or any(key in section.model_fields for section in _sections([field.annotation], None)):
            return f", did you mean {top if key == top else f'{top}.{key}'!r}?"
    return ""


def with_sources(section, change: Callable[[Pretrained], Pretrained]):
    """The section with every :class:`Pretrained` in it changed."""
    if isinstance(section, Pretrained):
        return change(section)
    if isinstance(section, tuple):
        return tuple(with_sources(item, change) for item in section)
    if isinstance(section, Section):
        parts = {name: getattr(section, name) for name in type(section).model_fields}
        return section.model_copy(update={name: with_sources(part, change) for name, part in parts.items()})
    return section


def source_config(source: Pretrained, above: tuple[str, ...] = ()) -> Config:
    """The config of the run that made, or will make, the weights of ``source``."""
    if source.config is not None:
        return load(source.config, source.overrides, above)
    workdir = Path(source.workdir) if source.workdir is not None else Path(source.checkpoint).parent.parent
    path = workdir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{source.workdir or source.checkpoint}: no run is there ({path} does not exist)")
    return load(path, (), above)


def _with_model(source: Pretrained, above: tuple[str, ...]) -> Pretrained:
    """Fills in the model of the run that a source names, unless the source is pinned and has it already."""
    if source.pinned is not None and source.model is not None:
        return source
    task = source_config(source, above).task
    model = getattr(task, "model", None) or getattr(task, "student", None)
    if model is None:
        raise ConfigError(f"{above[-1]}: the task {task.name!r} of {source} trains no model that could teach")
    if source.model not in (None, model):
        raise ConfigError(
            f"{above[-1]}: the model of {source.config or source.workdir or source.checkpoint} is {model}"
        )
    return source.model_copy(update={"model": model})
