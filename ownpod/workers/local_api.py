"""Requests of RunPod's local API: whole answers, of a bounded size and within a bounded time."""

import time
from urllib.parse import quote

from ownpod.errors import JobRejected
from ownpod.rules.endpoints import WorkerSpec
from ownpod.settings import Settings
from ownpod.workers.answers import UNKNOWN_METHOD, Answer
from ownpod.workers.http import Connections, Reply, WorkerHTTPError
from ownpod.workers.traits import WorkerTraits

BODY_S = 300.0
"""Longest time in seconds for an answer's body, once the head has come: 50 MiB at 170 KiB/s."""


class LocalApi:
    """Requests to one worker; any thread may make them.

    Args:
        spec: the worker.
        settings: time-outs and the largest answer.
        traits: remembers the method that the worker takes.
    """

    def __init__(self, spec: WorkerSpec, settings: Settings, traits: WorkerTraits) -> None:
        self._http = Connections(spec, connect_s=settings.worker_connect_timeout_s)
        self._largest_mb = settings.max_output_mb
        self.send = self._http.send
        self._traits = traits

    def answer(self, method: str, path: str, read_s: float | None) -> Answer:
        """A whole answer. Raises: JobRejected, and what :meth:`Connections.send` does."""
        return self.whole(self.send(method, path, read_s))

    def status(self, run_id: str, timeout_s: float | None) -> Answer:
        """One status request, with the method that this worker takes."""
        path = f"/status/{quoted(run_id)}"
        first, second = self._traits.methods
        answer = self.answer(first, path, timeout_s)
        if answer.status in UNKNOWN_METHOD:
            other = self.answer(second, path, timeout_s)
            if other.status not in UNKNOWN_METHOD:
                self._traits.methods = second, first
                return other
        return answer

    def whole(self, response: Reply, body_s: float | None = None) -> Answer:
        """Reads an answer to its end, within a bounded time.

        Raises:
            JobRejected: it is too large, too slow, or endless.
            WorkerHTTPError: the rest did not come.
        """
        body_s = BODY_S if body_s is None else body_s
        limit, until = self._largest_mb * 1024 * 1024, time.monotonic() + body_s
        parts, left = list[bytes](), limit + 1
        problem = (
            f"the worker's answer is larger than {self._largest_mb} MiB, see OWNPOD_MAX_OUTPUT_MB"
        )
        too_slow = f"the worker's answer did not end within {body_s:g} s"
        try:
            while left > 0:
                part = response.read(until)
                if not part:
                    return Answer(response.status, b"".join(parts), response.retry_after)
                parts.append(part)
                left -= len(part)
                if time.monotonic() > until:
                    problem = too_slow
                    break
        except WorkerHTTPError:
            response.close()
            if time.monotonic() < until:
                raise
            problem = too_slow
        response.close()
        raise JobRejected(problem)


def quoted(run_id: str) -> str:
    """A run's id as a part of a path: the worker chose it."""
    return quote(run_id, safe="")
