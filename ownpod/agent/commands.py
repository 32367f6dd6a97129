"""The command and the environment of a worker that runs as a plain process."""

import os
import shutil
from pathlib import Path

from ownpod.agent.engine import EngineError, Launch
from ownpod.rules.templates import Template

MARK = "MANAGED_BY"
"""Variable in the environment of each worker, by which processes that have left its session are found."""

KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE"),
    *("LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME"),
)
"""Variables of the agent's environment that a worker gets: where programs, libraries and caches are, and the language.

The others are not passed on, because they may be secrets (``REDIS_URL``, keys, proxies with passwords) or change what
a worker imports (``PYTHONPATH``). A template's ``env`` can set them.
"""


def command_line(template: Template, directory: Path, path: str) -> tuple[str, ...]:
    """The command of a template as it is executed.

    The template's paths are written for the directory that the agent runs in, but the worker runs in an empty one.
    So an argument that names an existing file relative to the agent's directory becomes an absolute path:
    ``[python, examples/worker-echo/handler.py]`` runs this file. Other arguments stay as they are, also
    ``--config=file`` and names of folders. The program itself is searched on ``PATH`` unless it contains ``/``.

    Args:
        template: its ``entrypoint`` and ``command`` together are the command.
        directory: the agent's working directory.
        path: the worker's ``PATH``.

    Raises:
        EngineError: there is no command, or its program is not found.
    """
    arguments = (*template.entrypoint, *template.command)
    if not arguments:
        raise EngineError(
            "the engine process starts template.command, and this template has none; an image alone is not enough"
        )
    program = arguments[0]
    # Absolute, because the shell has commands of its own that are found before those on PATH.
    found = shutil.which(str(directory / program) if "/" in program else program, path=path)
    if found is None and "/" in program:
        raise EngineError(f"template.command: there is no executable file {directory / program}")
    if found is None:
        raise EngineError(
            f"template.command: the program {program!r} is not found on the worker's PATH"
        )
    rest = (
        str(directory / argument) if os.path.isfile(directory / argument) else argument  # noqa: PTH113 - isfile accepts any text
        for argument in arguments[1:]
    )
    return (str(directory / found), *rest)


def environment(launch: Launch, mark: str) -> dict[str, str]:
    """A worker's whole environment: few variables of the agent's, then the launch's, then its devices.

    ``CUDA_VISIBLE_DEVICES`` comes last, because a template must not use devices of other workers. "" hides all.
    """
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    cuda = ",".join(device.id for device in launch.devices if not device.simulated)
    # Without PYTHONUNBUFFERED the last lines of a worker that is killed would be missing in its log.
    first = {"PATH": os.defpath, "PYTHONUNBUFFERED": "1"}
    return {**first, **kept, **launch.env, "CUDA_VISIBLE_DEVICES": cuda, MARK: mark}
