"""The state of a container, as an engine's answer to an inspection has it. Pure."""

from collections.abc import Mapping
from typing import Any

SIGKILLED = 137
"""Exit code of a container that SIGKILL ended."""

_SIGNALS = range(129, 129 + 64)
"""Exit codes of containers that signals 1 to 64 ended."""


def runs(state: Mapping[str, Any]) -> bool:
    """Whether the container's processes run, or may run."""
    # Podman's container does not count as running from SIGTERM on, and has the exit code 0 until it has ended.
    return bool(state["Running"]) or state.get("Status") == "stopping"


def end(state: Mapping[str, Any]) -> tuple[int, bool]:
    """The exit code of a container that has ended, see :func:`exit_code`, and whether its memory limit ended it."""
    # OOMKilled alone is also true where the kernel killed only a child of the worker.
    return exit_code(state), bool(state.get("OOMKilled")) and state["ExitCode"] == SIGKILLED


def exit_code(state: Mapping[str, Any]) -> int:
    """The exit code as Python's ``subprocess`` has it: negative for a signal."""
    code = int(state["ExitCode"])
    return 128 - code if code in _SIGNALS else code
