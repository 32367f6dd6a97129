"""HAProxy as the front wants it: started or adopted, kept in the desired state, read, restarted when it dies."""

import logging
import select
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import certifi

from ownpod.errors import StartError
from ownpod.front import authorities, plan
from ownpod.front.clients import closed_by_clients
from ownpod.front.configuration import render
from ownpod.front.layout import Layout, Maps, backends, full
from ownpod.front.names import Names
from ownpod.front.program import Program, connections_limit, script
from ownpod.front.readings import readings
from ownpod.front.runtime import (
    RuntimeUnavailable,
    map_changes,
    number,
    parse_map,
    parse_rows,
    parse_table,
    word,
)
from ownpod.processes import Backoff
from ownpod.rules.balancing import FrontState, RouteReading, Server

log = logging.getLogger(__name__)

SERVERS = "show stat -1 4 -1"
"""Statistics of servers only; HAProxy has no others than those of the pool and the API."""

WISHES = "show table wishes data.conn_cur gt 0"
"""The wishes of now: an entry stays for an hour, and a client that sends other ids all the time fills the table."""

FINE = (
    *("New server registered", "Server deleted", "changed from", "no need to change", "not found"),
    *("nothing changed", "updated"),
)
"""Parts of responses to commands that have succeeded."""


@dataclass(frozen=True)
class _Actual:
    """What HAProxy has."""

    maps: dict[Maps, dict[str, str]] = field(default_factory=dict)
    servers: dict[tuple[str, str], plan.ActualServer] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


class Balancer:
    """HAProxy and its state. All calls block for a few milliseconds, and are for one thread.

    Args:
        layout: what the configuration depends on; ``max_connections`` 0: as many as there are file descriptors for.
        directory: for HAProxy's files and its runtime socket; it is made, and is for this user only.
        binary: the program HAProxy, see :func:`ownpod.front.binary.find_haproxy`.
    """

    def __init__(self, layout: Layout, directory: Path, binary: str) -> None:
        if layout.max_connections == 0:
            layout = replace(layout, max_connections=connections_limit())
        self._layout = layout
        self._holds = backends(layout.pool, layout.holds)
        self._text = render(layout, script())
        self._program = Program(directory, binary)
        self._runtime = self._program.runtime
        self._names = Names()
        self._state: FrontState | None = None
        self._applied: tuple[FrontState, int] | None = None
        self._unfinished = False
        self._chosen: dict[str, str] = {}
        self._left: dict[str, str] = {}
        """The endpoint by backend, of those that it has left and that are not yet empty."""
        self._leavers: set[str] = set()
        self._ports = {port for _, port in layout.binds} | {layout.tls_port or 0}
        self._backoff = Backoff()
        self._started = self._next_start = 0.0
        self.problems: dict[str, str] = {}
        """Why an endpoint, or ``<endpoint>/<worker>``, cannot be in HAProxy, in words."""

    @property
    def pid(self) -> int:
        """HAProxy's process; 0: none."""
        return self._program.pid

    @property
    def backends(self) -> dict[str, str]:
        """The name of HAProxy's backend, by the endpoint's id."""
        return dict(self._chosen)

    @property
    def fd(self) -> int:
        """A file descriptor that is readable when HAProxy has ended; it is another one after a restart. -1: none."""
        return self._program.fd

    def start(self) -> bool:
        """Starts HAProxy, or adopts the one that runs here with the same configuration. Returns whether it was adopted.

        A state that was applied before is in HAProxy before its first request.

        Raises:
            StartError: it does not start, for example because a port is in use.
        """
        if not self._program.adopt(self._text):
            self._launch()
            return False
        self._started = time.monotonic()
        try:
            routes, _ = self._runtime.ask(f"show map {Maps.ROUTES}", f"clear map {Maps.GONE}")
            self._chosen = parse_map(routes)
        except RuntimeUnavailable as error:
            log.warning("HAProxy does not answer: %s", error)
        if self._state is not None:
            self.apply(self._state)
        return True

    @property
    def alive(self) -> bool:
        """Whether HAProxy runs."""
        return self._program.alive()

    def apply(self, state: FrontState) -> bool:
        """Sends HAProxy the differences between a state and its own. Repeating it costs nothing.

        While HAProxy does not run, the state is kept for its start.

        Returns:
            False: HAProxy does not answer, and may have a part of the differences.
        """
        self._state = state
        if not self._program.alive():
            return True
        addresses = self._names.resolve(
            [server.host for route in state.routes.values() for server in route.servers]
        )
        wanted = (state, self._names.changes)
        if self._applied == wanted and not self._unfinished:
            return True
        try:
            self._match(state, addresses)
        except RuntimeUnavailable as error:
            self._applied = None
            log.warning("HAProxy does not answer: %s", error)
            return False
        self._applied = wanted
        return True

    def read(self) -> dict[str, RouteReading]:
        """The endpoints as HAProxy has them; {} if it does not answer."""
        if not self._program.alive():
            return {}
        try:
            stats, counts, wishes = self._runtime.ask(SERVERS, "show table counts", WISHES)
        except RuntimeUnavailable as error:
            log.warning("HAProxy does not answer: %s", error)
            return {}
        found = readings(
            self._chosen,
            self._left,
            parse_rows(stats, ","),
            parse_table(counts),
            parse_table(wishes),
        )
        self._notice_leavers(found.values())
        return found

    def _notice_leavers(self, found: Iterable[RouteReading]) -> None:
        """Has Lua end the held requests whose clients have closed their connections."""
        left: set[str] = set()
        if any(
            reading.waiting > sum(s.waiting for s in reading.servers.values()) for reading in found
        ):
            left = closed_by_clients(self._ports)
        commands = [
            f"add map {Maps.GONE} {word(client)} 1" for client in sorted(left - self._leavers)
        ]
        # Another connection may come from the same port soon.
        commands += [
            f"del map {Maps.GONE} {word(client)}" for client in sorted(self._leavers - left)
        ]
        if commands:
            self._runtime.run(commands, *FINE)
        self._leavers = left

    def ensure(self) -> bool:
        """Starts HAProxy again if it has ended, with the last state. Returns whether it did.

        One that ends again and again is started after a growing pause.
        """
        if self._program.alive() or time.monotonic() < self._next_start:
            return False
        pause_s = self._backoff.next_s(time.monotonic() - self._started)
        self._next_start = time.monotonic() + pause_s
        log.error("HAProxy has ended; it is started again")
        self._program.end()
        try:
            self._launch()
        except StartError as error:
            log.error("%s", error)  # noqa: TRY400 - the message has what HAProxy wrote
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Waits until HAProxy has ended, or for the time. Returns whether it has ended."""
        if not self._program.alive():
            return True
        if self._program.fd < 0:
            time.sleep(timeout_s)
        else:
            select.select([self._program.fd], [], [], timeout_s)
        return not self._program.alive()

    def drain(self, limit_s: float) -> bool:
        """Has HAProxy stop listening, and waits until its open requests have ended. Returns whether they have.

        ``stop`` must be called next.
        """
        return self._program.drain(limit_s)

    def stop(self) -> None:
        """Ends HAProxy, with the requests that are open."""
        self._program.end()

    def _launch(self) -> None:
        state = self._state or FrontState(keys={})
        # In a new process all backends are empty.
        owners = {
            backend: plan.owner_of(state.routes[endpoint])
            for endpoint, backend in self._chosen.items()
            if endpoint in state.routes
        }
        self._left = {}
        self._chosen, _ = plan.assign(state.routes, owners, self._holds)
        maps = plan.maps_of(state, self._chosen, {}, self._layout.domain)
        # A pattern that HAProxy cannot compile would prevent its start; over the socket it is only refused.
        maps[Maps.PATTERNS] = {}
        self._program.start(self._text, maps)
        self._started = time.monotonic()
        self._leavers = set()
        self._applied = None
        if self._state is not None:
            self.apply(self._state)

    def _actual(self) -> _Actual:
        names = list(Maps)
        states, stats, counts, *maps = self._runtime.ask(
            "show servers state",
            SERVERS,
            "show table counts",
            *(f"show map {name}" for name in names),
        )
        entries = {name: parse_map(text) for name, text in zip(names, maps, strict=True)}
        servers = plan.servers_of(
            parse_rows(states, " "), parse_rows(stats, ","), entries[Maps.SERVERS]
        )
        return _Actual(entries, servers, parse_table(counts))

    def _match(self, state: FrontState, addresses: Mapping[str, str]) -> None:
        actual = self._actual()
        owners = actual.maps[Maps.OWNERS]
        occupied = {backend for backend, _ in actual.servers}
        routed = {plan.owner_of(route) for route in state.routes.values()}
        free, emptying = plan.unused(owners, routed, occupied, actual.counts)
        kept = {backend: owner for backend, owner in owners.items() if backend not in free}
        self._chosen, left_out = plan.assign(state.routes, kept, self._holds)
        self._left = {backend: plan.endpoint_of(owner) for backend, owner in emptying.items()}
        why = full(self._layout.pool)
        problems = dict.fromkeys(left_out, why)
        for endpoint in problems.keys() - self.problems.keys():
            log.warning("endpoint %s is not served: %s", endpoint, why)
        maps = plan.maps_of(state, self._chosen, emptying, self._layout.domain)
        self._runtime.run(map_changes(maps, actual.maps), *FINE)
        wanted = {
            (backend, plan.KEEPER.id): plan.KEEPER
            for endpoint, backend in self._chosen.items()
            if plan.keeps(state.routes[endpoint])
        }
        addresses = {**addresses, plan.KEEPER.host: plan.KEEPER.host}
        for endpoint, backend in self._chosen.items():
            for server in state.routes[endpoint].servers:
                if not plan.is_name(server.id):
                    problems[f"{endpoint}/{server.id}"] = "its id has characters that HAProxy lacks"
                elif server.host not in addresses:
                    problems[f"{endpoint}/{server.id}"] = f"{server.host} has no address"
                else:
                    wanted[backend, server.id] = server
        problems |= self._load_authorities(wanted)
        unfinished = self._match_servers(wanted, addresses, actual)
        self._unfinished = unfinished or bool(emptying)
        self.problems = problems

    def _load_authorities(self, wanted: dict[tuple[str, str], Server]) -> dict[str, str]:
        """Leaves out the servers that cannot be verified. Returns the reasons, by ``<endpoint>/<worker>``."""
        files = {
            key: server.ca_bundle or certifi.where()
            for key, server in wanted.items()
            if server.tls and server.verifies
        }
        failed = authorities.load(self._runtime, files.values())
        owners = {backend: endpoint for endpoint, backend in self._chosen.items()}
        problems = {}
        for key, path in files.items():
            if path in failed:
                del wanted[key]
                problems[f"{owners[key[0]]}/{key[1]}"] = failed[path]
        return problems

    def _match_servers(
        self,
        wanted: Mapping[tuple[str, str], Server],
        addresses: Mapping[str, str],
        actual: _Actual,
    ) -> bool:
        """Returns whether a server is left that could not be removed or added."""
        leaving = []
        for key, known in actual.servers.items():
            server = wanted.get(key)
            if server is None or known.traits != plan.traits(server):
                leaving.append(known)
        # An endpoint has left a backend because its home has moved: what waits there is finished there.
        moved = {
            known.backend
            for known in leaving
            if self._left.get(known.backend) in self._chosen and known.name != plan.KEEPER.id
        }
        busy = moved & self._queued() if moved else set()
        staying = [known for known in leaving if known.backend in busy]
        leaving = [known for known in leaving if known.backend not in busy]

        def adding(key: tuple[str, str]) -> list[str]:
            server = wanted[key]
            return plan.adding(key[0], server, addresses[server.host], certifi.where())

        # New servers first: requests that wait are answered 503 at once while a backend has neither a worker nor the keeper.
        commands = []
        for key, server in wanted.items():
            known_server = actual.servers.get(key)
            if known_server is None:
                commands += adding(key)
            elif known_server not in leaving and known_server not in staying:
                commands += plan.changing(known_server, server, addresses[server.host])
        failed = self._runtime.run(commands, *FINE)
        gone = self._remove(leaving)
        # Those with other traits, which HAProxy can change of a new server only.
        again = [key for key in wanted if actual.servers.get(key) in gone]
        failed += self._runtime.run((command for key in again for command in adding(key)), *FINE)
        return bool(failed or staying) or len(gone) < len(leaving)

    def _queued(self) -> set[str]:
        """The backends in which requests wait."""
        (text,) = self._runtime.ask("show stat -1 6 -1")
        rows = parse_rows(text, ",")
        return {row.get("pxname", "") for row in rows if number(row, "qcur")}

    def _remove(self, leaving: list[plan.ActualServer]) -> list[plan.ActualServer]:
        """Removes servers. One that still has connections gets no more, and is removed by a later call."""
        if not leaving:
            return []
        running = [server for server in leaving if not server.admin & plan.MAINT]
        self._runtime.run([f"set server {server.path} state maint" for server in running], *FINE)
        answers = self._runtime.ask(*(f"del server {server.path}" for server in leaving))
        gone = [
            server
            for server, answer in zip(leaving, answers, strict=True)
            if "deleted" in answer or "not found" in answer.lower() or "No such server" in answer
        ]
        self._runtime.run([f"del map {Maps.SERVERS} {server.path}" for server in gone], *FINE)
        return gone
