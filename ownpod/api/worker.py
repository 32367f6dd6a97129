"""gunicorn's thread worker, for clients that send one request after the other."""

from typing import Any

from gunicorn.workers.gthread import ThreadWorker
from urllib3.util import wait_for_read

PROMPT_S = 0.002
"""So long a thread waits for its client's next request, before the connection goes back to the poller."""


class PromptWorker(ThreadWorker):  # type: ignore[misc]
    """A next request that comes at once is answered by the same thread.

    gunicorn 27 hands each connection from its main thread to another and back, for each request: some
    0.1 ms, and as much of the process's time again.
    """

    def handle(self, conn: Any) -> Any:
        """Requests of one connection; answers what becomes of that, as gunicorn's own does."""
        kept = super().handle(conn)
        while kept is True and self.alive and wait_for_read(conn.sock, PROMPT_S):
            kept = super().handle(conn)
        return kept
