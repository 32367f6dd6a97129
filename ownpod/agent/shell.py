"""The shell that leads a worker's process group, waits for the worker and writes its exit code."""

import contextlib
import os
import subprocess
from collections.abc import Mapping

from ownpod.agent.directories import Directory

SHELL = "/bin/sh"

SCRIPT = """\
trap : HUP INT QUIT TERM
exit_file=$1
shift
code=126
if read -r go; then
    "$@" </dev/null
    code=$?
fi
echo "$code" >"$exit_file"
kill -KILL 0
"""
"""Arguments: the file for the exit code, then the command.

The shell starts nothing before it has read a line: at that time the worker is recorded and in its control group. If
the agent dies before, the line never comes. Traps, unlike ignored signals, are not inherited by the command. The
exit code is read only after the shell has ended, so it need not be written in one step.
"""


class Shell:
    """A shell that waits to be let go. Raises: OSError, ValueError (a NUL in the command or the environment).

    ``apart``: standard error goes to a file of its own.
    """

    def __init__(
        self,
        directory: Directory,
        command: tuple[str, ...],
        env: Mapping[str, str],
        *,
        apart: bool = False,
    ) -> None:
        output = directory.open_output()
        errors = directory.open_output(errors=True) if apart else None
        try:
            self._process = subprocess.Popen(
                [SHELL, "-c", SCRIPT, "ownpod-worker", str(directory.exit), *command],
                cwd=directory.work,
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if errors is None else errors,
                start_new_session=True,
            )
        finally:
            os.close(output)
            if errors is not None:
                os.close(errors)
        self.pid = self._process.pid

    def go(self) -> None:
        """Has the shell start the command. Raises: OSError."""
        if self._process.stdin:
            with self._process.stdin as stdin:
                stdin.write(b"go\n")

    def reap(self) -> None:
        """Reads the exit code of a shell that has ended, because it stays a zombie otherwise."""
        self._process.poll()

    def end(self) -> None:
        """Ends a shell that was not let go. It has started nothing."""
        self._process.kill()
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        self._process.wait()
