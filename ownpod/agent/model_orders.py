"""How models are fetched, and the order that an agent gives to the process that fetches one.

Imports none of that process's libraries, because the agent would keep their megabytes.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from ownpod.rules.models import ModelSource

TRIES = 5
"""Number of tries in a row of one fetch, while a further one may help."""


@dataclass(frozen=True)
class Options:
    """Settings of a fetch.

    Attributes:
        stall_s: seconds without a byte after which a request has failed.
        service_url: of the file service.
        service_key: its key.
        service_bucket: its bucket with the models.
    """

    stall_s: float = 60.0
    service_url: str = ""
    service_key: str = ""
    service_bucket: str = "models"


@dataclass(frozen=True)
class FetchSettings:
    """How models are fetched.

    Attributes:
        quota: bytes that all models of this host may have; None: as the disk permits.
        allowed: whether models are fetched at all.
        tries: number of tries of one fetch.
    """

    quota: int | None = None
    allowed: bool = True
    options: Options = field(default_factory=Options)
    tries: int = TRIES


@dataclass(frozen=True)
class Order:
    """What a process is to fetch.

    Attributes:
        root: the directory of all models.
        quota: bytes that they may have; None: no limit.
        stay: keys and ids of models that must not give way.
    """

    root: str
    source: ModelSource
    quota: int | None = None
    stay: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)


def order_text(order: Order) -> str:
    """An order as one line of JSON."""
    return json.dumps(dataclasses.asdict(order))


def order_in(text: str) -> Order:
    """The order in a line."""
    values = json.loads(text)
    source, options = ModelSource(**values.pop("source")), Options(**values.pop("options"))
    return Order(source=source, options=options, stay=tuple(values.pop("stay")), **values)
