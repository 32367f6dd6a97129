"""The state of a container, as an engine's answer to an inspection has it. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

SIGKILLED = 137
"""Exit code of a container that SIGKILL ended."""

OOM_S = 0.5
"""Seconds after the end of a container within which Docker may learn that its memory limit ended it: the two are separate
events of containerd, which may come in either order."""

_SIGNALS = range(129, 129 + 64)
"""Exit codes of containers that signals 1 to 64 ended."""


def runs(state: Mapping[str, Any]) -> bool:
    """Whether the container's processes run, or may run."""
    # From SIGTERM on, Podman reports a container as not running, with the exit code 0. Its devices would be freed too early.
    return bool(state["Running"]) or state.get("Status") == "stopping"


def end(state: Mapping[str, Any]) -> tuple[int, bool]:
    """The exit code of a container that has ended, see :func:`exit_code`, and whether its memory limit ended it."""
    # OOMKilled alone is also true where the kernel killed only a child of the worker.
    return exit_code(state), bool(state.get("OOMKilled")) and state["ExitCode"] == SIGKILLED


def unsettled_s(state: Mapping[str, Any], now_s: float) -> float:
    """Seconds until it is certain whether the memory limit ended a container that has ended; 0: it is.

    Args:
        state: the container's.
        now_s: seconds since the epoch.
    """
    if state["ExitCode"] != SIGKILLED or state.get("OOMKilled"):
        return 0.0
    try:
        ended_s = datetime.fromisoformat(str(state["FinishedAt"])).timestamp()
    except (KeyError, ValueError):
        return OOM_S
    # The engine may be on another host, with another clock.
    return min(max(0.0, ended_s + OOM_S - now_s), OOM_S)


def exit_code(state: Mapping[str, Any]) -> int:
    """The exit code as Python's ``subprocess`` has it: negative for a signal."""
    code = int(state["ExitCode"])
    return 128 - code if code in _SIGNALS else code
