"""The wait for the fronts after a load-balanced endpoint was made."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from ownpod.errors import RedisUnavailable, WorkerRecordBroken
from ownpod.rules.balancing import RouteReading
from ownpod.rules.homes import Front

LONGEST_S = 3.0
"""Longest wait in seconds. A front that is slower answers 404 until it has the endpoint."""

CHECK_S = 0.05

Living = Callable[[], tuple[Sequence[Front], Mapping[str, Mapping[str, RouteReading]]]]
"""Returns the fronts that live, and what each of them last read, by its id and the endpoint's."""


def no_fronts() -> tuple[Sequence[Front], Mapping[str, Mapping[str, RouteReading]]]:
    """No front runs."""
    return (), {}


def await_fronts(living: Living, endpoint_ids: Collection[str]) -> bool:
    """Waits until all fronts that live have these endpoints, because a script calls an endpoint as soon as it was made.

    Returns:
        Whether they have them. False also where Redis does not answer: the endpoints are made nevertheless.
    """
    until = time.monotonic() + LONGEST_S
    while endpoint_ids:
        try:
            _, readings = living()
        except (RedisUnavailable, WorkerRecordBroken):
            return False
        if all(endpoint in found for found in readings.values() for endpoint in endpoint_ids):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(CHECK_S)
    return True
