"""Base URLs of workers and of the API: one pattern, which checks them and is shown in ``/openapi.json``. Pure.

Sources: RFC 3986 (form), RFC 1123 (labels of host names; underscores too, as Docker's names have them),
RFC 4291 (IPv6).
"""

import re
from pathlib import Path
from typing import Any

from marshmallow import ValidationError, fields

LONGEST_URL = 2048
"""Characters."""

_H16 = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [
        f"(?:{_H16}:){{7}}{_H16}",
        f"(?:{_H16}:){{1,7}}:",
        *(f"(?:{_H16}:){{1,{7 - n}}}(?::{_H16}){{1,{n}}}" for n in range(1, 7)),
        f":(?:(?::{_H16}){{1,7}}|:)",
    ]
)
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
# The last label has a letter: a host of numbers only is an address.
_LAST_LABEL = "(?:[0-9][0-9-]*)?[A-Za-z_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST = rf"(?:\[(?:{_IPV6})\]|{_OCTET}(?:\.{_OCTET}){{3}}|(?:{_LABEL}\.)*{_LAST_LABEL}\.?)"
_PORT = "(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PATH = r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*"
_LIMITS = r"(?![^/]*[^./:]{64})(?![^/:]{254})"
"""A label has at most 63 characters, a name 253."""

HTTP_URL = rf"[Hh][Tt][Tt][Pp][Ss]?://{_LIMITS}{_HOST}(?::{_PORT})?{_PATH}"
"""A base URL: http or https, a host name or an IP address, a port from 1 to 65535, a path. No user, query
or fragment, no spaces; a name with other letters in its ASCII form (``xn--``). Also valid in ECMAScript."""

_SHAPE = re.compile(r"https?://[^/?#\s]+[^?#\s]*", re.IGNORECASE)


def check_http_url(value: str) -> None:
    """Checks a base URL against :data:`HTTP_URL`.

    Raises:
        ValidationError: with what is allowed.
    """
    if len(value) > LONGEST_URL:
        raise ValidationError(f"must be a URL of at most {LONGEST_URL} characters")
    if not re.fullmatch(HTTP_URL, value):
        # A password is not shown.
        shown = "" if "@" in value else f", not {value!r}"
        raise ValidationError(f"must be an http:// or https:// URL{_problem(value)}{shown}")


def _problem(value: str) -> str:
    """What is wrong with a URL, for its error; "" if it is none at all."""
    if not _SHAPE.fullmatch(value):
        return " of a host, and perhaps a port and a path"
    authority = value.split("/", 3)[2]
    if "@" in authority:
        return " without a user (send a key in a header)"
    with_port = re.fullmatch(r"(\[.*\]|[^:\[]+):(.*)", authority)
    host, port = with_port.groups() if with_port else (authority, "1")
    if not re.fullmatch(_PORT, port):
        return " with a port from 1 to 65535"
    if not authority.isascii():
        return f" with the host in its ASCII form{_ascii(host)}"
    return " of a host name or an IP address ([...] for IPv6), and a path without spaces"


def _ascii(host: str) -> str:
    try:
        return f", {host.encode('idna').decode()}"
    except UnicodeError:
        return " (xn--...)"


class WholeNumber(fields.Integer):
    """A whole number however it is written: to JSON, 5000.0 is one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        whole = isinstance(value, float) and value.is_integer()
        return super()._deserialize(int(value) if whole else value, attr, data, **kwargs)


FRAMING_HEADERS = (
    *("connection", "content-length", "expect", "keep-alive", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
)
"""Headers that tell where a request ends or how its connection goes on: only OwnPod's own are sent, because a
second one would make the worker read a request that OwnPod did not send (RFC 9112, 6.3)."""


def _any_case(name: str) -> str:
    """A pattern for a name in any case, also in regular expressions that have no option for that."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name)


HEADER_NAME = f"(?!(?:{'|'.join(map(_any_case, FRAMING_HEADERS))})$)" r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HEADER_VALUE = r"[\t\x20-\x7e]*"


def check_file(value: str) -> None:
    """Raises: ValidationError."""
    if not Path(value).is_file():
        raise ValidationError("must be a file that exists")


NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Endpoint, worker, job and run ids; also valid in queue names, node names and Redis keys."""


def first_problem(messages: Any, place: str = "") -> tuple[str, str]:
    """The first problem in marshmallow's nested messages, with a dotted path to it."""
    while isinstance(messages, dict):
        key, messages = next(iter(messages.items()))
        if key not in {"_schema", "value", "key"}:
            place = f"{place}.{key}" if place else str(key)
    return place or "the file", str(messages[0])
