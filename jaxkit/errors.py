"""The errors a user can cause and mend: scripts print their message, without a traceback, and exit with their code."""


class UserError(Exception):
    """What was wrong, where, and what to do about it."""

    exit_code = 1


class ConfigError(UserError):
    """The config or the command line asks for something that cannot be."""

    exit_code = 2


class ShapeError(ConfigError, ValueError):
    """A layer or a network cannot serve data of this shape."""
