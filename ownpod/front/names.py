"""Addresses of workers' hosts. HAProxy's command ``add server`` accepts addresses only, so names are resolved here."""

import ipaddress
import socket
import threading
import time
from collections.abc import Collection

REFRESH_S = 10.0
"""Seconds after which a name is resolved again: a container that was started again has another address."""

FIRST_S = 2.0
"""Longest wait in seconds for the first addresses of names; the threads that resolve them continue."""


class Names:
    """Addresses by host name. Names are resolved in threads, because a slow name server must not delay the edge."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._threads: dict[str, threading.Thread] = {}
        self.changes = 0
        """Number of times that a name got another address."""

    def resolve(self, hosts: Collection[str]) -> dict[str, str]:
        """The last known address of each host; a host without one is left out. Old addresses are refreshed."""
        found, missing = {}, []
        for host in set(hosts):
            address = _literal(host)
            if address is not None:
                found[host] = address
                continue
            thread = self._refresh(host)
            if thread is not None and host not in self._addresses:
                missing.append(thread)
        deadline = time.monotonic() + FIRST_S
        for thread in missing:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return found | {
                host: self._addresses[host] for host in hosts if host in self._addresses
            }

    def _refresh(self, host: str) -> threading.Thread | None:
        with self._lock:
            running = self._threads.get(host)
            if running is not None:
                return running
            if time.monotonic() - self._asked.get(host, -REFRESH_S) < REFRESH_S:
                return None
            self._asked[host] = time.monotonic()
            thread = threading.Thread(target=self._ask, args=(host,), daemon=True)
            self._threads[host] = thread
        thread.start()
        return thread

    def _ask(self, host: str) -> None:
        try:
            # IPv4 first: many servers in containers listen there only.
            infos = sorted(
                socket.getaddrinfo(host, None, type=socket.SOCK_STREAM), key=lambda info: info[0]
            )
            addresses = [str(info[4][0]) for info in infos]
        except (OSError, UnicodeError):
            addresses = []
        with self._lock:
            self._threads.pop(host, None)
            # A name server that fails does not remove a worker; its old address stays while it is in the list of addresses.
            if addresses and self._addresses.get(host) not in addresses:
                self._addresses[host] = addresses[0]
                self.changes += 1


def _literal(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return None
