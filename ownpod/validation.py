"""Checks of URLs, headers, numbers and ids, shared by settings, ``workers.yaml`` and the API.

The pattern of base URLs is one regular expression, because it is also published in ``/openapi.json``.
Sources: RFC 3986 (form), RFC 1123 (labels of host names; underscores are accepted too, because names of Docker
containers have them), RFC 4291 (IPv6).
"""

import re
from pathlib import Path
from typing import Any

from marshmallow import ValidationError, fields

LONGEST_URL = 2048
"""Maximum length of a URL in characters."""

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
# The last label needs a letter. Without this rule 1.2.3.999 would be accepted as a host name.
_LAST_LABEL = "(?:[0-9][0-9-]*)?[A-Za-z_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST = rf"(?:\[(?:{_IPV6})\]|{_OCTET}(?:\.{_OCTET}){{3}}|(?:{_LABEL}\.)*{_LAST_LABEL}\.?)"
_PORT = "(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PATH = r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*"
_LIMITS = r"(?![^/]*[^./:]{64})(?![^/:]{254})"
"""Lookahead for the maximum lengths: 63 characters of a label, 253 of a name."""

HTTP_URL = rf"[Hh][Tt][Tt][Pp][Ss]?://{_LIMITS}{_HOST}(?::{_PORT})?{_PATH}"
"""A base URL: http or https, a host name or an IP address, a port from 1 to 65535, a path; no user, query, fragment
or spaces. International names need their ASCII form (``xn--``). The pattern is also valid in ECMAScript, because
OpenAPI requires that."""

_SHAPE = re.compile(r"https?://[^/?#\s]+[^?#\s]*", re.IGNORECASE)
"""Anything with a scheme and an authority: enough to name the invalid part in the error."""


def check_http_url(value: str) -> None:
    """Checks a base URL against :data:`HTTP_URL`.

    Raises:
        ValidationError: the URL does not match; the message names the invalid part, and what is valid.
    """
    if len(value) > LONGEST_URL:
        raise ValidationError(f"must be a URL of at most {LONGEST_URL} characters")
    if not re.fullmatch(HTTP_URL, value):
        # The URL may have a password, which must not get into a log.
        shown = "" if "@" in value else f", not {value!r}"
        raise ValidationError(f"must be an http:// or https:// URL{_problem(value)}{shown}")


def _problem(value: str) -> str:
    """The rest of the error message: which form the invalid part must have."""
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


class Flag(fields.Boolean):
    """true or false; marshmallow's own field also accepts 1, "yes" and "on"."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("must be true or false")
        return value


class WholeNumber(fields.Integer):
    """A whole number in any notation, because 5000.0 is an integer in JSON Schema."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        whole = isinstance(value, float) and value.is_integer()
        return super()._deserialize(int(value) if whole else value, attr, data, **kwargs)


FRAMING_HEADERS = (
    *("connection", "content-length", "expect", "keep-alive", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
)
"""Headers that delimit a request or control its connection. Configured ones are refused, because a second one could
make the worker read a request that OwnPod did not send (RFC 9112, 6.3)."""


def _any_case(name: str) -> str:
    """A pattern for a name in upper and lower case, because patterns in JSON Schema have no flag for that."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name)


HEADER_NAME = f"(?!(?:{'|'.join(map(_any_case, FRAMING_HEADERS))})$)" r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HEADER_VALUE = r"[\t\x20-\x7e]*"


def check_file(value: str) -> None:
    """Checks that a file exists.

    Raises:
        ValidationError: the path does not exist, or is no file.
    """
    if not Path(value).is_file():
        raise ValidationError("must be a file that exists")


NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Pattern of endpoint, worker, job and run ids; such an id is also valid in queue names, node names and Redis keys."""


def first_problem(messages: Any, place: str = "") -> tuple[str, str]:
    """The first problem in marshmallow's nested messages: the dotted path of its field, and the message."""
    outer: Any = None
    while isinstance(messages, dict):
        key, messages = next(iter(messages.items()))
        # marshmallow's own levels, which are no fields of the user's. An element of a list may have a field of such a name.
        is_own = key == "_schema" or (key in {"value", "key"} and not isinstance(outer, int))
        outer = key
        if not is_own:
            place = f"{place}.{key}" if place else str(key)
    return place or "the file", str(messages[0])
