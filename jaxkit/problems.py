"""What is wrong with a config, for its writer: one line a mistake, with the dotted path and what would be right."""

import difflib
from typing import Any, get_args

from pydantic import ValidationError

from jaxkit.schema.section import Misfit, Section, kind_of
from jaxkit.spelling import nearest

NO_MAPPING = ("model_type", "union_tag_not_found")


def problems(error: ValidationError, raw: dict, schema: type[Section]) -> list[str]:
    """Says what ``error`` found in ``raw``, the config as its writer wrote it, one line a mistake."""
    found = [(problem, *_locate(problem, raw, schema)) for problem in error.errors(include_url=False)]
    paths = [path for _, path, *_ in found]
    words = [path for problem, path, *_ in found if problem["type"] == "literal_error"]
    lines = []
    for problem, path, owners, sections in found:
        # of words | Section: a mapping with a mistake in it need not be a word, nor a mistyped word a mapping
        if problem["type"] == "literal_error" and isinstance(problem["input"], dict):
            another = sum(other[: len(path)] == path for other in paths) > 1
        else:
            another = problem["type"] in NO_MAPPING and path in words
        if not another:
            lines += _describe(problem, path, owners, sections, schema)
    return lines


def no_mapping(path: str, value: Any, names: list[str]) -> str:
    """Shows the mapping to write in place of a value: by the one of ``names`` most like it, or by itself if any is."""
    near = difflib.get_close_matches(value, names, 1, 0.5) if isinstance(value, str) else []
    if isinstance(value, str) and ":" in value:
        # what is behind the colon is any name: tfds:<name>
        near = [name for name in names if name.split(":")[0] == value.split(":")[0]] or near
    name = (near or names or [value])[0]
    return f"{path}: must be a mapping such as {{name: {name}}}, got {value!r}"


def _describe(problem: dict, path: list[str], owners, sections, schema: type[Section]) -> list[str]:
    """The lines of one of pydantic's errors, with its path as the user wrote it."""
    dotted, value = ".".join(path), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            siblings = list(dict.fromkeys(name for owner in owners for name in owner.model_fields))
            hint = nearest(path[-1], siblings) or _elsewhere(path[-1], path[0], schema)
            return [f"{dotted}: unknown key" + (hint or f"; the keys are {', '.join(siblings)}")]
        case "missing":
            return [f"{dotted}: is missing"]
        case "union_tag_invalid":
            kinds = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
            name = value["name"]
            return [f"{dotted}.name: {name!r} is unknown{nearest(str(name), kinds)}; one of {', '.join(kinds)}"]
        case "union_tag_not_found" if isinstance(value, dict):
            return [f"{dotted}.name: is missing; one of {', '.join(_kinds(sections))}"]
        case kind if kind in NO_MAPPING and any("name" in section.model_fields for section in sections):
            return [no_mapping(dotted, value, _kinds(sections))]
        case kind if kind in NO_MAPPING:
            keys = ", ".join(name for section in sections for name in section.model_fields)
            return [f"{dotted}: must be a mapping with the keys {keys}, got {value!r}"]
        case "value_error":
            error = problem["ctx"]["error"]
            if isinstance(error, Misfit):
                return [f"{'.'.join([*path, below])}: {what}" for below, what in error.problems.items()]
            return [f"{dotted}: {error}"]
    return [f"{dotted}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {value!r}"]


def _locate(problem: dict, raw: dict, schema: type[Section]):
    """The path of a problem in the user's own file, the sections its last key could belong to, those it could be.

    pydantic puts the tags of unions into a location; those are no keys of the file and are passed over.
    """
    path, node, owners, sections = [], raw, [], [schema]
    location = problem["loc"]
    for i, part in enumerate(location):
        absent = problem["type"] == "missing" and i == len(location) - 1
        if isinstance(node, dict) and (part in node or absent):
            node, owners = node.get(part), sections
            annotations = [owner.model_fields[part].annotation for owner in owners if part in owner.model_fields]
            sections = _sections(annotations, node)
            path.append(str(part))
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part]
            sections = _sections(sections, node)
            path.append(str(part))
    return path, owners, sections


def _sections(annotations, value) -> list[type[Section]]:
    """The section classes named in type annotations; where ``value`` has a name that chooses among them, that one."""
    found, pending = [], list(annotations)
    while pending:
        annotation = pending.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.append(annotation)
        pending.extend(get_args(annotation))
    return [section for section in found if kind_of(value) in _kinds([section])] or found


def _kinds(sections: list[type[Section]]) -> list[str]:
    """The names that choose among sections."""
    names = [section.model_fields["name"] for section in sections if "name" in section.model_fields]
    return [kind for name in names for kind in get_args(name.annotation) or name.examples or ()]


def _elsewhere(key: str, here: str, schema: type[Section]) -> str:
    """Says in which other section a key would be right that is unknown ``here``."""
    for top, field in schema.model_fields.items():
        if top == here:
            continue
        if key == top or any(key in section.model_fields for section in _sections([field.annotation], None)):
            return f", did you mean {top if key == top else f'{top}.{key}'!r}?"
    return ""
