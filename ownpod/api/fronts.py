"""What the API needs of the fronts."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ownpod.rules.balancing import RouteReading
from ownpod.rules.homes import Front


class FrontReadings(Protocol):
    """What the fronts publish."""

    def living(self) -> tuple[Sequence[Front], Mapping[str, Mapping[str, RouteReading]]]:
        """The fronts that live, and what each of them last read, by its id and the endpoint's. Raises: RedisUnavailable."""


class NoFronts:
    """No front runs."""

    def living(self) -> tuple[Sequence[Front], Mapping[str, Mapping[str, RouteReading]]]:
        return (), {}
