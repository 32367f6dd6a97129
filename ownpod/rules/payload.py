"""JSON payloads: inputs and outputs. Large ones are checked and forwarded without being parsed. Pure."""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

LONG = 65_536
"""Size in bytes from which a payload is checked but not parsed."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def loads(text: str | bytes) -> Any:
    """Parses JSON. NaN and the infinities become None, because they are not JSON and other clients cannot read them.

    Raises:
        ValueError: the text is not JSON.
    """
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def split(body: bytes, name: str, parse: Callable[[bytes], Any]) -> tuple[Any, str | None]:
    """Separates one member from a JSON object. Returns the object without it, and the member's JSON text or None.

    The text is one line. In a body of :data:`LONG` bytes and more the member is checked and not parsed, which
    takes a tenth of the time of parsing and writing it. Such a text may have a number that Python cannot parse.

    Args:
        body: the JSON text.
        name: the name of the member.
        parse: parses JSON; what it raises is raised here.
    """
    if len(body) >= LONG:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            members = _MEMBERS.decode(body)
            kept = members.pop(name, None)
            text = None if kept is None else str(kept, "utf-8")
            if text is None or not ("\n" in text or "\r" in text):
                return {key: parse(bytes(value)) for key, value in members.items()}, text
    value = parse(body)
    if not isinstance(value, dict) or name not in value:
        return value, None
    return value, json.dumps(value.pop(name))


def members(body: bytes, names: Sequence[str]) -> dict[str, Any] | None:
    """The values of these members of a JSON object; the others are checked and not parsed. None: it cannot be read so.

    Of members with the same name the last one counts, as for Python's parser.
    """
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
        found = _MEMBERS.decode(body)
        return {name: readable(str(found[name], "utf-8")) for name in names if name in found}
    return None


def readable(text: str) -> Any:
    """Parses JSON text that was checked. Returns the text itself if it exceeds a limit of Python's parser."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def output_of(chunk: Any) -> Any:
    """The yielded value in a chunk, which RunPod's SDK wraps as ``{"output": ...}``."""
    return chunk["output"] if isinstance(chunk, dict) and "output" in chunk else chunk


def posted(body: bytes) -> Any:
    """The JSON that a worker has posted; None if it is none. The SDK declares it as a form, so Flask does not parse it."""
    try:
        return loads(body)
    except (ValueError, RecursionError):
        return None


def written(value: Any) -> str:
    """A value as JSON text; "null" if it cannot be written."""
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):
        return "null"


def chunk_of(body: bytes) -> str:
    """The value that a handler has yielded, as JSON text, from the body that the worker has posted."""
    return written(output_of(posted(body)))


def elements(text: str) -> list[str] | None:
    """The JSON texts of a list's elements, unchanged; None: the text is no list."""
    if not text.lstrip().startswith("["):
        return None
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
        return [str(part, "utf-8") for part in _ELEMENTS.decode(text)]
    found = readable(text)
    return [json.dumps(part) for part in found] if isinstance(found, list) else None
