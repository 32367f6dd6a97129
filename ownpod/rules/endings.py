"""Why a managed worker ended, in words. Pure."""

import re
import signal

NOT_FOUND = 127
"""Exit code of a shell, and of a container's init, for a command that does not exist."""

NOT_EXECUTABLE = 126

_SIGNALS = {number.value: number.name for number in signal.Signals}

_TINI = re.compile(r"\[FATAL tini \(\d+\)\] exec (?P<command>.+?) failed: (?P<problem>.+)")
"""What the init of a Docker container writes when it cannot start the command."""

_CATATONIT = re.compile(r"ERROR \(catatonit:\d+\): failed to exec pid1: (?P<problem>.+)")
"""The same of Podman's, which ends with exit code 1 then."""


def why_ended(exit_code: int | None, *, out_of_memory: bool = False, log: str = "") -> str:
    """For example "out of memory", "killed by SIGKILL", "exit code 3", "the image has no command handler.sh".

    Args:
        exit_code: negative where a signal ended it; None: unknown.
        out_of_memory: the kernel killed it because of its memory limit.
        log: its last lines of output.
    """
    if out_of_memory:
        return "out of memory: the limit of the template was reached"
    if exit_code is None:
        return "ended, exit code unknown"
    if exit_code < 0:
        return f"killed by {_SIGNALS.get(-exit_code, f'signal {-exit_code}')}"
    if exit_code in (NOT_FOUND, NOT_EXECUTABLE) and (found := _TINI.search(log)):
        missing = "No such file" in found["problem"]
        command = found["command"]
        return (
            f"the image has no command {command}"
            if missing
            else f"the command {command} cannot be started: {found['problem']}"
        )
    if exit_code == 1 and (found := _CATATONIT.search(log)):
        missing = "No such file" in found["problem"]
        return (
            "the image does not have the command"
            if missing
            else f"the command cannot be started: {found['problem']}"
        )
    return f"exit code {exit_code}"
