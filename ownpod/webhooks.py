"""Calls a finished job's webhook, as RunPod does: a POST of what ``/status`` says.

When to try again stands in Redis (:data:`ownpod.keys.WEBHOOKS`), not in a process's memory.
"""

import hashlib
import hmac
import logging
import time

import requests

from ownpod.settings import Settings
from ownpod.store import JobStore

log = logging.getLogger(__name__)

TIMEOUT_S = (5, 15)
"""To connect, and for the answer."""

STEADY_TRIES = 3
"""After so many the pauses double. RunPod makes two more tries, 10 s apart."""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What ``X-OwnPod-Signature`` says: HMAC-SHA256, in hex, of ``<timestamp>.<body>``."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhooks:
    """Sends webhooks, one try at a time.

    Args:
        store: where the jobs are.
        settings: tries, pauses and the secret.
    """

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    def send(self, job_id: str) -> None:
        """One try of a job's webhook; says in the record how it went and when the next is due."""
        found = self._store.webhook_of(job_id)
        if found is None:
            # Retried under its own id, or its time is over.
            self._store.delivered(job_id, {}, again_s=None)
            return
        job, url, tries, request_id = found
        error, status = self._post(url, job.answer_json().encode(), request_id)
        done = error is None
        tries += 1
        last = done or tries >= self._settings.webhook_tries
        delivery = {
            "try": tries,
            "timeMs": time.time_ns() // 1_000_000,
            "httpStatus": status,
            "error": error,
        }
        self._store.delivered(
            job_id,
            delivery,
            again_s=None if last else self._pause_s(tries),
            result="delivered" if done else "given_up" if last else "failed",
        )
        if done:
            log.info("job %s: webhook delivered, try %d", job_id, tries)
        else:
            what = "given up" if last else "to be tried again"
            log.warning("job %s: webhook try %d failed (%s), %s", job_id, tries, error, what)

    def _pause_s(self, tries: int) -> float:
        return self._settings.webhook_delay_s * 2.0 ** max(0, tries - STEADY_TRIES + 1)

    def _post(self, url: str, body: bytes, request_id: str | None) -> tuple[str | None, int | None]:
        """What went wrong, if something did, and the HTTP status, if there was one."""
        headers = {"Content-Type": "application/json", "User-Agent": "OwnPod"}
        if request_id is not None:
            headers["X-Request-ID"] = request_id
        if self._settings.webhook_secret is not None:
            timestamp = str(int(time.time()))
            headers["X-OwnPod-Timestamp"] = timestamp
            headers["X-OwnPod-Signature"] = signature(
                self._settings.webhook_secret, timestamp, body
            )
        try:
            with requests.post(
                url,
                data=body,
                headers=headers,
                timeout=TIMEOUT_S,
                allow_redirects=False,
                stream=True,
            ) as response:
                if 200 <= response.status_code < 300:
                    return None, response.status_code
                return f"HTTP {response.status_code}", response.status_code
        except (requests.RequestException, ValueError) as error:
            return type(error).__name__, None
