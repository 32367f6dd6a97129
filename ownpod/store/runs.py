"""The runs that may occupy workers, for their next nodes; the commands are in ``runs.lua``."""

import json
from typing import Any

from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Run, RunCheck
from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.common import Part


def decode_run(job_id: str, entry: str) -> Run | None:
    """The run in an entry of a worker's runs; None: nothing was begun."""
    body = json.loads(entry)
    if "run" not in body:
        return None
    return Run(
        job_id=job_id,
        attempt=body["attempt"],
        id=body["run"],
        check=RunCheck(body["look"]),
        execution_timeout_ms=body["timeoutMs"],
        callback=body["callback"],
    )


class Runs(Part):
    """Runs that may occupy a worker's slots."""

    def record(self, run: Run, worker_id: str) -> None:
        """Records a run before it may begin, and each better way to check it."""
        entry = {
            "attempt": run.attempt,
            "run": run.id,
            "look": run.check,
            "timeoutMs": run.execution_timeout_ms,
            "callback": run.callback,
        }
        self._call("record_run", "", worker_id, run.job_id, run.attempt, json.dumps(entry))

    def clear(self, worker_id: str, job_id: str, attempt: int) -> None:
        """Frees the slot of a run that the worker has ended; the job has moved on before."""
        self._call("clear_run", "", worker_id, job_id, attempt)

    @redis_reads
    def get(self, worker_id: str, job_id: str, attempt: int) -> Run | None:
        """The recorded run of an attempt; None: there is none."""
        entry: Any = self._redis.hget(keys.runs(worker_id), f"{job_id}:{attempt}")
        return None if entry is None else decode_run(job_id, entry)

    @redis_reads
    def orphans(self, worker_id: str) -> list[tuple[str, int]]:
        """Job id and attempt of all runs that may occupy the worker."""
        names: Any = self._redis.hkeys(keys.runs(worker_id))
        parts = (name.rpartition(":") for name in names)
        return [(job_id, int(attempt)) for job_id, _, attempt in parts]

    def adopt(
        self,
        job_id: str,
        endpoint: str,
        attempt: int,
        worker_id: str,
        *,
        reason: str,
        lease_s: float,
    ) -> str:
        """Settles an attempt that an earlier node of a worker left, before the new node takes any job.

        Args:
            job_id: the job.
            endpoint: the worker's endpoint.
            attempt: the number of the attempt.
            worker_id: the worker.
            reason: the error of a job that ends here.
            lease_s: seconds for which the new node may take to claim the job.

        Returns:
            "resumed": the run can still bring its result, and this node adopts it. Otherwise the job is
            requeued, and the run's slot "waits" for the end of the run, or is "free" at once. "resumed" and
            "waits" are messages in the worker's own queue.
        """
        options = (self._result_ttl_s, reason, int(lease_s * 1000), endpoint)
        return str(self._call("adopt", "", job_id, attempt, worker_id, *options))

    def hand_over(
        self, job_id: str, attempt: int, worker_id: str, *, reason: str, lease_s: float
    ) -> JobStatus | None:
        """Ends a node's part in an attempt, because the node ends. A run that outlives the node is left to the worker's
        next node for ``lease_s`` seconds; any other job is requeued, and the attempt does not count.

        Returns:
            The job's state now; None if the job has moved on and nothing was changed.
        """
        options = (self._result_ttl_s, reason, int(lease_s * 1000))
        status = self._call("hand_over", "", job_id, attempt, worker_id, *options)
        return None if status is None else JobStatus(status)
