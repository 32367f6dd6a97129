"""The part of ``ownpod doctor`` about the front: HAProxy, its certificate, and the names of load-balanced endpoints."""

import socket
import ssl
from collections.abc import Iterable, Iterator

from ownpod.front.binary import find_haproxy
from ownpod.front.layout import Layout
from ownpod.rules.endpoints import Endpoint
from ownpod.settings import Settings
from ownpod.tools.findings import Finding

ANY = "x"
"""A name that stands for any endpoint's."""


def examine(config: Settings, endpoints: Iterable[Endpoint]) -> Iterator[Finding]:
    """Yields the findings about the front of this host."""
    balanced = sorted(endpoint.id for endpoint in endpoints if endpoint.is_balanced)
    yield _program(config, balanced)
    if len(balanced) > Layout.pool:
        there = f"there are {len(balanced)} in {config.workers_file}"
        yield Finding("bad", "front", f"room for {Layout.pool} load-balanced endpoints: {there}")
    if config.tls_certificate is not None:
        yield _certificate(config.tls_certificate, config.tls_port)
    if balanced:
        yield _names(config.lb_domain)


def _program(config: Settings, balanced: list[str]) -> Finding:
    needs = f"; needed by {', '.join(balanced)}" if balanced else ""
    if config.front == "off":
        kind = "bad" if balanced else "note"
        return Finding(kind, "front", f"OWNPOD_FRONT=off: `ownpod up` starts none{needs}")
    found = find_haproxy()
    if found.path is None:
        kind = "bad" if balanced or config.front == "on" else "note"
        return Finding(kind, "front", f"{found.problem}{needs}")
    version = ".".join(map(str, found.version))
    return Finding("ok", "front", f"HAProxy {version} at {found.path}")


def _certificate(file: str, port: int) -> Finding:
    def no_password() -> str:
        raise ValueError("the key has a password")

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, password=no_password)
    except (OSError, ValueError) as error:
        why = str(error)
        if isinstance(error, ssl.SSLError):
            why = (error.reason or "not readable as PEM").replace("_", " ").lower()
        return Finding(
            "bad",
            "TLS",
            f"OWNPOD_TLS_CERTIFICATE={file}: {why}; it must have the certificate, its chain and its key in PEM",
        )
    return Finding("ok", "TLS", f"{file}, for port {port}")


def _names(domain: str) -> Finding:
    name = f"{ANY}.{domain}"
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except (OSError, UnicodeError):
        programs, dns = "no program of this host", f"add *.{domain} to your DNS, or "
        if name.endswith(".localhost"):
            programs, dns = "browsers and curl, but no other program of this host,", "add "
        return Finding(
            "note",
            "names",
            f"{programs} can resolve {name}: use /lb/<endpoint>/, or {dns}a line for each endpoint to /etc/hosts",
        )
    return Finding("ok", "names", f"{name} resolves to {address}")
