"""The probe of a managed worker that is pushed to: its first success makes the worker ready."""

import logging
from collections.abc import Callable

from ownpod.errors import RedisUnavailable

log = logging.getLogger(__name__)


class FirstProbe:
    """A worker's probe that reports its first success, once.

    Args:
        probe: the driver's probe, which raises WorkerUnavailable.
        report: records that the worker is ready; may raise RedisUnavailable.
    """

    def __init__(self, probe: Callable[[], None], report: Callable[[], object]) -> None:
        self._probe = probe
        self._report = report
        self._reported = False

    def __call__(self) -> None:
        """Probes the worker. Raises: WorkerUnavailable."""
        self._probe()
        if self._reported:
            return
        try:
            self._report()
        except RedisUnavailable as error:
            # The next probe reports it: an error here would end the node's thread.
            log.warning("the worker is ready, which is not recorded yet: %s", error)
        else:
            self._reported = True
