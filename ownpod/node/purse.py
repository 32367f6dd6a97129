"""The money of a cloud worker, as its driver and its breaker use it."""

import logging
import time

from ownpod.rules.overflow import (
    WARN_PERCENT,
    CloudSpec,
    amount,
    cost_micro,
    p95_ms,
    reserve_micro,
)
from ownpod.store.budgets import Booked, Budgets
from ownpod.store.retry import patient, until_available
from ownpod.store.store import Store

log = logging.getLogger(__name__)

P95_TTL_S = 60.0
"""Seconds for which the percentile of the endpoint's execution times is cached."""


class Purse:
    """Reserves money for runs, and settles it. Implements :class:`ownpod.workers.Purse`.

    Args:
        store: the jobs.
        endpoint: the worker's endpoint.
        worker_id: the worker.
        cloud: its prices and budget.
    """

    def __init__(self, store: Store, endpoint: str, worker_id: str, cloud: CloudSpec) -> None:
        self._store = store
        self._budgets = patient(Budgets(store.client))
        self._endpoint = endpoint
        self._worker_id = worker_id
        self._cloud = cloud
        self._p95: int | None = None
        self._p95_until = 0.0

    def estimate(self, execution_timeout_ms: int) -> int:
        """What is reserved for a job, in micro-units. Raises: RedisUnavailable."""
        if self._p95_until <= time.monotonic():
            found = self._store.figures.stats(self._endpoint).execution
            self._p95 = p95_ms(found.buckets, found.ends)
            self._p95_until = time.monotonic() + P95_TTL_S
        return reserve_micro(execution_timeout_ms, self._p95, self._cloud.price_micro_per_s)

    def reserve(self, run: str, execution_timeout_ms: int) -> bool:
        money = until_available(lambda: self.estimate(execution_timeout_ms))
        limit = self._cloud.budget_micro_per_day
        booked = self._budgets.reserve(self._worker_id, run, money, limit=limit)
        self._warn(booked)
        return booked.done

    def settle(self, run: str, ran_ms: int | None) -> None:
        price, limit = self._cloud.price_micro_per_s, self._cloud.budget_micro_per_day
        cost = None if ran_ms is None else cost_micro(ran_ms, price)
        self._warn(self._budgets.settle(self._worker_id, run, cost, limit=limit))

    def keep(self, job_id: str) -> None:
        patient(self._store).overflow.keep(job_id)

    def _warn(self, booked: Booked) -> None:
        if booked.warns:
            log.warning(
                "worker %s has spent or reserved %d %% of the day's budget of %s",
                self._worker_id,
                WARN_PERCENT,
                amount(self._cloud.budget_micro_per_day or 0),
            )
