"""Bodies of workers' results: read to their end with bounded memory, because a worker whose body is refused before
its end gets a broken connection and drops its result.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import IO

from flask import request
from werkzeug.exceptions import ClientDisconnected
from werkzeug.wsgi import get_input_stream

from ownpod.errors import OwnPodError

PART_BYTES = 65_536
"""Bytes of one read."""

SKIP_S = 60.0
"""Maximum seconds for which a body that is too large is read and dropped."""


class BodyCutOff(OwnPodError):
    """The body of this request did not arrive completely; send it again."""

    http_status = 503


@dataclass(frozen=True)
class Body:
    """The body of a request. ``head``: its first 100 bytes; ``whole``: all of it, None if it is too large."""

    head: bytes
    whole: bytes | None


def read_body(limit_mib: int) -> Body:
    """The body of this request. A body larger than ``limit_mib`` is read to its end and dropped.

    Raises:
        BodyCutOff: the connection broke, or the framing is invalid.
    """
    limit = limit_mib * 1024 * 1024
    stream, parts, size = get_input_stream(request.environ), list[bytes](), 0
    while part := _read(stream):
        size += len(part)
        parts.append(part)
        if max(size, request.content_length or 0) > limit:
            head = parts[0][:100]
            parts.clear()
            with contextlib.suppress(BodyCutOff):
                _skip(stream)
            return Body(head, None)
    if size < (request.content_length or 0):
        # gunicorn reports the end of the body, and no error, when the connection breaks.
        raise BodyCutOff
    whole = b"".join(parts)
    return Body(whole[:100], whole)


def skip_body() -> None:
    """Reads and drops this request's body."""
    with contextlib.suppress(BodyCutOff):
        _skip(get_input_stream(request.environ))


def _skip(stream: IO[bytes]) -> None:
    until = time.monotonic() + SKIP_S
    while _read(stream) and time.monotonic() < until:
        pass


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(PART_BYTES)
    except (OSError, ClientDisconnected) as error:
        raise BodyCutOff from error
