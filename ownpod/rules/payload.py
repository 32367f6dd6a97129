"""Inputs and outputs: JSON that goes through as it is where it can, as clients can read it. Pure."""

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import msgspec

LONG = 65_536
"""Bytes from which on a payload is not parsed."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def loads(text: str | bytes) -> Any:
    """JSON, but NaN and the infinities, which Python writes and others cannot read, are null.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def split(body: bytes, name: str, parse: Callable[[bytes], Any]) -> tuple[Any, str | None]:
    """A JSON object without one of its members, and that member's text, None if it has none.

    The text is one line. In a long body it is checked and not parsed, which takes a tenth of the time of
    reading and writing it again; but a number may then be one that Python would not read.

    Raises: what ``parse`` does.
    """
    if len(body) >= LONG:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            members = _MEMBERS.decode(body)
            kept = members.pop(name, None)
            text = None if kept is None else str(kept, "utf-8")
            if text is None or not ("\n" in text or "\r" in text):
                return {key: parse(bytes(value)) for key, value in members.items()}, text
    said = parse(body)
    if not isinstance(said, dict) or name not in said:
        return said, None
    return said, json.dumps(said.pop(name))


def readable(text: str) -> Any:
    """JSON text that was checked, parsed; as it is, if Python has a limit that it breaks."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def output_of(chunk: Any) -> Any:
    """What was yielded, out of RunPod's ``{"output": ...}``."""
    return chunk["output"] if isinstance(chunk, dict) and "output" in chunk else chunk
