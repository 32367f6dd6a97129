"""The process that fetches a model, as the agent sees it: its progress, its end, and its kill when it stalls."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ownpod.agent.model_orders import Order, order_text
from ownpod.rules.model_news import State

SECRET = ("OWNPOD_", "REDIS", "CELERY")
"""Beginnings of the agent's variables that a process which talks to other hosts does not get."""

LONGER = 1.5
"""Factor from the process's own limit to the agent's, because the error of the process has more details."""

CHECKS = 10.0
"""Factor from the limit of a fetch to that of a check without progress: a disk that is busy is slower than a network."""


@dataclass(frozen=True)
class End:
    """How a fetch ended. ``error``: in words for people; "": the model is here. ``again``: a second try may help."""

    error: str = ""
    again: bool = False


class FetchProcess:
    """A process that fetches a model, which ends with this one.

    Args:
        order: what it does.
        environ: of the agent; it has what libraries read, such as proxies and tokens.
    """

    def __init__(self, order: Order, environ: Mapping[str, str]) -> None:
        self._stall_s = order.options.stall_s
        own = {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(max(1, int(self._stall_s / 2))),
            # Its own cache of parts would be outside of the quota.
            "HF_XET_CHUNK_CACHE_SIZE_BYTES": "0",
            # Its store of files of several models would keep those of removed ones.
            "HF_HUB_DISABLE_SHARED_BLOBS": "1",
        }
        left_out = {"HF_HUB_OFFLINE", "PYTHONWARNINGS"}
        given = {n: v for n, v in environ.items() if not n.startswith(SECRET) and n not in left_out}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ownpod.agent.model_fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=given | own,
            text=True,
        )
        self._end: End | None = None
        self._watch = _Watch(self._process, self._stall_s)
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(f"{order_text(order)}\n")
                self._process.stdin.flush()

    def steps(self) -> Iterator[tuple[State, int, int]]:
        """Its progress until its end: the state, the bytes that are here, and all bytes."""
        for line in self._process.stdout or ():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if not isinstance(values, dict):
                # A library may print.
                continue
            if "state" not in values:
                self._end = End(str(values.get("error", "")), bool(values.get("again")))
                continue
            state, done = State(values["state"]), int(values.get("done", 0))
            self._watch.moved(state, done, int(values.get("checked", 0)))
            yield state, done, int(values.get("total", 0))

    def end(self) -> End:
        """How it ended. Blocks until it has."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        if (stalled := self._watch.end()) is not None:
            return End(stalled, again=True)
        code = self._process.returncode
        return self._end or End(f"its process ended with code {code}", again=True)

    def kill(self) -> None:
        """Ends it; the bytes on the disk stay."""
        self._process.kill()
        self._process.wait()


class _Watch:
    """Ends a process that fetches or checks no further bytes. One that waits for the fetch of another process has no limit."""

    def __init__(self, process: subprocess.Popen[str], stall_s: float) -> None:
        self._process = process
        self._stall_s = stall_s
        self._timer: threading.Timer | None = None
        self._at: tuple[State, int, int] | None = None
        self._stalled: str | None = None

    def moved(self, state: State, done: int, checked: int) -> None:
        if (state, done, checked) == self._at:
            return
        self._at = (state, done, checked)
        self._cancel()
        if state is State.FETCHING:
            words = f"no byte came for {self._stall_s:g} s"
            self._start(self._stall_s * LONGER, words)
        elif state is State.CHECKING:
            limit_s = self._stall_s * CHECKS
            self._start(limit_s, f"its check made no progress for {limit_s:g} s")

    def _start(self, limit_s: float, words: str) -> None:
        self._timer = threading.Timer(limit_s, self._kill, (words,))
        self._timer.daemon = True
        self._timer.start()

    def _kill(self, words: str) -> None:
        self._stalled = words
        self._process.kill()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> str | None:
        """Stops the watch. Returns why it has ended the process, in words for people; None: it has not."""
        self._cancel()
        return self._stalled
