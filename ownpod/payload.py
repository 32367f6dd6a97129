"""What workers say, as clients can read it. Pure."""

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """JSON, but NaN and the infinities, which Python writes and others cannot read, are null.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def output_of(chunk: Any) -> Any:
    """What was yielded, out of RunPod's ``{"output": ...}``."""
    return chunk["output"] if isinstance(chunk, dict) and "output" in chunk else chunk
