"""Sends the webhook of an ended job: a POST with the body of ``/status``, as RunPod does.

Times of later tries are in Redis (:mod:`ownpod.store.deliveries`), because a process that has them in memory
loses them when it ends.
"""

import hashlib
import hmac
import logging
import math
import time
import uuid

from ownpod.housekeeping.outbound import Outbound, Unanswered
from ownpod.rules.addresses import is_public
from ownpod.rules.backoff import backoff_s
from ownpod.settings import Settings
from ownpod.store.deliveries import Deliveries, Try
from ownpod.store.retry import until_available

log = logging.getLogger(__name__)

DEADLINE_S = 20.0
"""Seconds for a whole try. A third of the lease of a try, so that no try outlives its lease."""

STEADY_TRIES = 3
"""Number of tries with equal pauses between them; later pauses double. RunPod makes three tries, 10 s apart."""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The value of ``X-OwnPod-Signature``: HMAC-SHA256 of ``<timestamp>.<body>``, in hex."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def make_outbound(settings: Settings, *, deadline_s: float = DEADLINE_S) -> Outbound:
    """A sender that connects to the addresses which ``OWNPOD_WEBHOOK_ALLOW`` permits."""
    public_only = settings.webhook_allow == "public"
    return Outbound(
        allowed=is_public if public_only else lambda _address: True, deadline_s=deadline_s
    )


class Webhooks:
    """Sends webhooks, one try at a time.

    Args:
        deliveries: the webhooks that are due, and their leases.
        settings: number of tries, pauses and the secret.
        outbound: sends the POST; None: :func:`make_outbound`.
    """

    def __init__(
        self, deliveries: Deliveries, settings: Settings, outbound: Outbound | None = None
    ) -> None:
        self._deliveries = deliveries
        self._settings = settings
        self._outbound = make_outbound(settings) if outbound is None else outbound

    def send(self, job_id: str) -> None:
        """Makes one try of a job's webhook, if one is due and no other sender has its lease.

        Raises:
            RedisUnavailable: Redis was away for half a lease. The try is repeated after its lease has expired.
        """
        token, patience_s = uuid.uuid4().hex, self._deliveries.lease_s / 2
        made = until_available(lambda: self._deliveries.claim(job_id, token), longest_s=patience_s)
        if made is None:
            log.debug("job %s: no try of its webhook is due", job_id)
            return
        status, reason, cause = self._post(made)
        done = reason is None
        last = done or made.number >= self._settings.webhook_tries
        delivery = {
            "try": made.number,
            "timeMs": time.time_ns() // 1_000_000,
            "httpStatus": status,
            "error": reason,
        }
        written = until_available(
            lambda: self._deliveries.settle(
                made,
                delivery,
                again_s=None if last else self._pause_s(made.number),
                result="delivered" if done else "given_up" if last else "failed",
                result_ttl_s=self._settings.result_ttl_s,
            ),
            longest_s=patience_s,
        )
        if not written:
            log.info(
                "job %s: result of webhook try %d dropped: its lease had expired",
                job_id,
                made.number,
            )
        elif done:
            log.info("job %s: webhook delivered, try %d", job_id, made.number)
        else:
            what = "no more tries" if last else "will be retried"
            log.warning("job %s: webhook try %d failed (%s), %s", job_id, made.number, cause, what)

    def _pause_s(self, tries: int) -> float:
        return backoff_s(tries - STEADY_TRIES + 2, self._settings.webhook_delay_s, math.inf)

    def _post(self, made: Try) -> tuple[int | None, str | None, str | None]:
        """Sends the POST. Returns the HTTP status, and for a failure the reason for clients and the cause for the log."""
        body = made.job.answer_json().encode()
        headers = {"Content-Type": "application/json", "User-Agent": "OwnPod"}
        if made.request_id is not None:
            headers["X-Request-ID"] = made.request_id
        if self._settings.webhook_secret is not None:
            timestamp = str(int(time.time()))
            headers["X-OwnPod-Timestamp"] = timestamp
            headers["X-OwnPod-Signature"] = signature(
                self._settings.webhook_secret, timestamp, body
            )
        try:
            status = self._outbound.post(made.url, body, headers)
        except Unanswered as error:
            return None, error.reason, str(error)
        problem = None if 200 <= status < 300 else f"HTTP {status}"
        return status, problem, problem
