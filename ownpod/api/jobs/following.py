"""What a running job's handler yields, as it comes: from the notices of chunks, and from Redis where these do not have all."""

from dataclasses import replace

from ownpod.store.chunks import Chunks, Stream
from ownpod.store.notices import Wait


class Following:
    """One reader of a job's chunks.

    Args:
        chunks: reads Redis.
        job_id: the job.
        endpoint: its endpoint.
        wait: the reader's subscription, of every event and not of the end only.
    """

    def __init__(self, chunks: Chunks, job_id: str, endpoint: str, wait: Wait) -> None:
        self._chunks, self._job_id, self._endpoint, self._wait = chunks, job_id, endpoint, wait
        self._last: Stream | None = None

    def read(self, start: tuple[int, int]) -> Stream:
        """The chunks from attempt and index ``start`` on, see :meth:`ownpod.store.chunks.Chunks.stream`.

        Raises:
            JobNotFound: the endpoint has no such job.
            RedisUnavailable: Redis does not answer.
        """
        # They are taken before Redis is read: what happens in between is in both.
        noticed = _following(self._wait.chunks(), start)
        if noticed and self._last is not None:
            return replace(self._last, start=start[1], chunks=noticed)
        self._last = self._chunks.stream(self._job_id, self._endpoint, start)
        return self._last


def _following(notices: list[str], start: tuple[int, int]) -> list[str]:
    """The chunks of notices that continue a stream at ``start``; []: Redis has to be read."""
    found: list[str] = []
    for notice in notices:
        attempt, index, text = notice.split(" ", 2)
        place = int(index) - start[1]
        if int(attempt) != start[0] or place > len(found):
            return []
        if place == len(found):
            found.append(text)
    return found
