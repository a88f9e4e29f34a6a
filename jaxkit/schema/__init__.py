"""The typed sections of a config. Imports pydantic and nothing heavier, so that a bad config fails at once."""

from importlib import import_module

from jaxkit.schema.section import Section
from jaxkit.tasks import TASKS


def task_section(name: str) -> type[Section]:
    """The section class of the task called ``name``: ``SECTION`` of its file in this folder."""
    return import_module(f"jaxkit.schema.{TASKS[name]}").SECTION
