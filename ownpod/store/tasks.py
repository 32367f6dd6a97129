"""Runs of one-off tasks in Redis, between a task worker's node and its agent; the commands are in ``tasks.lua``.

The node begins a run and waits for its result; the agent starts the container, keeps what it writes, and stores the
result. Neither calls the other, so each may be killed and replaced at any time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import redis

from ownpod.rules.jobs import JobStatus
from ownpod.rules.task_ending import Ending
from ownpod.rules.task_lines import Chunk, Entry, Final, Item, json_text
from ownpod.rules.task_runs import TaskRun, TaskState
from ownpod.store import keys
from ownpod.store.client import redis_errors, redis_reads
from ownpod.store.common import CHUNK_BYTES
from ownpod.store.journal import JOURNAL_CONSTANTS, OTHER_CONSTANTS
from ownpod.store.loads import broken_managed, check_worker_id
from ownpod.store.outputs import Place
from ownpod.store.scripts import Scripts, constants

KEPT_MS = 8 * 86_400_000
"""Ms for which a run is kept at most; no job runs longer."""

MOST_CHUNKS = 1000
"""Number of chunks that are read at a time for a task's output."""


class Kept(Enum):
    """What became of a part of a task's output."""

    YES = 1
    CONFLICT = 0
    """Another agent has kept a part since."""
    OVER = -1
    """The job does not run this attempt any more."""
    TOO_MUCH = -2
    """The job has as many bytes of chunks as are kept of one."""


@dataclass(frozen=True)
class Task:
    """A run as its agent sees it.

    Attributes:
        run: the run that the worker's node has begun; None: none yet.
        container: the run whose container there may be; "": there is none.
        began: the container of ``run`` may have been started.
        ran: it was started.
        stop: why it is to be stopped; "": it is not.
        is_over: its job does not run this attempt any more.
        has_result: its result is stored.
    """

    run: TaskRun | None = None
    container: str = ""
    began: bool = False
    ran: bool = False
    stop: str = ""
    is_over: bool = False
    has_result: bool = False


class TaskRuns:
    """The commands and reads of ``tasks.lua``'s keys. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = Scripts(
            client,
            *("journal.lua", "tasks.lua"),
            constants=JOURNAL_CONSTANTS
            + OTHER_CONSTANTS
            + constants(
                MANAGED=keys.MANAGED,
                TASK=keys.TASK,
                NOTICES=keys.MANAGED_NOTICES,
                CHUNK_BYTES=CHUNK_BYTES,
                KEPT_MS=KEPT_MS,
            ),
            repeatable=("begin", "stop", "launch", "launched", "append", "done", "cleared"),
        )

    @broken_managed
    @redis_errors
    def _call(self, command: str, worker_id: str, run: str, *arguments: str | float) -> Any:
        check_worker_id(worker_id)
        return self._script(command, worker_id, run, *arguments)

    # The node's part.

    def begin(self, worker_id: str, run: str) -> bool:
        """The worker's agent is to start the container of this run. False: the worker takes no run now."""
        return bool(self._call("begin", worker_id, run))

    def stop(self, worker_id: str, run: str, reason: str) -> bool:
        """The container of this run is to be stopped. False: it has ended, or is not the worker's any more."""
        return bool(self._call("stop", worker_id, run, reason))

    @broken_managed
    @redis_reads
    def state(self, worker_id: str) -> TaskState:
        """The worker's phase and its run, for its node."""
        check_worker_id(worker_id)
        with self._redis.pipeline() as pipe:
            pipe.hmget(keys.managed(worker_id), "phase", "reason")
            pipe.hmget(keys.task(worker_id), "run", "result")
            (phase, reason), (run, result) = pipe.execute()
        return TaskState(
            phase=phase or "",
            reason=reason or "",
            run=run or "",
            ending=Ending.read(result) if result else None,
        )

    # The agent's part.

    @broken_managed
    @redis_reads
    def tasks(self, worker_ids: Sequence[str]) -> dict[str, Task]:
        """The runs of workers, by the workers' ids."""
        names = ("run", "container", "began", "ran", "stop", "result")
        with self._redis.pipeline() as pipe:
            for worker_id in worker_ids:
                check_worker_id(worker_id)
                pipe.hmget(keys.task(worker_id), *names)
            found = pipe.execute()
        runs = [TaskRun.read(values[0] or "") for values in found]
        with self._redis.pipeline() as pipe:
            for run in runs:
                if run is not None:
                    pipe.hmget(keys.job(run.job_id), "status", "attempt")
            jobs = iter(pipe.execute())
        tasks = {}
        for worker_id, run, values in zip(worker_ids, runs, found, strict=True):
            alive = run is not None and next(jobs) == [JobStatus.IN_PROGRESS, str(run.attempt)]
            _, container, began, ran, stop, result = values
            tasks[worker_id] = Task(
                run=run,
                container=container or "",
                began=bool(began),
                ran=bool(ran),
                stop=stop or "",
                is_over=not alive,
                has_result=result is not None,
            )
        return tasks

    @broken_managed
    @redis_reads
    def input(self, job_id: str) -> str:
        """A job's input, JSON text; "null" if the job is gone."""
        found: Any = self._redis.hget(keys.job(job_id), "input")
        return found or "null"

    def launch(self, worker_id: str, host: str, run: TaskRun) -> bool:
        """Whether the host may start the container of this run now; no container of an earlier run may be left."""
        return bool(self._call("launch", worker_id, run.id, host, run.job_id, run.attempt))

    def launched(self, worker_id: str, run: TaskRun, entries: Sequence[Entry] = ()) -> None:
        """The container runs: it is started no second time. The entries go to the job's journal once."""
        pairs = [part for e in entries for part in (e.event, json_text(e.data))]
        self._call("launched", worker_id, run.id, run.job_id, run.attempt, *pairs)

    @broken_managed
    @redis_reads
    def place(self, worker_id: str) -> Place:
        """How far the output of the worker's run is kept."""
        check_worker_id(worker_id)
        values: Any = self._redis.hmget(keys.task(worker_id), "batch", "position", "state")
        return Place(*(value or "" for value in values))

    def append(
        self, worker_id: str, run: TaskRun, items: Sequence[Item], before: str, place: Place
    ) -> Kept:
        """Keeps what a part of the output has brought, and how far it is kept, in one step.

        Args:
            worker_id: the worker.
            run: its run.
            items: chunks and entries of the journal, in order. Of several outputs the last counts.
            before: the batch of the last call.
            place: how far the output is kept with these; its batch names this call.
        """
        final, pairs = "", list[str]()
        for item in items:
            match item:
                case Chunk():
                    pairs += ("chunk", item.text)
                case Entry():
                    pairs += (item.event, json_text(item.data))
                case Final():
                    final = item.output
        at = (before, place.batch, place.position, place.state, final)
        return Kept(self._call("append", worker_id, run.id, run.job_id, run.attempt, *at, *pairs))

    @broken_managed
    @redis_reads
    def final(self, worker_id: str) -> str:
        """The output that the task has written, JSON text; "": none."""
        check_worker_id(worker_id)
        found: Any = self._redis.hget(keys.task(worker_id), "final")
        return found or ""

    @broken_managed
    @redis_reads
    def chunks(self, job_id: str, most_bytes: int) -> list[str]:
        """The first chunks of a job, JSON texts, until they have more than ``most_bytes`` together."""
        found, size = list[str](), 0
        while size <= most_bytes:
            part: Any = self._redis.lrange(
                keys.chunks(job_id), len(found), len(found) + MOST_CHUNKS - 1
            )
            if not part:
                break
            found += part
            size += sum(map(len, part))
        return found

    def done(self, worker_id: str, run: TaskRun, ending: Ending) -> bool:
        """Stores a run's result. False: it has another one, or is not the worker's any more."""
        event = {**ending.event(), "worker_id": worker_id, "attempt": run.attempt}
        code = "" if ending.exit_code is None else ending.exit_code
        values = (ending.text(), code, ending.code, json.dumps(event))
        return bool(self._call("done", worker_id, run.id, run.job_id, run.attempt, *values))

    def cleared(self, worker_id: str, run: str) -> None:
        """Nothing is left of the container of a run."""
        self._call("cleared", worker_id, run)

    @redis_errors
    def started(self, worker_id: str) -> None:
        """The worker can take a job: its node probes it now."""
        self._redis.publish(keys.task(worker_id), "@worker started")
