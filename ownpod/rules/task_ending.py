"""How a one-off task has ended: its outcome from exit code, memory, and its own word. Pure."""

import json
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ownpod.errors import AttemptLost
from ownpod.rules.jobs import JobStatus
from ownpod.rules.reconcile import Found
from ownpod.rules.runs import Outcome
from ownpod.rules.task_lines import Finish, json_text

LONGEST_TEXT = 1_000_000
"""Bytes of the text of a task that is made of its chunks; the rest is left out, and stays in the chunks."""

NOTE = "\n… (truncated: the whole text is in the task's chunks)"

_SIGNALLED = 128
"""A shell and Docker report a process that signal N has ended as this + N."""

_KILLED = _SIGNALLED + signal.SIGKILL

STOPPED = "its container was stopped"

_NO_MEMORY = re.compile(
    r"(?:[\w.]*\.)?_?(?:Array)?MemoryError\b|.*\bstd::bad_alloc\b|.*\bCannot allocate memory\b"
    r"|memory allocation of \d+ bytes failed|.*\bjava\.lang\.OutOfMemoryError\b"
)
"""The last line of a program whose own limit has refused it memory. That of a GPU is another memory."""


@dataclass(frozen=True)
class Ending:
    """The end of a run.

    Attributes:
        status: COMPLETED or FAILED; "": the attempt is lost, because of ``error``.
        output: JSON text.
        exit_code: as a shell has it; None: not known.
        out_of_memory: the kernel ended the task because of its memory limit, or refused it memory.
        code: one word about a failure for programs: ``handler``, ``oom``, ``lost``, ``stopped``, ``start``, ``output``.
    """

    status: str
    output: str | None = None
    error: str | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
    code: str = ""

    def text(self) -> str:
        """As JSON, for Redis."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Ending":
        """The ending in a text; one that cannot be read is a lost attempt."""
        try:
            values = json.loads(text)
            return cls(**values)
        except (ValueError, TypeError, RecursionError):
            return lost("the result in Redis cannot be read")

    def event(self) -> dict[str, Any]:
        """The data of the ``worker`` event that reports it, without what is known beside it."""
        known: dict[str, Any] = {"status": "stopped" if not self.error else "error"}
        if self.exit_code is not None:
            known["exit_code"] = self.exit_code
        if self.out_of_memory:
            known["oom"] = True
        if self.code:
            known["code"] = self.code
        return known | ({"error": self.error} if self.error else {})

    def outcome(self) -> Outcome:
        """For the node. Raises: AttemptLost."""
        if self.status not in {JobStatus.COMPLETED, JobStatus.FAILED}:
            raise AttemptLost(self.error or "the task's result is lost")
        return Outcome(JobStatus(self.status), output=self.output, error=self.error)


def lost(reason: str, exit_code: int | None = None) -> Ending:
    """The attempt is lost, and counts as one."""
    return Ending("", error=reason, exit_code=exit_code, code="lost")


def failed(error: str, code: str, exit_code: int | None = None) -> Ending:
    return Ending(JobStatus.FAILED, error=error, exit_code=exit_code, code=code)


def ending(
    found: Found,
    *,
    finish: Finish | None = None,
    output: str = "",
    tail: Sequence[str] = (),
    memory_bytes: int | None = None,
    stopped: bool = False,
) -> Ending:
    """How a run has ended.

    Args:
        found: its container, which has ended.
        finish: the task's own word on its end.
        output: JSON text, from :func:`output_of`; "": the task has written none.
        tail: last lines of its standard error.
        memory_bytes: its memory limit.
        stopped: OwnPod has stopped the container.
    """
    code = shell_code(found.exit_code)
    if stopped and code != 0:
        return failed(STOPPED, "stopped", code)
    limit = f" (limit {amount(memory_bytes)})" if memory_bytes else ""
    if found.out_of_memory:
        error = f"the container was killed: out of memory{limit}"
        return Ending(JobStatus.FAILED, None, error, code, out_of_memory=True, code="oom")
    if code is None or code == _KILLED:
        # The kernel of a host without memory does that, too, or an operator.
        how = "ended with an exit code that is not known"
        killed = "was killed, and not by OwnPod (exit code 137)"
        return lost(f"its container {how if code is None else killed}", code)
    if finish is not None and finish.failed:
        return failed(finish.error or "the task reported that it failed", "handler", code)
    if code != 0:
        return _failure(code, tail, limit)
    return Ending(JobStatus.COMPLETED, output or json_text({"exitCode": code}), exit_code=code)


def _failure(code: int, tail: Sequence[str], limit: str) -> Ending:
    """The end with an exit code other than 0. ``limit``: of its memory, in words; "": it has none."""
    last = [line for line in tail if line.strip()][-1:]
    if limit and last and _NO_MEMORY.match(last[0]):
        # Where the engine has no control groups, the limit of each process makes an allocation fail, and nothing kills it.
        error = f"out of memory{limit}: {last[0]}"
        return Ending(JobStatus.FAILED, None, error, code, out_of_memory=True, code="oom")
    lines = "\n".join(tail)
    return failed(f"exit code {code}" + (f"\n{lines}" if lines else ""), "handler", code)


def output_of(final: str, chunks: Iterable[str]) -> str:
    """A task's output, JSON text: its last ``text`` or ``output``, or what its chunks are together; "": there is none.

    Args:
        final: JSON text; "": the task has written none.
        chunks: JSON texts.
    """
    if final:
        return final
    texts, others, size = list[str](), list[str](), 0
    for chunk in chunks:
        size += len(chunk)
        if size > LONGEST_TEXT:
            break
        (texts if chunk[:1] == '"' else others).append(chunk)
    if others and not texts:
        return f"[{', '.join(others)}]"
    if not texts:
        # The first chunk may be larger than the limit only if it is no text.
        return ""
    text = "".join(map(json.loads, texts))
    return json_text(text + NOTE if size > LONGEST_TEXT else text)


def shell_code(exit_code: int | None) -> int | None:
    """An exit code as a shell has it: 128 + N for signal N."""
    return _SIGNALLED - exit_code if exit_code is not None and exit_code < 0 else exit_code


def amount(size: int) -> str:
    """Bytes as in a preset: ``16g``, ``512m``."""
    for unit, power in (("g", 3), ("m", 2), ("k", 1)):
        if size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)
