"""Owed webhooks in Redis: the time at which each next try is due, and the lease of the sender that makes it.

A sender claims a try as a node claims a job: the try is due, no other sender has its lease, and the claim's token
fences the result. Each change is one call of ``deliveries.lua``, with Redis's clock. Every method raises
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
"""Commands of ``deliveries.lua`` that may be executed twice: the token fences the second execution, and the claim
drops a second message."""


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
    """Job ids. ``queued``: a message for the next try was published. ``gone``: the webhook is owed, but the job's record
    has expired.
    """

    queued: list[str]
    gone: list[str]


class Deliveries:
    """The owed webhooks.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        messages: has the template of the webhook task's message.
        lease_s: seconds after which a try without a result is repeated; longer than the longest try.
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
                WEBHOOK_MESSAGE=messages.webhook.split("@job@"),
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
        """Acquires the lease of the next try of a job's webhook, for ``lease_s``. May be repeated with the same token.

        None: no try is due, or another sender has its lease.
        """
        reply = self._call("claim", job_id, token)
        if reply is None:
            return None
        url, tries, request_id, *record = reply
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
        """Adds the result of a try to the job's log, and counts it. May be repeated.

        Args:
            made: the try.
            delivery: the entry of the log.
            again_s: seconds until the next try; None: this was the last try.
            result: "delivered", "failed" or "given_up".
            result_ttl_s: seconds for which the job's record is kept after the last try.

        Returns:
            False: nothing was written, because the lease expired and another sender claimed the try, or because
            the job was retried under its own id.
        """
        pause = "" if again_s is None else int(again_s * 1000)
        arguments = (made.token, json.dumps(delivery), pause, result_ttl_s, result)
        return bool(self._call("settle", made.job.id, *arguments))

    def due(self, *, limit: int) -> Due:
        """Publishes a message for each try that is due and has no message in the queue; at most ``limit``."""
        queued, gone = self._call("due", limit)
        return Due(list(queued), list(gone))

    def shorten_ttl(self, job_id: str, ttl_ms: int) -> None:
        """Makes an ended job's record expire in ``ttl_ms``, unless it expires sooner.

        If the job's webhook is owed, the record expires ``ttl_ms`` after the last try, because each try reads the
        record.
        """
        self._call("shorten", job_id, ttl_ms)
