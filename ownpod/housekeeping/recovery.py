"""Republishes what Celery on Redis loses: messages of waiting jobs.

A node pops a message, then claims its job; a node that is killed in between takes the message with it.
The record is the truth, so a waiting job without a message gets another one, in the queue where it waits.
A message too many does no harm, because the claim drops it.
"""

import logging
import time
from collections.abc import Callable, Iterable

from ownpod.errors import RedisUnavailable
from ownpod.store.store import Store

log = logging.getLogger(__name__)

LONGEST_PAUSE = 7
"""Number of rounds between two comparisons of a whole queue that found nothing lost: some minutes."""

AT_ONCE = 1000
"""Number of messages that one round republishes, for each queue."""

CHECKS, CHECK_INTERVAL_S = 5, 0.02
"""Number of counts, and seconds between two. A message needs a millisecond or two from a queue to its claim, and is in no
list meanwhile."""


class Recovery:
    """Compares the jobs that wait with the messages in the queues.

    While both numbers agree, a round costs some counts for each endpoint.

    Args:
        store: job records and queues.
        endpoints: returns the ids of all endpoints.
        lease_s: seconds for which a message may be on its way from a queue to its claim.
    """

    def __init__(
        self, store: Store, endpoints: Callable[[], Iterable[str]], *, lease_s: float
    ) -> None:
        self._queue = store.queue
        self.endpoints = endpoints
        self._lease_ms = int(lease_s * 1000)
        self._suspected: dict[str, set[str]] = {}
        """Of each endpoint: queues that had fewer messages than jobs in the last round."""
        self._rounds: dict[str, int] = {}
        """Of each queue that differs: rounds until the whole queue is compared again."""
        self._pauses: dict[str, int] = {}

    def once(self) -> int:
        """One round; returns how many messages were republished.

        A queue is compared only if it had fewer messages than jobs in two rounds, because messages on their way are
        in no list.
        """
        made = 0
        for endpoint in self.endpoints():
            try:
                made += self._check(endpoint)
            except RedisUnavailable:
                raise
            except Exception:
                # A key of one endpoint that Redis cannot read must not stop the others' recovery.
                log.exception("endpoint %s: its lost messages were not searched", endpoint)
        return made

    def _check(self, endpoint: str) -> int:
        self._queue.finish_purge(endpoint, reason="removed from the queue by a purge")
        made, before = 0, self._suspected.pop(endpoint, set())
        now = self._suspected.setdefault(endpoint, set())
        for queue in self._queue.names(endpoint):
            if not self._differs(endpoint, queue):
                continue
            now.add(queue)
            if queue not in before:
                continue
            if self._rounds.get(queue, 0) > 0:
                self._rounds[queue] -= 1
            else:
                made += self._compare(endpoint, queue)
        for queue in before - now:
            self._rounds.pop(queue, None)
            self._pauses.pop(queue, None)
        return made

    def _differs(self, endpoint: str, queue: str) -> bool:
        """Whether all of several counts differ: under load some message is always on its way."""
        for _ in range(CHECKS):
            if not self._queue.lacks_messages(endpoint, queue):
                return False
            time.sleep(CHECK_INTERVAL_S)
        return True

    def _compare(self, endpoint: str, queue: str) -> int:
        """Republishes the lost messages of a queue. If there are none, the next comparison waits twice as many
        rounds, at most :data:`LONGEST_PAUSE`, because it reads the whole queue.
        """
        made = 0
        lost = self._queue.without_message(endpoint, queue, age_ms=self._lease_ms)
        for job_id in lost[:AT_ONCE]:
            if self._queue.republish(job_id, endpoint, queue):
                log.warning("job %s: its message was lost, it has a new one", job_id)
                made += 1
        pause = 0 if made else min(LONGEST_PAUSE, 2 * self._pauses.get(queue, 0) + 1)
        self._pauses[queue] = self._rounds[queue] = pause
        return made
