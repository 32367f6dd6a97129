"""The metrics of cloud workers: what they have spent and reserved on the present day of UTC."""

from collections.abc import Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.overflow import MICRO
from ownpod.store.budgets import Budgets


def overflow_metrics(workers: Sequence[WorkerSpec], budgets: Budgets) -> tuple[Metric, ...]:
    """The metrics of those workers that are cloud workers, in units of the currency of their prices."""
    labels = ["endpoint", "worker"]
    spent = GaugeMetricFamily(
        "ownpod_overflow_spent", "Money that a cloud worker's runs have cost today", labels=labels
    )
    reserved = GaugeMetricFamily(
        "ownpod_overflow_reserved",
        "Money reserved for a cloud worker's present runs",
        labels=labels,
    )
    budget = GaugeMetricFamily(
        "ownpod_overflow_budget", "A cloud worker's budget for a day, if it has one", labels=labels
    )
    found = [worker for worker in workers if worker.cloud is not None]
    money = budgets.spent([worker.id for worker in found])
    for worker in found:
        labelled = [worker.endpoint, worker.id]
        spent.add_metric(labelled, money[worker.id].spent / MICRO)
        reserved.add_metric(labelled, money[worker.id].reserved / MICRO)
        limit = None if worker.cloud is None else worker.cloud.budget_micro_per_day
        if limit is not None:
            budget.add_metric(labelled, limit / MICRO)
    return spent, reserved, budget
