"""What cloud workers have spent and reserved, by day of UTC on Redis's clock; the commands are in ``budgets.lua``."""

from collections.abc import Sequence
from dataclasses import dataclass

import redis

from ownpod.rules.overflow import WARN_PERCENT, Spent
from ownpod.store import keys
from ownpod.store.scripts import Scripts, constants

DAY_MS = 86_400_000

KEPT_S = 8 * 86_400
"""Seconds for which a day's figures are kept: longer than a run can last."""


@dataclass(frozen=True)
class Booked:
    """The answer to a reservation or its settlement.

    Attributes:
        done: the reservation was made, or settled now.
        warns: the day's total has reached :data:`ownpod.rules.overflow.WARN_PERCENT` of the budget, for the first time.
    """

    done: bool
    warns: bool


class Budgets:
    """Reservations of cloud workers, in micro-units. A run is named by "<job id>:<attempt>".

    Every call may be repeated: a run is reserved once, and settled once.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._script = Scripts(
            client,
            "budgets.lua",
            constants=constants(
                BUDGET=keys.BUDGET, DAY_MS=DAY_MS, KEPT_S=KEPT_S, WARN_PERCENT=WARN_PERCENT
            ),
            repeatable=("reserve", "settle"),
        )

    def reserve(self, worker_id: str, run: str, micro: int, *, limit: int | None) -> Booked:
        """Reserves money of the present day for a run, if the day's ``limit`` has room for it; None: there is no limit."""
        done, warns = self._script("reserve", worker_id, run, micro, -1 if limit is None else limit)
        return Booked(bool(done), bool(warns))

    def settle(self, worker_id: str, run: str, micro: int | None, *, limit: int | None) -> Booked:
        """Replaces a run's reservation by its cost; None: as much as was reserved. It counts to the day of the reservation."""
        cost = "" if micro is None else micro
        done, warns = self._script("settle", worker_id, run, cost, -1 if limit is None else limit)
        return Booked(bool(done), bool(warns))

    def spent(self, worker_ids: Sequence[str]) -> dict[str, Spent]:
        """The money of the present day, by worker id."""
        if not worker_ids:
            return {}
        found = self._script("spent", *worker_ids)
        return {
            worker_id: Spent(int(spent), int(reserved))
            for worker_id, (spent, reserved) in zip(worker_ids, found, strict=True)
        }
