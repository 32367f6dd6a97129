"""The front as a part of ``ownpod up``: whether it is started, and what the log says if it is not."""

import time
from collections.abc import Iterable

from ownpod.errors import StartError
from ownpod.front.binary import Haproxy, find_haproxy
from ownpod.front.lock import end_orphan, front_directory
from ownpod.processes import check_port
from ownpod.rules.endpoints import Endpoint
from ownpod.settings import Settings

WITHOUT = "without it load-balanced endpoints get no requests, and callers are refused while the API restarts"
"""What does not work without the front."""

ENDING_S = 3.0
"""Seconds in which the front of a killed ``ownpod up`` stops listening."""

CHECK_S = 0.05
"""Seconds between two checks whether the port is free."""


def choose(config: Settings) -> Haproxy:
    """The HAProxy for the front; one without a path: the front is not started.

    Raises:
        StartError: OWNPOD_FRONT=on, and there is no HAProxy.
    """
    if config.front == "off":
        return Haproxy()
    found = find_haproxy()
    if found.path is None and config.front == "on":
        raise StartError(f"OWNPOD_FRONT=on: {found.problem}")
    return found


def absence(config: Settings, problem: str, endpoints: Iterable[Endpoint]) -> str | None:
    """The line of the log about the front that is not started; None: there is nothing to say.

    ``problem``: what :func:`choose` found missing.
    """
    balanced = sorted(endpoint.id for endpoint in endpoints if endpoint.is_balanced)
    if config.front == "off":
        if not balanced:
            return None
        return f"warning: OWNPOD_FRONT=off: no request gets through here to the load-balanced endpoints {', '.join(balanced)}"
    kind = "warning: " if balanced else ""
    names = f" ({', '.join(balanced)})" if balanced else ""
    return f"{kind}no front: {problem}; {WITHOUT}{names}"


def check_ports(config: Settings, host: str, port: int) -> None:
    """Checks that the front can listen. An HAProxy that a killed ``ownpod up`` has left behind is ended first.

    Raises:
        StartError: another program listens there.
    """
    deadline = time.monotonic() + ENDING_S
    while True:
        is_free = end_orphan(front_directory(config, port))
        try:
            check_port(host, port)
            if config.tls_certificate is not None:
                check_port(host, config.tls_port)
        except StartError:
            if is_free or time.monotonic() > deadline:
                raise
            time.sleep(CHECK_S)
        else:
            return
