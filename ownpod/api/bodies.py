"""Bodies of workers' results: read with bounded memory, to their end, whatever their size.

A worker whose body is refused in the middle sees a broken connection, and drops its result.
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

SKIP_S = 60.0
"""A body that is too large is read and dropped for so long at most."""


class BodyCutOff(OwnPodError):
    """The body of this request did not arrive as a whole; send it again."""

    http_status = 503


@dataclass(frozen=True)
class Body:
    """The body of a request. ``whole``: None if it is too large; ``head``: its first bytes."""

    head: bytes
    whole: bytes | None


def read_body(limit_mib: int) -> Body:
    """The body of this request. One that is too large is read to its end and dropped.

    Raises:
        BodyCutOff: its connection or its framing broke.
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
        # gunicorn ends a body without an error when its connection does.
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
