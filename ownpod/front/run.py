"""The front as a process: it starts HAProxy, or adopts the one that runs, and ends it at a signal."""

import logging
import re
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from ownpod import log
from ownpod.configuration import keep_endpoints
from ownpod.errors import ConfigurationError, StartError
from ownpod.front.balancer import Balancer
from ownpod.front.binary import Haproxy, find_haproxy
from ownpod.front.configuration import Layout
from ownpod.front.edge import Edge
from ownpod.front.exchange import Exchange
from ownpod.front.lock import front_directory
from ownpod.processes import Exit, return_memory
from ownpod.registry import Registry
from ownpod.rules.homes import Front
from ownpod.settings import Settings
from ownpod.store.client import connect, schema_version
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts
from ownpod.store.managed import Managed
from ownpod.store.schema import Guard

logger = logging.getLogger(__name__)

ID_FILE = "id"
"""A file in the front's directory: its id, so that a restart moves no endpoint to another home."""

_ID = re.compile(r"[0-9a-f]{12}")
_ANY = {"0.0.0.0", "::", ""}  # noqa: S104 - no name of this machine


def run(config: Settings, host: str, port: int, api_address: str) -> int:
    """Runs the front until SIGTERM or SIGINT. SIGHUP reads the configuration again.

    At the signal HAProxy stops listening, and has ``OWNPOD_SHUTDOWN_GRACE_S`` for open requests; a second signal ends it at once.

    Args:
        config: the settings.
        host: the address on which clients reach the front.
        port: its port.
        api_address: ``<host>:<port>`` of the API's own server.

    Returns:
        The exit code.

    Raises:
        StartError: there is no HAProxy that the front can use, or it does not start.
        ConfigurationError: ``workers.yaml`` cannot be used.
    """
    log.configure(config.log_level, "front", config.log_format)
    directory = front_directory(config, port).resolve()
    haproxy = find_haproxy()
    if haproxy.path is None:
        raise StartError(haproxy.problem)
    me = Front(_id_in(directory), config.front_address)
    if me.address is not None and me.place is None:
        raise ConfigurationError(f"OWNPOD_FRONT_ADDRESS={me.address}: must be <host>:<port>")
    configured = keep_endpoints(config)
    client = connect(config.broker_url(), client_name="ownpod-front")
    Guard(lambda: schema_version(client)).wait()
    balancer = Balancer(
        layout_of(config, haproxy, host, port, api_address), directory, haproxy.path
    )
    registry = Registry(configured, Fleet(client), config)

    def exchange(changed: Callable[[], None]) -> Exchange:
        return Exchange(
            registry,
            Fronts(client),
            Managed(client),
            me=me,
            config=config,
            hosts=own_hosts(config, host),
            changed=changed,
        )

    adopted = balancer.start()
    edge = Edge(balancer, exchange, me=me, directory=directory, adopted=adopted)
    stops = _handle_signals(edge)
    logger.info("front ready on %s port %d, HAProxy pid %d", host, port, balancer.pid)
    return_memory()
    served = edge.run()
    if served:
        _end(balancer, config.shutdown_grace_s, lambda: len(stops) > 1)
    # After a failure HAProxy stays for the next edge.
    return 0 if served else Exit.THREAD_DIED


def layout_of(config: Settings, haproxy: Haproxy, host: str, port: int, api_address: str) -> Layout:
    """What HAProxy's configuration depends on. Raises: StartError."""
    api_host, _, api_port = api_address.rpartition(":")
    if not api_host or not api_port.isdecimal():
        raise StartError(f"the API's address {api_address!r} must be <host>:<port>")
    return Layout(
        binds=((host, port),),
        api=(api_host.strip("[]"), int(api_port)),
        domain=config.lb_domain,
        timeout_status=config.lb_timeout_status,
        certificate=config.tls_certificate,
        tls_port=config.tls_port if config.tls_certificate else None,
        trusted_proxies=config.trusted_proxies,
        max_connections=0,
        metrics=Front("", config.front_metrics).place,
        version=haproxy.version,
    )


def own_hosts(config: Settings, host: str) -> set[str]:
    """Names of this machine under which the front answers without keys, beside ``OWNPOD_HOSTS``."""
    names = {host}
    if config.callback_url is not None:
        names.add(urlsplit(config.callback_url).hostname or "")
    if place := Front("", config.front_address).place:
        names.add(place[0])
    return {name.lower() for name in names} - _ANY


def _handle_signals(edge: Edge) -> list[int]:
    """Has signals stop or reload. Returns the list that grows with each signal to stop."""
    stops: list[int] = []

    def stop(signum: int, _frame: FrameType | None) -> None:
        stops.append(signum)
        edge.stop()

    def reload(_signum: int, _frame: FrameType | None) -> None:
        edge.reload()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, reload)
    return stops


def _end(balancer: Balancer, grace_s: float, again: Callable[[], bool]) -> None:
    """Ends HAProxy, which may finish open requests within the grace."""
    if balancer.pid:
        balancer.drain(0)
        until = time.monotonic() + grace_s
        # In parts, so that a second signal is noticed.
        while not again() and (left_s := until - time.monotonic()) > 0:
            if balancer.wait(min(left_s, 0.2)):
                break
    balancer.stop()


def _id_in(directory: Path) -> str:
    """The front's id. Raises: StartError."""
    file = directory / ID_FILE
    try:
        text = file.read_text().strip() if file.exists() else ""
        if _ID.fullmatch(text):
            return text
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made, new = secrets.token_hex(6), directory / f"{ID_FILE}.new"
        new.write_text(f"{made}\n")
        new.replace(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise StartError(f"OWNPOD_DATA_DIR: {file} cannot be used: {reason}") from None
    return made
