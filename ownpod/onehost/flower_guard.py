"""The process of ``ownpod flower``: Flower, with a check of each request before Flower handles it.

The check is here because Flower compares plain keys only, and without keys permits requests of any web page
(``Access-Control-Allow-Origin: *``).
"""

import base64
import binascii
import logging
import sys
import threading
import time
from collections.abc import Collection
from typing import Any

from celery.__main__ import main as celery
from flower import command
from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from ownpod import settings
from ownpod.configuration import load_endpoints
from ownpod.errors import OwnPodError, RedisUnavailable
from ownpod.onehost.flower import SINGLE_KEYS, door
from ownpod.registry import Registry
from ownpod.rules import credentials
from ownpod.rules.credentials import Credential
from ownpod.rules.origins import is_foreign_page, is_own_host
from ownpod.settings import Settings
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.5
"""Seconds between two checks for endpoints that got API keys at run time."""

OPEN = "/healthcheck"
"""The path of health checks, by compose and load balancers. Its answer is "OK" and contains no data."""


def judge(
    request: HTTPServerRequest,
    keys: tuple[Credential, ...],
    own_names: Collection[str],
    *,
    single_keys: bool = False,
) -> tuple[int, str] | None:
    """The HTTP status and the reason of a refusal; None: the request is permitted.

    Args:
        request: the request, before it is routed.
        keys: the keys that Flower accepts.
        own_names: host names under which Flower answers without keys.
        single_keys: whether there are keys of single endpoints.
    """
    if request.path == OPEN:
        return None
    host = request.headers.get("Host")
    if is_foreign_page(
        request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site"), host, ()
    ) and not _is_link(request):
        return 403, "no page of another site may call Flower"
    if not keys:
        return _without_keys(host, own_names, single_keys=single_keys)
    if credentials.matches(_password(request.headers.get("Authorization", "")), keys):
        return None
    return 401, "Flower needs a key as the password of the user ownpod"


def _without_keys(
    host: str | None, own_names: Collection[str], *, single_keys: bool
) -> tuple[int, str] | None:
    if single_keys:
        return 403, SINGLE_KEYS
    if is_own_host(host, own_names):
        return None
    return 403, "without keys Flower answers under this machine's own names only: OWNPOD_HOSTS"


def _is_link(request: HTTPServerRequest) -> bool:
    """Whether a link on another page opens a page of Flower. This is permitted, because those pages change nothing."""
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and not request.path.startswith("/api/")
    )


def _password(header: str) -> str:
    """The password of basic authentication, or the key of ``Bearer``; "" if there is neither."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    try:
        pair = base64.b64decode(rest.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return pair.partition(":")[2] if scheme.lower() == "basic" else ""


class Refused(RequestHandler):
    """Answers a refused request, instead of Flower's handler."""

    def initialize(self, status: int, sentence: str) -> None:
        """Receives the arguments that :meth:`GuardedFlower.find_handler` sets."""
        self._status, self._sentence = status, sentence

    def check_xsrf_cookie(self) -> None:
        """Checks nothing, because Tornado's 403 would replace the 401."""

    def prepare(self) -> None:
        """Answers before Tornado chooses a method, so that every method is refused."""
        if self._status == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="OwnPod"')
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{self._sentence}\n")


class KeyWatch(threading.Thread):
    """Checks at intervals whether endpoints have API keys, because endpoints are added at run time.

    This is a thread, because Flower's event loop must not wait for Redis.
    """

    def __init__(self, config: Settings) -> None:
        super().__init__(name="keys", daemon=True)
        client = connect(config.broker_url(), client_name="ownpod-flower")
        self._registry = Registry(load_endpoints(config), Fleet(client), config)
        self.endpoints = tuple(self._registry.endpoints.values())
        try:
            self.single_keys = self._registry.has_keys
        except RedisUnavailable:
            # Closed until the endpoints are read, because one of them may have keys.
            self.single_keys = True

    def run(self) -> None:
        """Does not return. While Redis is away, the last result is used."""
        while True:
            time.sleep(CHECK_INTERVAL_S)
            try:
                self._registry.refresh()
                self.single_keys = self._registry.has_keys
            except RedisUnavailable as error:
                log.debug("endpoints not read: %s", error)
            except Exception:
                # If this thread ended, Flower would stay open after the first key.
                log.exception("endpoints not read")


class GuardedFlower(Flower):  # type: ignore[misc]
    """Flower, with :func:`judge` before the routing of each request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = settings.current()
        self._watch = KeyWatch(config)
        self._keys = door(config, self._watch.endpoints).keys
        if not self._keys:
            self._watch.start()
        self._own_names = {*config.hosts, self.options.address.lower()}

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Routes a request that is refused to :class:`Refused`."""
        refusal = judge(request, self._keys, self._own_names, single_keys=self._watch.single_keys)
        if refusal is None:
            return super().find_handler(request, **kwargs)
        status, sentence = refusal
        return self.get_handler_delegate(request, Refused, {"status": status, "sentence": sentence})


def main() -> None:
    """Runs Celery's command line with :class:`GuardedFlower` as its Flower."""
    command.Flower = GuardedFlower
    celery()


if __name__ == "__main__":
    try:
        main()
    except OwnPodError as error:
        settings.exit_on(error)
    sys.exit(0)
