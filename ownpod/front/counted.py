"""Requests to workers whose body has no length: HAProxy itself cannot limit them, so Lua counts their bytes. Pure.

They pass through HAProxy a second time, over a unix socket, because a filter in Lua costs each request of its backend
a third of HAProxy's speed. So only they pay for it.
"""

from collections.abc import Iterator

from ownpod.front.layout import JSON, error

SOCKET = "counted.sock"
"""The socket between the two passes, mode 0600, in HAProxy's directory."""

_PREFIX = "x-ownpod-counted-"
"""Prefix of the headers with what the first pass has found out. Those of clients were removed before."""

_TEXTS, _NUMBERS = ("be", "ep", "want", "pin", "strict", "openai"), ("limit", "since")
"""Variables of the first pass that the backends of workers use."""

_CONDITION = "{ var(txn.chunked) -m found } { var(txn.be) -m found }"


def first_pass() -> Iterator[str]:
    """The last rules of the public frontend."""
    for name in (*_TEXTS, *_NUMBERS):
        yield f"  http-request set-header {_PREFIX}{name} %[var(txn.{name})] if {_CONDITION} {{ var(txn.{name}) -m found }}"
    yield f"  use_backend counted if {_CONDITION}"


def second_pass() -> Iterator[str]:
    """The backend that counts, and the frontend behind it."""
    yield from (
        "backend counted from base",
        "  filter lua.limit",
        error(400, "%[lua.broken]", form="lf-string"),
        "  http-after-response set-status 413 if { var(txn.problem) -m int 413 }",
        f"  http-after-response set-header Content-Type {JSON} if {{ var(txn.problem) -m int 413 }} {{ var(txn.openai) -m found }}",
        f"  server counted unix@{SOCKET}",
        "frontend counted_in from base",
        f"  bind unix@{SOCKET} mode 600",
    )
    for name in _TEXTS:
        header = f"{_PREFIX}{name}"
        yield f"  http-request set-var(txn.{name}) req.fhdr({header}) if {{ req.fhdr({header}) -m found }}"
    for name in _NUMBERS:
        yield f"  http-request set-var(txn.{name}) req.hdr_val({_PREFIX}{name})"
    yield f"  http-request del-header {_PREFIX} -m beg"
    yield "  use_backend %[var(txn.be)]"
