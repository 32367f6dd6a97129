"""The environment, read and checked once. It imports errors, validation and the pure rules only.

Every variable is declared in :mod:`ownpod.settings.variables`. This package is the only one that reads a variable of
OwnPod's; the few exceptions are listed, with their reasons, in the test that finds them.
"""

import functools
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from ownpod.errors import ConfigurationError
from ownpod.settings.declare import Reader, Variable, variables_of
from ownpod.settings.variables import CLIENT_VARIABLES, REDIS_URL_FILE, Settings

__all__ = [
    "CLIENT_VARIABLES",
    "DEFAULT_ENDPOINT",
    "REDIS_URL_FILE",
    "VARIABLES",
    "Settings",
    "Variable",
    "current",
    "exit_on",
    "load",
    "of_environment",
    "problems",
    "reload",
]

DEFAULT_ENDPOINT = "local-ep"

VARIABLES = variables_of(Settings)
"""All variables, in the order of README's table."""

_READER = Reader(Settings)


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment.

    Raises:
        ConfigurationError: one line with the first wrong variable, its value and what is allowed.
    """
    values, wrong = _READER.read(environ)
    if wrong:
        raise ConfigurationError(wrong[0])
    return Settings(
        **values,
        workers_file_required=bool(environ.get("OWNPOD_WORKERS_FILE")),
        images_given=_is_given("images", environ),
    )


def _is_given(field: str, environ: Mapping[str, str]) -> bool:
    """Whether the variable of a field is set, under its own name or as its alias."""
    return any(environ.get(name) for name in _READER.names(field))


def problems(environ: Mapping[str, str]) -> list[str]:
    """One line for each wrong variable, as :func:`load` raises it."""
    return _READER.read(environ)[1]


@functools.cache
def current() -> Settings:
    """The settings of this process. Raises: ConfigurationError, see :func:`load`."""
    return load(os.environ)


def reload() -> None:
    """Reads the environment, and the files that variables name, again for :func:`current`.

    Raises:
        ConfigurationError: see :func:`load`; the settings do not change.
    """
    load(os.environ)
    current.cache_clear()
    current()


def of_environment(name: str) -> str | None:
    """A variable of the command's environment that is no setting: its value for a worker. None: it is not set."""
    return os.environ.get(name)


def exit_on(error: Exception) -> NoReturn:
    """Ends the process with the error in one line and exit code 2, as wrong usage does."""
    sys.stderr.write(f"ownpod: {error}\n")
    raise SystemExit(2)
