"""Sizes as people write them, in bytes. Pure."""

import re
from typing import Any

MIB = 1024**2
LARGEST_SIZE = 1024**5
"""Bytes of the largest size that is accepted, 1 PiB."""

_SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,6})?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)


def allowed(least_mib: int) -> str:
    """What :func:`parse` accepts, in words that follow "must be"."""
    return f"a size such as 512m or 16g, or a number of bytes, at least {least_mib}m"


def parse(value: Any, least_mib: int) -> int:
    """Bytes of a size like ``512m``, ``16g`` or ``16 GiB``, or of a number of bytes; units are powers of 1024.

    Raises:
        ValueError, TypeError: it is no size, or smaller than ``least_mib`` MiB.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError
        value = float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")
    if not least_mib * MIB <= value <= LARGEST_SIZE:
        raise ValueError
    return int(value)
