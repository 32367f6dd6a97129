"""The process of ``ownpod flower``: Flower, with a check of each request before Flower handles it.

The check is here because Flower compares plain keys only, and without keys permits requests of any web page
(``Access-Control-Allow-Origin: *``).
"""

import base64
import binascii
import sys
from collections.abc import Collection
from typing import Any

from celery.__main__ import main as celery
from flower import command
from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from ownpod import settings
from ownpod.configuration import load_endpoints
from ownpod.errors import OwnPodError
from ownpod.onehost.flower import door
from ownpod.rules import credentials
from ownpod.rules.credentials import Credential
from ownpod.rules.origins import is_foreign_page, is_own_host

OPEN = "/healthcheck"
"""Answers "OK" and nothing else: for health checks of compose and load balancers."""


def judge(
    request: HTTPServerRequest, keys: tuple[Credential, ...], own_names: Collection[str]
) -> tuple[int, str] | None:
    """Status and sentence with which a request is refused; None: it is not."""
    if request.path == OPEN:
        return None
    host = request.headers.get("Host")
    if is_foreign_page(
        request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site"), host, ()
    ) and not _is_link(request):
        return 403, "no page of another site may call Flower"
    if not keys:
        if is_own_host(host, own_names):
            return None
        return 403, "without keys Flower answers under this machine's own names only: OWNPOD_HOSTS"
    if credentials.matches(_password(request.headers.get("Authorization", "")), keys):
        return None
    return 401, "Flower needs a key as the password of the user ownpod"


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


class GuardedFlower(Flower):  # type: ignore[misc]
    """Flower, with the check before each request is routed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = settings.current()
        self._keys = door(config, load_endpoints(config).values()).keys
        self._own_names = {*config.hosts, self.options.address.lower()}

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Routes a request that is refused to :class:`Refused`."""
        found = judge(request, self._keys, self._own_names)
        if found is None:
            return super().find_handler(request, **kwargs)
        status, sentence = found
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
