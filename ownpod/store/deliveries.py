"""Webhooks that are owed, in Redis: when the next try is due, and which sender makes it.

A try is claimed as a job is: it is owed, no other sender has its lease, and the claim's token fences the
result. Every change is one call of ``deliveries.lua``; times are Redis's clock. Any call raises
:class:`~ownpod.errors.RedisUnavailable`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from ownpod.rules.jobs import Job, JobStatus
from ownpod.store import keys
from ownpod.store.common import WEBHOOK_KEPT_S, WEBHOOK_LEASE_MS
from ownpod.store.messages import Templates
from ownpod.store.scripts import Scripts, constants

REPEATABLE = frozenset({"claim", "settle", "due", "shorten"})
"""Commands of ``deliveries.lua`` that may be executed twice: their token fences the second time, and a
message too many is dropped by the claim."""


@dataclass(frozen=True)
class Try:
    """One try of a finished job's webhook, leased to the sender that claimed it."""

    token: str
    """Unique for each claim; :meth:`Deliveries.settle` writes nothing under a token that was replaced."""
    job: Job
    url: str
    number: int
    """From 1."""
    request_id: str | None
    """The client's ``X-Request-ID``."""


@dataclass(frozen=True)
class Due:
    """Job ids: webhooks that got a message for their next try, and owed ones whose record is gone."""

    queued: list[str]
    gone: list[str]


class Deliveries:
    """The webhooks that are owed.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        messages: has the template of the webhook task's message.
        lease_s: s after which a try without a result is made again; longer than a try takes.
    """

    def __init__(
        self,
        client: redis.Redis,
        messages: Templates,
        *,
        lease_s: float = WEBHOOK_LEASE_MS / 1000,
    ) -> None:
        self.lease_s = lease_s
        self._script = Scripts(
            client,
            "deliveries.lua",
            constants=constants(
                JOB=keys.JOB,
                ENDPOINT=keys.ENDPOINT,
                WEBHOOKS=keys.WEBHOOKS,
                WEBHOOK_LIST=messages.webhook_list,
                WEBHOOK_MESSAGE=messages.webhook,
                ENDED={status.value: True for status in JobStatus if status.terminal},
                ANSWER=Job.FIELDS,
                LEASE_MS=int(lease_s * 1000),
                KEPT_S=WEBHOOK_KEPT_S,
            ),
            repeatable=REPEATABLE,
        )

    def _call(self, command: str, *arguments: str | float) -> Any:
        return self._script(command, *arguments)

    def claim(self, job_id: str, token: str) -> Try | None:
        """Leases the next try of a job's webhook, for ``lease_s`` from now on.

        May be repeated with the same token. None: no try is owed now, or another sender has its lease.
        """
        found = self._call("claim", job_id, token)
        if found is None:
            return None
        url, tries, request_id, *record = found
        return Try(
            token=token,
            job=Job.from_record(record),
            url=url,
            number=int(tries) + 1,
            request_id=request_id,
        )

    def settle(
        self,
        made: Try,
        delivery: Mapping[str, Any],
        *,
        again_s: float | None,
        result: str,
        result_ttl_s: int,
    ) -> bool:
        """Writes the result of a try into the job's log, and counts it. May be repeated.

        Args:
            made: the try.
            delivery: the entry of the log.
            again_s: s until the next try; None: this was the last one.
            result: "delivered", "failed" or "given_up".
            result_ttl_s: s that the job's record stays after the last try.

        Returns:
            False: the lease ran out and another sender claimed the try, or the job was retried under
            its own id. Nothing was written.
        """
        pause = "" if again_s is None else int(again_s * 1000)
        arguments = (made.token, json.dumps(delivery), pause, result_ttl_s, result)
        return bool(self._call("settle", made.job.id, *arguments))

    def due(self, *, limit: int) -> Due:
        """Publishes a message for each try that is due, unless one is in the queue already."""
        queued, gone = self._call("due", limit)
        return Due(list(queued), list(gone))

    def shorten_ttl(self, job_id: str, ttl_ms: int) -> None:
        """Lets a finished job's record expire after ``ttl_ms``, if that is sooner than it would.

        While its webhook is owed the record stays, and expires ``ttl_ms`` after the last try.
        """
        self._call("shorten", job_id, ttl_ms)
