"""The check for requests that a web page of another site sends. Pure.

A browser permits any page to send requests to this host. Headers that a page cannot change reveal such requests:
``Origin`` and ``Sec-Fetch-Site`` name the page's site. ``Host`` has the name of the page's site after DNS rebinding,
in which that name resolves to this host.
"""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

CONTAINER_SUFFIXES = (".localhost", ".docker.internal", ".containers.internal")
"""Suffixes of names for the host in containers (Docker, Podman) and for loopback. No site can own such a name."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._~-]+)?\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_PATTERN_SIGNS = frozenset("*\\]?$^[]()")
"""Characters that make a configured origin a regular expression, by the rule of flask-cors."""


def host_name(header: str) -> str | None:
    """The name or address in a ``Host`` header, in lower case, without port, brackets and trailing dot.

    None: the header is not a host, for example because two headers were joined.
    """
    match = _HOST.fullmatch(header.strip())
    if match is None:
        return None
    return match[1].lower().strip("[]").removesuffix(".") or None


def is_own_host(header: str | None, own_names: Collection[str]) -> bool:
    """Whether a ``Host`` header names this host.

    Addresses and names without a dot are accepted, because no page of another site has one. A missing header
    is accepted, because every browser sends the header.

    Args:
        header: the value of ``Host``; None: missing.
        own_names: further names of this host, in lower case.
    """
    if header is None or not header.strip():
        return True
    name = host_name(header)
    if name is None:
        return False
    if "." not in name or name in own_names or name.endswith(CONTAINER_SUFFIXES):
        return True
    return _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_foreign_page(
    origin: str | None, fetch_site: str | None, host: str | None, allowed: Collection[str]
) -> bool:
    """Whether a page of another origin sent this request.

    Args:
        origin: the value of ``Origin``; None: missing.
        fetch_site: the value of ``Sec-Fetch-Site``; None: missing.
        host: the value of ``Host``.
        allowed: origins whose pages are permitted: literal, ``*``, or regular expressions.
    """
    site = None if fetch_site is None else fetch_site.strip().lower()
    if site == "same-origin":
        # Decides before the comparison below, because a proxy may have changed the port in Host.
        return False
    if origin is not None:
        return not (_is_same(origin, host) or is_named(origin, allowed))
    return site is not None and site != "none"


def is_named(origin: str, allowed: Collection[str]) -> bool:
    """Whether a list of origins, as in ``OWNPOD_CORS_ORIGINS``, contains this origin."""
    for known in allowed:
        if known == "*" or known.lower() == origin.lower():
            return True
        if not _PATTERN_SIGNS.isdisjoint(known) and re.fullmatch(known, origin, re.IGNORECASE):
            return True
    return False


def _is_same(origin: str, host: str | None) -> bool:
    """Whether an origin is the host of the request. The scheme is not compared, because a proxy with TLS changes it."""
    try:
        page = urlsplit(origin)
        page_port = page.port or _PORTS[page.scheme]
    except (ValueError, KeyError):
        return False
    here = _HOST.fullmatch((host or "").strip())
    if here is None or page.hostname is None:
        return False
    port = int(here[2]) if here[2] else _PORTS[page.scheme]
    return (page.hostname.removesuffix("."), page_port) == (host_name(host or ""), port)
