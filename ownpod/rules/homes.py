"""Which of several fronts is an endpoint's home. Pure.

A limit of requests at a time is exact only if one front counts them, so an endpoint with such a limit has one home, and the
other fronts pass its requests on to it.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from ownpod.rules.endpoints import Endpoint

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Front:
    """A front that lives. ``address``: ``<host>:<port>`` at which other fronts reach it; None: they do not."""

    id: str
    address: str | None = None

    @property
    def place(self) -> tuple[str, int] | None:
        """Host, without brackets, and port of the address; None: it has none that can be used."""
        match = _ADDRESS.fullmatch(self.address or "")
        if match is None or not 0 < int(match[2]) < 65_536:
            return None
        return match[1].strip("[]"), int(match[2])


def joined(host: str, port: int) -> str:
    """A host and a port as one text; an IPv6 address in brackets."""
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"


def home(endpoint: str, fronts: Collection[str]) -> str | None:
    """The home of an endpoint by its id: a rendezvous hash, so that of n fronts one that comes or goes moves only its own
    1/n of the endpoints. None: there is no front.
    """
    return max(fronts, key=lambda front: (_weight(endpoint, front), front), default=None)


def _weight(endpoint: str, front: str) -> bytes:
    return hashlib.blake2b(f"{front}\0{endpoint}".encode(), digest_size=8).digest()


def is_limited(endpoint: Endpoint) -> bool:
    """Whether a worker of a load-balanced endpoint gets a limited number of requests at a time."""
    balancing = endpoint.balancing
    if balancing is None:
        return False
    return bool(balancing.capacity) or any(worker.capacity for worker in endpoint.workers)


def home_of(endpoint: Endpoint, me: Front, fronts: Collection[Front]) -> Front:
    """The front that sends an endpoint's requests to its workers; ``me`` for one that needs no home, or where no front can
    be reached.
    """
    if not is_limited(endpoint):
        return me
    known = {front.id: front for front in (*fronts, me) if front.place}
    chosen = home(endpoint.id, known)
    return me if chosen is None else known[chosen]


def publisher_of(endpoint: Endpoint, me: Front, fronts: Collection[Front]) -> str:
    """The id of the one front that publishes the states of an endpoint's workers."""
    if is_limited(endpoint) and any(front.place for front in (*fronts, me)):
        return home_of(endpoint, me, fronts).id
    return home(endpoint.id, {me.id, *(front.id for front in fronts)}) or me.id
