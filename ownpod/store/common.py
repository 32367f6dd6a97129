"""What the parts of the store share: the constants of ``common.lua``, and reads of a record's fields."""

import logging
from collections.abc import Iterable
from typing import Any

import redis

from ownpod.rules.affinity import Affinity
from ownpod.rules.jobs import MOVES, Job, JobStatus
from ownpod.rules.managed import SERVING
from ownpod.rules.runs import LONGEST_MS
from ownpod.store import keys
from ownpod.store.messages import Templates, pieces
from ownpod.store.scripts import Scripts, constants

log = logging.getLogger(__name__)

RECENT = 10_000
"""Number of jobs that ``/requests`` can list, for each endpoint."""

ATTEMPTS_LOGGED = 20
"""Number of requeued and lost attempts that a job's log keeps: enough to see what happened."""

_MINUTE = 60_000
BUCKETS_MS: tuple[int, ...] = (
    *(5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000),
    *(_MINUTE, 5 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE, 60 * _MINUTE),
)
"""Upper ends, in ms, of the histograms' buckets."""

WEBHOOK_LEASE_MS = 60_000
"""Ms until the sweep checks a webhook's message again, and until a try that ended without a result is
repeated; longer than a try may take."""

WEBHOOK_KEPT_S = 86_400
"""Seconds for which a record is kept at least while its webhook is owed; they are counted from the job's end, and again from each
time that the webhook is due or tried."""

CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of chunks that are kept of a job. An endless generator must not fill Redis, because at its ``maxmemory``
Redis refuses every job."""

BROKEN_MS = 60_000
"""Ms until a record that cannot be read is read again, because it must not delay the others."""

LREM_MOST = 10_000
"""Number of messages that a cancel compares at most, in some 1 ms, to find its own; see ``common.lua``."""

CALL_TOKEN_BYTES, CALLS_KEPT = 4, 4
"""Random bytes in the token of a call that adds chunks, and number of tokens that a record keeps."""

PINNED_PAUSE_MS, PINNED_PAUSE_MOST_MS = 1000, 10_000
"""Ms until a requeued pinned job has a message again after its first attempt, and at most. The pause doubles with each
attempt."""

PREFER_MS = 1000
"""Ms for which a job waits for the worker that it prefers; then it waits in the endpoint's queue."""

RETRIED = (
    *("endpoint", "input", "s3_config", "webhook", "execution_timeout_ms", "ttl_ms"),
    *("low_priority", "max_attempts", "request_id", "description", "queue", "affinity"),
    *("private", "movable", "task", "owner", "stays", "hops"),
)
"""Fields that a retry copies into the new record."""

ANSWER_BYTES = 16_384
"""Bytes of output and error up to which the notice of a job's end has both, and of a chunk up to which its notice has it; what
is longer is read from the record."""

RUNS_KEPT_S = 8 * 86_400
"""Seconds after a worker's last job until its runs are forgotten; no job runs longer."""


def common_constants(messages: Templates) -> str:
    """Lua in front of ``common.lua``."""
    normal, low = messages.priorities
    return constants(
        S={status.value: status.value for status in JobStatus},
        MOVES={old.value: {new.value: True for new in sorted(MOVES[old])} for old in JobStatus},
        JOB=keys.JOB,
        ENDPOINT=keys.ENDPOINT,
        CHUNKS=keys.CHUNKS,
        JOURNAL=keys.JOURNAL,
        RUNS=keys.RUNS,
        LEASES=keys.LEASES,
        EXPIRIES=keys.EXPIRIES,
        WEBHOOKS=keys.WEBHOOKS,
        WAITING=keys.WAITING,
        DELAYED=keys.DELAYED,
        PREFERRING=keys.PREFERRING,
        PREFER_MS=PREFER_MS,
        SOFT=Affinity.SOFT.value,
        MANAGED=keys.MANAGED,
        MANAGED_IDLE=keys.MANAGED_IDLE,
        NOTICES=keys.MANAGED_NOTICES,
        SERVES={phase.value: True for phase in SERVING},
        QUEUE_PREFIX=messages.queue_prefix,
        LOW_SUFFIX=messages.low_suffix,
        NORMAL_PRIORITY=normal,
        LOW_PRIORITY=low,
        JOB_MESSAGE=pieces(messages.job),
        AWAIT_MESSAGE=pieces(messages.await_run),
        WEBHOOK_LIST=messages.webhook_list,
        WEBHOOK_MESSAGE=pieces(messages.webhook),
        WEBHOOK_LEASE_MS=WEBHOOK_LEASE_MS,
        WEBHOOK_KEPT_S=WEBHOOK_KEPT_S,
        RECENT=RECENT,
        ATTEMPTS_LOGGED=ATTEMPTS_LOGGED,
        BUCKETS_MS=BUCKETS_MS,
        LONGEST_MS=LONGEST_MS,
        CHUNK_BYTES=CHUNK_BYTES,
        CALLS_LENGTH=CALLS_KEPT * (2 * CALL_TOKEN_BYTES + 1),
        BROKEN_MS=BROKEN_MS,
        LREM_MOST=LREM_MOST,
        PINNED_PAUSE_MS=PINNED_PAUSE_MS,
        PINNED_PAUSE_MOST_MS=PINNED_PAUSE_MOST_MS,
        RUNS_KEPT_S=RUNS_KEPT_S,
        RETRIED=RETRIED,
        ANSWER_BYTES=ANSWER_BYTES,
        ANSWER=Job.FIELDS,
    )


class Part:
    """One noun of :class:`ownpod.store.store.Store`: its commands and its reads.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        call: runs a command.
        messages: the templates of messages, and the names of Celery's lists.
        result_ttl_s: seconds for which a finished job's record is kept.
    """

    def __init__(
        self, client: redis.Redis, call: Scripts, messages: Templates, *, result_ttl_s: int
    ) -> None:
        self._redis = client
        self._call = call
        self._messages = messages
        self._result_ttl_s = result_ttl_s


def fields(client: redis.Redis, job_id: str, *names: str) -> list[str | None]:
    """Values of fields of a job's record; None for a missing field."""
    values: Any = client.hmget(keys.job(job_id), names)
    return list(values)


def log_broken(ids: Iterable[str]) -> None:
    """Logs records that a command could not read."""
    for job_id in ids:
        log.error("job %s: its record cannot be read, it is left out for a while", job_id)
