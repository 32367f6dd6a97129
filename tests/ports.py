"""Ports of the servers that tests start: each test process has some of its own, so that no other takes one that was just chosen."""

import contextlib
import os
import random
import re
import socket

import ownpod.processes

FIRST, PARTS, PART = 20_000, 8, 1_500
"""Below the ports that Linux gives to outgoing connections, which would otherwise be made from a port before its server, which
starts for seconds, listens there."""

_number = int(re.sub("[^0-9]", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % PARTS
# Two runs on one machine begin at different ports.
_next = random.randrange(PART)


def free_port() -> int:
    """The next port of this process on loopback that is free."""
    global _next  # noqa: PLW0603
    while True:
        port = FIRST + _number * PART + _next % PART
        _next += 1
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# For tests, which import it from there.
ownpod.processes.free_port = free_port
