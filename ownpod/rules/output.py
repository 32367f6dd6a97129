"""A worker's output as lines: bounded in length and number, without secrets, each with the job that it belongs to. Pure."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ownpod.rules.managed import LOG_LINES
from ownpod.validation import NAME

LONGEST_LINE = 8192
"""Bytes of a line that are kept."""

HELD_BYTES, HELD_SDK_BYTES = LONGEST_LINE + 512, 32_768
"""Bytes of a line without an end after which it is cut. The SDK writes up to 4096 characters, in JSON with up to six bytes
for each, and only a whole line of JSON has a job's id. What is beyond the length of a line is there for a secret that a cut would
divide."""

LINES_PER_S, BYTES_PER_S = 200, 100_000
"""How much of a worker's output is kept over a longer time."""

BURST_LINES, BURST_BYTES = 1000, 262_144
"""How much is kept at once, which is also how much is kept of a worker at all."""

PAUSE_S = 1.0
"""Seconds for which lines are left out once a worker has written too much; their number is in a line of its own."""

PROGRESS_PAUSE_S = 0.25
"""Seconds between two lines that end in a carriage return, as progress bars write them."""

MOST_OPEN = 100
"""Number of running jobs of a worker that are remembered."""

MOST_LAST_BYTES = 65_536
"""Bytes of those last lines that are kept although the worker had written too much."""

PIECE_BYTES = 16_384

CUT = " … (cut)"

_SDK = b'{"requestId": '
# A generator handler writes no "Started.".
_STARTED, _ENDED = ("Started.", "Handling Job"), ("Finished.", "Job stopped.")
_MARKS = re.compile(
    rb'\{"requestId": "([^"]{1,255})", "message": "(Started\.|Handling Job|Finished\.|Job stopped\.)"'
)
_ENDS = re.compile(rb"(\r\n|\n|\r(?!\Z))")
# Escape sequences of terminals: colors, the position of the cursor, titles.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LATER = re.compile(r"-[1-9][0-9]{0,2}")

Mask = Callable[[str], str]


def plain(text: str) -> str:
    """A mask that hides nothing."""
    return text


@dataclass(frozen=True)
class Line:
    """A line of output. ``run``: the id under which its worker knows the job that it belongs to; None: of no one job."""

    text: str
    run: str | None = None


def is_of_job(run: str | None, job_id: str) -> bool:
    """Whether a run's id is of this job: it is the job's, with the number of the attempt behind it from the second on."""
    if run is None or not run.startswith(job_id):
        return False
    return run == job_id or _LATER.fullmatch(run[len(job_id) :]) is not None


class Lines:
    """Makes lines of a worker's output, which comes in parts.

    A line longer than :data:`LONGEST_LINE` is cut. Of a worker that writes faster than :data:`LINES_PER_S` or
    :data:`BYTES_PER_S` lines are left out, with their number in a line of its own; the last ones before a silence are
    kept, because they show why a worker has ended.

    RunPod's SDK writes JSON with the job's id. Other lines belong to the job that has started and not finished, if
    there is exactly one.

    Args:
        state: of an earlier object, which has had the output before; "": there is none.
        mask: hides secrets in a text.
    """

    def __init__(self, state: str = "", *, mask: Mask = plain) -> None:
        known = _known(state)
        self._partial = known["partial"].encode("latin-1", "replace")
        self._cut = bool(known["cut"])
        self._open: dict[str, None] = dict.fromkeys(map(str, known["open"]))
        self._left = int(known["left"])
        self._missing = 0
        self._mask = mask
        self._last: deque[Line] = deque()
        self._last_bytes = 0
        """The last of the lines that are left out, and their size."""
        self._resumes_s: float | None = 0.0 if self._left else None
        self._spare_lines, self._spare_bytes = float(BURST_LINES), float(BURST_BYTES)
        self._fed_s: float | None = None
        self._progress_s = float("-inf")

    @property
    def leaves_out(self) -> bool:
        """Lines are left out at the moment. :meth:`feed` returns the last of them after :data:`PAUSE_S`, also without data."""
        return self._resumes_s is not None

    def state(self) -> str:
        """What the next object needs to continue, as JSON."""
        return json.dumps(
            {
                "partial": self._partial.decode("latin-1"),
                "cut": int(self._cut),
                "open": list(self._open),
                "left": self._left,
            }
        )

    def feed(self, data: bytes, now_s: float) -> list[Line]:
        """The lines that this part of the output completes. ``now_s``: any clock that does not go back, in seconds."""
        lines = self._refill(now_s)
        for begin in range(0, len(data), PIECE_BYTES):
            piece = data[begin : begin + PIECE_BYTES]
            if self.leaves_out and begin + 2 * PIECE_BYTES < len(data):
                self._pass_over(piece)
            else:
                for raw, progress in self._split(piece):
                    lines += self._admit(self._parsed(raw), now_s, progress=progress)
        return lines

    def skip(self, size: int, now_s: float) -> None:
        """A number of bytes is missing before the next part; 0: their number is not known."""
        self._missing += max(size, 1)
        self._partial, self._cut = b"", True
        if self._resumes_s is None:
            self._resumes_s = now_s + PAUSE_S

    def finish(self) -> list[Line]:
        """The lines that are left at the end of the output."""
        raw = self._partial.rstrip(b"\r")
        self._partial = b""
        last = self._parsed(raw) if raw and not self._cut else []
        return [*self._released(), *last]

    def _refill(self, now_s: float) -> list[Line]:
        passed_s = 0.0 if self._fed_s is None else max(0.0, now_s - self._fed_s)
        self._fed_s = now_s
        self._spare_lines = min(BURST_LINES, self._spare_lines + passed_s * LINES_PER_S)
        self._spare_bytes = min(BURST_BYTES, self._spare_bytes + passed_s * BYTES_PER_S)
        if self._resumes_s is None or now_s < self._resumes_s:
            return []
        lines = self._released()
        self._spare_lines -= len(lines)
        self._spare_bytes -= sum(map(_size, lines))
        return lines

    def _released(self) -> list[Line]:
        """Ends a time in which lines were left out: their number, and the last of them."""
        lines, left = [*self._last], self._left - len(self._last)
        parts = [f"{left} lines"] if left > 0 else []
        if self._missing:
            parts.append(f"{self._missing / 1e6:.0f} MB" if self._missing > 1e6 else "more")
        if parts:
            lines.insert(0, Line(f"… {' and '.join(parts)} left out"))
        self._last.clear()
        self._last_bytes = 0
        self._left, self._missing, self._resumes_s = 0, 0, None
        return lines

    def _admit(self, parsed: list[Line], now_s: float, *, progress: bool) -> Iterator[Line]:
        if progress:
            if now_s - self._progress_s < PROGRESS_PAUSE_S:
                return
            self._progress_s = now_s
        for line in parsed:
            enough = self._spare_lines >= 1 and self._spare_bytes > 0
            if self._resumes_s is None and enough:
                self._spare_lines -= 1
                self._spare_bytes -= _size(line)
                yield line
                continue
            if self._resumes_s is None:
                self._resumes_s = now_s + PAUSE_S
            self._left += 1
            if len(self._last) == LOG_LINES:
                self._last_bytes -= _size(self._last.popleft())
            self._last.append(line)
            self._last_bytes += _size(line)
            while self._last_bytes > MOST_LAST_BYTES:
                self._last_bytes -= _size(self._last.popleft())

    def _split(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Whole lines, and whether each ends in a carriage return. Keeps the rest, with such a return at its end, which may be
        the first half of a line's end.
        """
        *pairs, rest = _ENDS.split(self._partial + data)
        for raw, end in zip(pairs[::2], pairs[1::2], strict=True):
            if self._cut:
                self._cut = False
            elif raw or end != b"\r":
                yield raw, end == b"\r"
        most = HELD_SDK_BYTES if rest.startswith(_SDK) else HELD_BYTES
        self._partial = rest
        if self._cut:
            self._partial = rest[-1:] if rest.endswith(b"\r") else b""
        elif len(rest) > most:
            self._partial, self._cut = b"", True
            yield rest, False

    def _pass_over(self, data: bytes) -> None:
        """Counts lines that are left out. Only the beginnings and ends of jobs in them matter."""
        data = self._partial + data
        for found in _MARKS.finditer(data):
            self._note(found[1].decode(errors="replace"), found[2].decode())
        whole, end, self._partial = data.rpartition(b"\n")
        self._left += whole.count(b"\n") + len(end)
        if len(self._partial) > HELD_BYTES:
            self._partial, self._cut = b"", True
        elif end:
            self._cut = False

    def _parsed(self, raw: bytes) -> list[Line]:
        """A raw line; several, if the SDK's message has several."""
        run, level, message = _of_sdk(raw)
        if run is not None:
            self._note(run, message)
        elif len(self._open) == 1:
            (run,) = self._open
        if level is None:
            message = raw.decode(errors="replace")
        texts = self._mask(message).split("\n")
        if level is not None:
            # As the SDK writes it on a terminal.
            texts[0] = f"{level.ljust(7)}| {texts[0]}"
        return [Line(_clean(text), run) for text in texts]

    def _note(self, run: str, message: str) -> None:
        if message in _STARTED:
            self._open[run] = None
            if len(self._open) > MOST_OPEN:
                del self._open[next(iter(self._open))]
        elif message in _ENDED:
            self._open.pop(run, None)


def _known(state: str) -> dict[str, Any]:
    first: dict[str, Any] = {"partial": "", "cut": 0, "open": [], "left": 0}
    try:
        found = json.loads(state) if state else {}
    except (ValueError, RecursionError):
        return first
    same = isinstance(found, dict) and all(
        isinstance(value, type(first[name])) for name, value in found.items() if name in first
    )
    return first | found if same else first


def _of_sdk(raw: bytes) -> tuple[str | None, str | None, str]:
    """The run, the level and the message of a line of RunPod's SDK; the level of any other line is None."""
    if not raw.startswith(_SDK):
        return None, None, ""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return None, None, ""
    if not isinstance(values, dict) or values.keys() != {"requestId", "message", "level"}:
        return None, None, ""
    run, level, message = values["requestId"], values["level"], values["message"]
    if not isinstance(level, str) or not isinstance(message, str):
        return None, None, ""
    known = isinstance(run, str) and NAME.fullmatch(run)
    return (run if known else None), level[:20], message


def printable(text: str) -> str:
    """A text without what a terminal would obey: escape sequences and control characters."""
    if text.isprintable():
        return text
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r", " ")))


def _clean(text: str) -> str:
    """One line for people. Redis cannot store half a surrogate pair."""
    data = printable(text).encode(errors="replace")
    if len(data) > LONGEST_LINE:
        end = LONGEST_LINE - len(CUT.encode())
        return data[:end].decode(errors="ignore") + CUT
    return data.decode()


def _size(line: Line) -> int:
    return len(line.text.encode())


def texts(lines: Iterable[Line]) -> str:
    """The lines as one text."""
    return "\n".join(line.text for line in lines)
