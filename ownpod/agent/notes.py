"""What an agent logs once, although each of its turns finds it again."""

import logging

log = logging.getLogger("ownpod.agent.agent")

MOST_NOTED = 200
"""Number of problems of single workers that are logged."""


class Notes:
    """The problems of one agent."""

    def __init__(self) -> None:
        self._problem = ""
        self._noted = set[str]()

    def say(self, problem: str) -> None:
        """Logs why the agent does nothing; "": it works."""
        if problem and problem != self._problem:
            log.warning("%s", problem)
        elif self._problem and not problem:
            log.info("the agent works again")
        self._problem = problem

    def worker(self, worker_id: str, error: Exception) -> None:
        """Logs the problem of one worker."""
        line = f"worker {worker_id[:100]!r}: {error}"
        if line not in self._noted and len(self._noted) < MOST_NOTED:
            self._noted.add(line)
            log.error("%s", line)
