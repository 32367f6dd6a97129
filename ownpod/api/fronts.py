"""What the API needs of the fronts."""

from collections.abc import Mapping
from typing import Protocol

from ownpod.rules.balancing import RouteReading


class FrontReadings(Protocol):
    """What the fronts publish. All calls may raise RedisUnavailable."""

    def loads(self) -> Mapping[str, RouteReading]:
        """The load-balanced endpoints as the living fronts last had them, by id: the sum over the fronts."""

    def alive(self) -> int:
        """Number of living fronts."""


class NoFronts:
    """No front runs."""

    def loads(self) -> Mapping[str, RouteReading]:
        return {}

    def alive(self) -> int:
        return 0
