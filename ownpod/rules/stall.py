"""Notices a node that looks alive and fetches nothing: known of Celery on Redis after reconnects."""


class StallWatch:
    """Looks at a node again and again. Pure: time comes in, in s on the monotonic clock.

    Args:
        patience_s: how long a node may leave messages lie that it could fetch. The broker gives one
            to a waiting node at once, so anything beyond a few seconds is no coincidence.
        silence_s: how long its event loop may be silent; longer than Celery's slowest reconnect.
    """

    def __init__(self, *, patience_s: float, silence_s: float) -> None:
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._since: float | None = None
        self._begun = 0

    def look(
        self, now: float, *, could_fetch: bool, waiting: int, begun: int, ticked: float
    ) -> str | None:
        """Why the node must be replaced; None: it need not.

        Args:
            now: the time.
            could_fetch: it wants messages and has a free slot.
            waiting: messages in its queues.
            begun: attempts it has ever begun.
            ticked: when its event loop last turned.
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
