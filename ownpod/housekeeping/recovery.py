"""Makes good what Celery on Redis loses: messages of waiting jobs.

A node pops a message, then claims its job. One that is killed in between takes the message with it.
The record is the truth, so a waiting job without a message gets a new one. One too many does no
harm: the claim drops it.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from ownpod.errors import RedisUnavailable
from ownpod.store import keys
from ownpod.store.client import redis_errors
from ownpod.store.jobs import JobStore

log = logging.getLogger(__name__)

PAGE = 10_000
"""Messages read in one go: some 20 ms of Redis's time."""

LONGEST_PAUSE = 7
"""Rounds between two comparisons of a whole queue that found nothing lost: some minutes."""

AT_ONCE = 1000
"""Messages made anew by one round."""

LOOKS, LOOK_S = 5, 0.02
"""A message is on its way from a queue to its claim for a millisecond or two."""

_ID = re.compile(r'"correlation_id": "([^"]+)"')


class Recovery:
    """Compares what waits with what the queues hold.

    Costs some counts for each endpoint as long as they agree.

    Args:
        store: makes messages anew.
        endpoints: answers the ids of all endpoints.
        lease_s: how long a message may be on its way from a queue to its claim.
    """

    def __init__(
        self,
        store: JobStore,
        endpoints: Callable[[], Iterable[str]],
        *,
        lease_s: float,
    ) -> None:
        self._store = store
        self._redis = store.client
        self._messages = store.messages
        self.endpoints = endpoints
        self._lease_ms = int(lease_s * 1000)
        self._suspected: set[str] = set()
        self._rounds: dict[str, int] = {}
        """Of each endpoint that differs: rounds until its whole queue is compared again."""
        self._pauses: dict[str, int] = {}

    def once(self) -> int:
        """One round; answers how many messages were made anew.

        A difference is believed when it is seen twice: messages on their way are in no list.
        """
        made = 0
        for endpoint in self.endpoints():
            try:
                made += self._look_at(endpoint)
            except RedisUnavailable:
                raise
            except Exception:
                # A key of one endpoint that Redis cannot read must not stop the others' recovery.
                log.exception("endpoint %s: its lost messages were not searched", endpoint)
        return made

    @redis_errors
    def _look_at(self, endpoint: str) -> int:
        self._store.finish_purge(endpoint, reason="removed from the queue by a purge")
        if not self._differs(endpoint):
            self._suspected.discard(endpoint)
            self._rounds.pop(endpoint, None)
            self._pauses.pop(endpoint, None)
        elif endpoint not in self._suspected:
            self._suspected.add(endpoint)
        elif self._rounds.get(endpoint, 0) > 0:
            self._rounds[endpoint] -= 1
        else:
            return self._compare(endpoint)
        return 0

    def _compare(self, endpoint: str) -> int:
        """Republishes what is lost. If nothing is, the next comparison waits twice as many rounds, at
        most :data:`LONGEST_PAUSE`: it reads the whole queue.
        """
        made = self._republish(endpoint)
        pause = 0 if made else min(LONGEST_PAUSE, 2 * self._pauses.get(endpoint, 0) + 1)
        self._pauses[endpoint] = self._rounds[endpoint] = pause
        return made

    def _differs(self, endpoint: str) -> bool:
        """Fewer messages than jobs, for a while: under load there is always one on its way."""
        for _ in range(LOOKS):
            if not self._has_fewer(endpoint):
                return False
            time.sleep(LOOK_S)
        return True

    def _has_fewer(self, endpoint: str) -> bool:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.queued(endpoint))
            # Messages of cancelled jobs, which no job waits for.
            pipe.zcard(keys.left(endpoint))
            for name in self._messages.lists(endpoint):
                pipe.llen(name)
            waiting, left, *listed = pipe.execute()
        return bool(waiting > sum(listed) - left)

    def _republish(self, endpoint: str) -> int:
        old: Any = self._redis.zrange(
            keys.queued(endpoint), "-inf", self._store.now_ms() - self._lease_ms, byscore=True
        )
        left: Any = self._redis.zrange(keys.left(endpoint), 0, -1)
        listed = self._listed(endpoint)
        if gone := [job_id for job_id in left if job_id not in listed]:
            self._redis.zrem(keys.left(endpoint), *gone)
        missing = set(old) - listed
        made = 0
        for job_id in [job_id for job_id in old if job_id in missing][:AT_ONCE]:
            if self._store.republish(job_id, endpoint):
                log.warning("job %s: its message was lost, it has a new one", job_id)
                made += 1
        return made

    def _listed(self, endpoint: str) -> set[str]:
        """The jobs whose message is in one of the endpoint's lists."""
        found: set[str] = set()
        for name in self._messages.lists(endpoint):
            start = 0
            while True:
                page: Any = self._redis.lrange(name, start, start + PAGE - 1)
                found.update(match[1] for text in page if (match := _ID.search(text)))
                if len(page) < PAGE:
                    break
                start += PAGE
        return found
