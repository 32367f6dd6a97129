"""Detects a node that is alive and fetches nothing, as Celery on Redis may be after a reconnect. Pure."""


class StallWatch:
    """Checks a node again and again. Times are seconds on the monotonic clock.

    Args:
        patience_s: longest time for which messages may wait that the node could fetch. The broker gives a message
            to a waiting node at once, so a few seconds are enough.
        silence_s: longest time without a turn of the event loop; longer than Celery's slowest reconnect.
    """

    def __init__(self, *, patience_s: float, silence_s: float) -> None:
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._since: float | None = None
        self._begun = 0

    def check(
        self, now: float, *, could_fetch: bool, waiting: int, begun: int, ticked: float
    ) -> str | None:
        """Why the node must be replaced; None: it works.

        Args:
            now: the time.
            could_fetch: the node wants messages and has a free slot.
            waiting: number of messages in its queues.
            begun: number of attempts that the node has ever begun.
            ticked: time of the last turn of its event loop.
        """
        if now - ticked > self._silence_s:
            return f"its event loop has been silent for {now - ticked:.0f} s"
        if not could_fetch or not waiting or begun != self._begun:
            self._since, self._begun = None, begun
            return None
        if self._since is None:
            self._since = now
        if now - self._since > self._patience_s:
            return f"it fetched nothing for {now - self._since:.0f} s beside waiting jobs"
        return None
