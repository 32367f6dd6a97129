"""Checks of URLs, ids, headers and numbers, for settings, ``workers.yaml`` and the API. Pure, except for check_file.

One pattern checks base URLs and appears in ``/openapi.json``. Sources: RFC 3986 (form), RFC 1123 (labels of host
names; underscores too, because Docker's names have them), RFC 4291 (IPv6).
"""

import re
from pathlib import Path
from typing import Any

from marshmallow import ValidationError, fields

LONGEST_URL = 2048
"""Length of the longest base URL, in characters."""

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
# The last label needs a letter, because URL parsers read a host of numbers as an IPv4 address.
_LAST_LABEL = "(?:[0-9][0-9-]*)?[A-Za-z_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST = rf"(?:\[(?:{_IPV6})\]|{_OCTET}(?:\.{_OCTET}){{3}}|(?:{_LABEL}\.)*{_LAST_LABEL}\.?)"
_PORT = "(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PATH = r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*"
_LIMITS = r"(?![^/]*[^./:]{64})(?![^/:]{254})"
"""Length limits of RFC 1035: a label has at most 63 characters, a name at most 253."""

HTTP_URL = rf"[Hh][Tt][Tt][Pp][Ss]?://{_LIMITS}{_HOST}(?::{_PORT})?{_PATH}"
"""Pattern of a base URL: http or https, a host name or an IP address, a port from 1 to 65535, a path. Without user,
query, fragment and spaces. Names with non-ASCII letters need their ASCII form (``xn--``). The pattern is also valid
in ECMAScript, because OpenAPI uses that dialect."""

_SHAPE = re.compile(r"https?://[^/?#\s]+[^?#\s]*", re.IGNORECASE)
"""Anything with a scheme and an authority: enough to name the invalid part in the error."""


def check_http_url(value: str) -> None:
    """Checks a base URL against :data:`HTTP_URL`.

    Raises:
        ValidationError: the URL is invalid; the message has the allowed form.
    """
    if len(value) > LONGEST_URL:
        raise ValidationError(f"must be a URL of at most {LONGEST_URL} characters")
    if not re.fullmatch(HTTP_URL, value):
        # The part before @ may be a password, so the message omits such a URL.
        shown = "" if "@" in value else f", not {value!r}"
        raise ValidationError(f"must be an http:// or https:// URL{_problem(value)}{shown}")


def _problem(value: str) -> str:
    """The end of the error message: the part of the URL that is wrong, and its allowed form."""
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
    """A whole number in any JSON notation: 5000.0 counts, because JSON has one type of number (RFC 8259)."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        whole = isinstance(value, float) and value.is_integer()
        return super()._deserialize(int(value) if whole else value, attr, data, **kwargs)


FRAMING_HEADERS = (
    *("connection", "content-length", "expect", "keep-alive", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
)
"""Headers that frame a request or control its connection. Configured headers must not contain them, because a second
one could make the worker read a request that OwnPod did not send (RFC 9112, 6.3)."""


def _any_case(name: str) -> str:
    """A pattern for a name in upper and lower case, for dialects of regular expressions without such a flag."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name)


HEADER_NAME = f"(?!(?:{'|'.join(map(_any_case, FRAMING_HEADERS))})$)" r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HEADER_VALUE = r"[\t\x20-\x7e]*"


def check_file(value: str) -> None:
    """Checks that a file exists. Raises: ValidationError."""
    if not Path(value).is_file():
        raise ValidationError("must be a file that exists")


NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Pattern of endpoint, worker, job and run ids. All of its characters are valid in queue names, node names and Redis
keys."""


def first_problem(messages: Any, place: str = "") -> tuple[str, str]:
    """The first error in marshmallow's nested messages: its dotted path, and its message."""
    while isinstance(messages, dict):
        key, messages = next(iter(messages.items()))
        # marshmallow's own levels, which are no fields of the user's.
        if key not in {"_schema", "value", "key"}:
            place = f"{place}.{key}" if place else str(key)
    return place or "the file", str(messages[0])
