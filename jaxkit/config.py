"""YAML and dotted overrides in, one validated, typed, frozen config out; or every problem at once."""

import difflib
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model, model_validator

from jaxkit import yaml12
from jaxkit.errors import ConfigError
from jaxkit.problems import no_mapping, problems
from jaxkit.schema import task_section
from jaxkit.schema.model import Pretrained
from jaxkit.schema.optimizer import OPTIMIZERS
from jaxkit.schema.section import Misfit, Section, one_of
from jaxkit.schema.sources import SOURCES
from jaxkit.schema.train import Tracking, Train
from jaxkit.spelling import nearest
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
        data, optimizer, train = self.data, self.optimizer, self.train
        problems = {f"optimizer.{key}": problem for key, problem in optimizer.misfits(train.steps).items()}
        if hasattr(self.task, "misfits"):
            problems |= {f"task.{key}": problem for key, problem in self.task.misfits(data).items()}
        if data.batch_size % optimizer.accumulate:
            problems["data.batch_size"] = (
                f"{data.batch_size} cannot be cut into optimizer.accumulate = {optimizer.accumulate} equal pieces"
            )
        metrics = getattr(self.task, "METRICS", None)
        if metrics and train.best_metric not in (None, *metrics):
            problems["train.best_metric"] = (
                f"{train.best_metric!r} is no metric of this task; it has {', '.join(metrics)}"
            )
        if problems:
            raise Misfit(problems)
        return self

    def ranking(self) -> tuple[str, str]:
        """The metric that ranks checkpoints, and whether its ``max`` or its ``min`` is best."""
        metrics = type(self.task).METRICS
        metric = self.train.best_metric or next(iter(metrics))
        return metric, metrics[metric]

    def yaml(self) -> str:
        """Writes the config in full, defaults included, as YAML that loads to an equal config."""
        return yaml12.write(self.model_dump(mode="json"))

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
            raise ConfigError(_message(origin, [_unknown_task(task)]))
    except ValidationError as error:
        found = problems(error, raw, schema)
        if schema is Config:
            found = [_unknown_task(task), *(line for line in found if not line.startswith(("task:", "task.")))]
        raise ConfigError(_message(origin, found)) from None
    above = (*above, str(Path(origin).resolve()))
    if above[-1] in above[:-1]:
        raise ConfigError(f"{origin} is a teacher in its own training: {' needs '.join(above)}")
    return with_sources(config, lambda source: _with_model(source, above))


def _read(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1, 0.4)
        raise ConfigError(
            f"{path}: no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        raw = yaml12.read(text)
    except ConfigError as error:
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
        value = yaml12.read(text)
    except ConfigError as error:
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
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    held = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    raise ConfigError(f"{override!r}: {where or 'the config'} is {held}, so it has no {key!r}")


def _message(origin: str, found: list[str]) -> str:
    return f"{origin}: {len(found)} problem{'s' * (len(found) > 1)}\n" + "\n".join(f"  {line}" for line in found)


def _unknown_task(task) -> str:
    if task is not None and not isinstance(task, dict):
        return no_mapping("task", task, list(TASKS))
    name = (task or {}).get("name")
    if name is None:
        return f"task.name: is missing; the tasks are {', '.join(TASKS)}"
    return f"task.name: no task is named {name!r}{nearest(str(name), TASKS)}; the tasks are {', '.join(TASKS)}"


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


def run_config(workdir: str | Path, overrides: tuple[str, ...] = (), above: tuple[str, ...] = ()) -> Config:
    """Reads the config of the run in ``workdir``; the rest as :func:`load`.

    Raises:
        ConfigError: if no run is there, or what :func:`load` raises.
    """
    path = Path(workdir) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{workdir}: no run is there ({path} does not exist)")
    return load(path, overrides, above)


def trained_model(task: Section) -> Section | None:
    """The model that a ``task`` section trains, if it names one."""
    return getattr(task, "model", None) or getattr(task, "student", None)


def source_config(source: Pretrained, above: tuple[str, ...] = ()) -> Config:
    """The config of the run that made, or will make, the weights of ``source``."""
    if source.config is not None:
        return load(source.config, source.overrides, above)
    workdir = source.workdir if source.workdir is not None else Path(source.checkpoint).parent.parent
    return run_config(workdir, above=above)


def _with_model(source: Pretrained, above: tuple[str, ...]) -> Pretrained:
    """Fills in the model of the run that a source names, unless it names none or is pinned and has it already."""
    if source.run is None or (source.pinned is not None and source.model is not None):
        return source
    run = source_config(source, above)
    task, model = run.task, trained_model(run.task)
    if not isinstance(model, type(source).KINDS):
        raise ConfigError(
            f"{above[-1]}: {source.run} is of the task {task.name!r}, which trains no {type(source).WANTED}"
        )
    if not source.NORMALIZED and run.data.normalize != "none":
        raise ConfigError(
            f"{above[-1]}: {source.run} has data.normalize, and judges images in [0, 1] here: train one without"
        )
    model = model.model_copy(update={"pretrained": None})  # the run has weights of its own by now
    if source.model not in (None, model):
        raise ConfigError(f"{above[-1]}: the model of {source.run} is {model}")
    return source.model_copy(update={"model": model})
