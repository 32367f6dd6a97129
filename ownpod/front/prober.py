"""The health checks of workers until their first 200. HAProxy checks a worker from then on.

One thread asks all workers at the same time, each every :data:`EVERY_S`, because a slow worker must not delay another's
start. HAProxy cannot do this: a server that is added counts as up until its first check has failed.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from ownpod.rules import probing
from ownpod.rules.backoff import backoff_s
from ownpod.rules.balancing import DEFAULT_INIT_TIMEOUT_S
from ownpod.rules.homes import joined
from ownpod.rules.probing import HEALTHY, UNASKED, Target, Verdict

log = logging.getLogger(__name__)

EVERY_S, LATER_S = 0.5, 2.0
"""Seconds from one check of a worker to the next, and the same after :data:`LONG_S`."""

LONG_S = DEFAULT_INIT_TIMEOUT_S
"""Seconds without a 200 after which a worker is asked less often, because it may never come up."""

TIMEOUT_S = 2.0
"""Longest time in seconds for the connection, and for the answer."""

LONGEST_LINE = 4096
"""Bytes of the first line of an answer that are read."""

STEADY_S = 10.0
"""Seconds after its 200 before which a worker that HAProxy finds down fails early: its next check waits longer each time."""


@dataclass(eq=False)
class _Probe:
    """The checks of one worker."""

    target: Target
    verdict: Verdict = UNASKED
    task: "asyncio.Task[None] | None" = None
    pause_s: float = 0.0
    """Seconds until the first check."""
    ready_at: float = 0.0
    failures: int = 0
    """How often in a row HAProxy has found it down soon after its 200."""


class Prober:
    """Asks workers until their first 200.

    Args:
        changed: called in the prober's thread when a verdict has changed; it must not block.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)
        self._probes: dict[str, _Probe] = {}
        self._verdicts: dict[str, Verdict] = {}

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends all checks and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(TIMEOUT_S)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What is known of each worker, by its id. The mapping is never changed, but replaced."""
        return self._verdicts

    def watch(self, targets: Mapping[str, Target], ready: Collection[str] = ()) -> None:
        """Asks these workers from now on, and no others. One whose check has changed is asked again from the start.

        ``ready``: new ones that are not asked, because HAProxy has them already and finds them up.
        """
        self._call(self._watch, dict(targets), frozenset(ready))

    def lost(self, problems: Mapping[str, str]) -> None:
        """HAProxy has found workers down: they are asked until they answer with 200 again.

        Args:
            problems: what HAProxy has found, by worker id.
        """
        self._call(self._lost, dict(problems))

    def _call(self, method: Callable[..., None], *arguments: object) -> None:
        """Calls a method in the thread, and waits until it has returned, so that :attr:`verdicts` are those of after it."""
        done = threading.Event()

        def call() -> None:
            method(*arguments)
            done.set()

        # The loop is closed at the end of the process.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)
            done.wait(TIMEOUT_S)

    # In the thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def _watch(self, targets: Mapping[str, Target], ready: frozenset[str]) -> None:
        for name in self._probes.keys() - targets.keys():
            self._end(self._probes.pop(name))
        for name, target in targets.items():
            known = self._probes.get(name)
            if known is not None and known.target == target:
                continue
            if known is not None:
                self._end(known)
            self._probes[name] = probe = _Probe(target)
            if name in ready and known is None:
                probe.verdict = HEALTHY
            else:
                self._begin(name, probe)
        self._publish()

    def _lost(self, problems: Mapping[str, str]) -> None:
        now = self._loop.time()
        for name, problem in problems.items():
            probe = self._probes.get(name)
            if probe is None or not probe.verdict.ready:
                continue
            early = now - probe.ready_at < STEADY_S
            probe.failures = probe.failures + 1 if early else 0
            # A worker with a healthy check whose port refuses requests would otherwise come and go all the time.
            probe.pause_s = backoff_s(probe.failures, EVERY_S, 30.0) if probe.failures else 0.0
            probe.verdict = Verdict(reason=problem, lost=True)
            self._begin(name, probe)
        self._publish()

    def _begin(self, name: str, probe: _Probe) -> None:
        probe.task = self._loop.create_task(self._follow(name, probe))

    @staticmethod
    def _end(probe: _Probe) -> None:
        if probe.task is not None:
            probe.task.cancel()

    def _publish(self) -> None:
        verdicts = {name: probe.verdict for name, probe in self._probes.items()}
        if verdicts != self._verdicts:
            self._verdicts = verdicts
            self._changed()

    async def _follow(self, name: str, probe: _Probe) -> None:
        """Asks one worker until it is ready."""
        await asyncio.sleep(probe.pause_s)
        began = self._loop.time()
        while not probe.verdict.ready:
            asked = self._loop.time()
            try:
                verdict = await ask(probe.target)
            except Exception:
                log.exception("the health check of worker %s", name)
                verdict = Verdict(reason="its health check failed, see the front's log")
            lost = probe.verdict.lost and not verdict.ready
            if not lost:
                verdict = probing.soon(verdict, probe.target, self._loop.time() - began)
            probe.verdict = replace(verdict, lost=lost)
            if verdict.ready:
                probe.ready_at = self._loop.time()
            self._publish()
            every_s = EVERY_S if asked - began < LONG_S else LATER_S
            if not verdict.ready:
                await asyncio.sleep(max(0.0, asked + every_s - self._loop.time()))


class _Failed(Exception):
    """A check has failed."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


async def ask(target: Target) -> Verdict:
    """Asks a worker once. Where its health check has another port, its own port must be open, too."""
    try:
        verdict = await _ask(target)
        if verdict.ready and target.port != target.server.port:
            _, writer = await _open(target, target.server.port)
            writer.transport.abort()
    except _Failed as failed:
        return failed.verdict
    return verdict


async def _ask(target: Target) -> Verdict:
    reader, writer = await _open(target, target.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(_request(target))
            line = await reader.readline()
    except TimeoutError:
        return probing.no_answer(target, TIMEOUT_S)
    except ValueError:
        return probing.not_http(target)
    except OSError:
        return probing.cut(target)
    finally:
        writer.transport.abort()
    return _verdict_of(line, target)


async def _open(target: Target, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port of the worker. Raises: _Failed."""
    server = target.server
    try:
        context = _context(server.verifies, server.ca_bundle) if server.tls else None
    except OSError as error:
        raise _Failed(Verdict(reason=f"caBundle cannot be used: {error}")) from None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.open_connection(server.host, port, ssl=context, limit=LONGEST_LINE)
    except TimeoutError:
        raise _Failed(probing.no_connection(target, port, TIMEOUT_S)) from None
    except OSError as error:
        raise _Failed(_no_connection(target, port, error)) from None


def _request(target: Target) -> bytes:
    where = joined(target.server.host, target.port)
    lines = (
        f"GET {target.path} HTTP/1.1",
        f"Host: {where}",
        "User-Agent: ownpod-front",
        "Accept: */*",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii", "replace")


def _verdict_of(line: bytes, target: Target) -> Verdict:
    if not line:
        return probing.cut(target)
    version, _, rest = line.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
        return probing.not_http(target)
    return probing.verdict_of(int(status), target)


def _no_connection(target: Target, port: int, error: OSError) -> Verdict:
    if isinstance(error, ssl.SSLCertVerificationError):
        return probing.tls_failed(target, error.verify_message, certificate=True)
    if isinstance(error, ssl.SSLError):
        return probing.tls_failed(target, error.reason or "no TLS", certificate=False)
    # asyncio joins the errors of all addresses of a name into a text.
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return probing.refused(target, port)
    if isinstance(error, socket.gaierror):
        return probing.unreachable(target, port, "the name has no address here")
    if isinstance(error, ConnectionResetError):
        return probing.cut(target)
    words = os.strerror(error.errno) if error.errno else " ".join(str(error).split())[:200]
    return probing.unreachable(target, port, words)


@functools.lru_cache(maxsize=64)
def _context(verifies: bool, ca_bundle: str | None) -> ssl.SSLContext:  # noqa: FBT001 - a key of the cache
    context = ssl.create_default_context(cafile=ca_bundle)
    if not verifies and ca_bundle is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
