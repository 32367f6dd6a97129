"""The output of a one-off task's container as chunks and journal entries of its job, and its end as an outcome. Pure.

Standard output has structured lines (:mod:`ownpod.rules.task_lines`) and plain ones; what the plain ones are is the preset's
:class:`~ownpod.rules.presets.OutputMode`. Standard error is always log lines.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ownpod.rules.output import Mask, plain, printable
from ownpod.rules.presets import OutputMode
from ownpod.rules.task_lines import (
    Chunk,
    Entry,
    Final,
    Finish,
    Item,
    json_text,
    log_entry,
    structured,
)

PIECE_BYTES = 16_384
"""Bytes of one chunk of plain text; a longer line comes as several."""

LONGEST_STRUCTURED = 1_000_000
"""Bytes of a structured line; a longer one is a plain line."""

LONGEST_LOG = 262_144
"""Bytes of a log line; a longer one is cut, because the whole journal of a job has 1 MB."""

PROGRESS_S = 0.25
"""Seconds between two lines that end in a carriage return, as progress bars write them."""

TAIL_LINES, TAIL_BYTES = 20, 300
"""Number of last lines of standard error that are in the error of a task that failed, and bytes of each."""

LONGEST_ERROR = 2000
"""Characters of a task's own error."""

STDOUT, STDERR = "stdout", "stderr"

_ENDS = re.compile(rb"\r\n|\n|\r(?!\Z)")
_TEXT, _CUT = "text", "cut"


@dataclass
class _Stream:
    """One of the two streams.

    Attributes:
        partial: the beginning of a line whose end has not come.
        mid: the beginning of the line was already returned as text, or as a log line that was cut; "": it was not.
    """

    name: str
    partial: bytes = b""
    mid: str = ""


@dataclass
class TaskOutput:
    """Reads the output of one run, which comes in parts.

    An object that is made with the state of another one continues exactly where that one was.

    Args:
        mode: what plain lines of standard output are.
        mask: hides secrets in log lines.
    """

    mode: OutputMode = OutputMode.AUTO
    mask: Mask = plain
    tail: list[str] = field(default_factory=list)
    """The last lines of standard error."""
    finish_said: Finish | None = None
    _seen: bool = False
    """A structured line has come."""

    def __post_init__(self) -> None:
        self._out, self._err = _Stream(STDOUT), _Stream(STDERR)
        self._progress_s = {STDOUT: float("-inf"), STDERR: float("-inf")}

    @classmethod
    def resumed(cls, mode: OutputMode, state: str, mask: Mask = plain) -> "TaskOutput":
        """One that continues from a :meth:`state`; "" or one that cannot be read: from the beginning."""
        made = cls(mode, mask)
        try:
            known = json.loads(state) if state else {}
            for stream, values in ((made._out, known.get("out")), (made._err, known.get("err"))):
                if values:
                    stream.partial, stream.mid = values[0].encode("latin-1"), str(values[1])
            made._seen = bool(known.get("seen"))
            made.tail = [str(line) for line in known.get("tail", ())]
            if said := known.get("finish"):
                made.finish_said = Finish(bool(said[0]), str(said[1]))
        except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
            return cls(mode, mask)
        return made

    def state(self) -> str:
        """What :meth:`resumed` needs, as JSON."""
        streams = {
            key: [stream.partial.decode("latin-1"), stream.mid]
            for key, stream in (("out", self._out), ("err", self._err))
        }
        said = self.finish_said
        finish = None if said is None else [int(said.failed), said.error]
        return json.dumps({**streams, "seen": int(self._seen), "tail": self.tail, "finish": finish})

    @property
    def waits(self) -> bool:
        """There is the beginning of a line of text, which :meth:`flush` returns."""
        return bool(self._out.partial) and self._is_text and not self._may_be_structured

    def feed(self, data: bytes, now_s: float, *, stream: str = STDOUT) -> list[Item]:
        """What this part of a stream completes.

        Args:
            data: the part.
            now_s: any clock that does not go back, in seconds.
            stream: ``stdout`` or ``stderr``.
        """
        at = self._err if stream == STDERR else self._out
        items = [
            item for raw, end in self._split(at, data, now_s) for item in self._line(at, raw, end)
        ]
        items += self._long(at)
        return items if len(data) <= PIECE_BYTES else _joined(items)

    def flush(self) -> list[Item]:
        """The beginning of a line of text, for a program that writes no whole line for a while, as a model does that writes
        one token after the other.
        """
        if not self.waits:
            return []
        at = self._out
        # A carriage return may be the first half of a line's end, and a character may have come in part.
        size = _whole(at.partial, len(at.partial) - at.partial.endswith(b"\r"))
        piece, at.partial = at.partial[:size], at.partial[size:]
        if not piece:
            return []
        at.mid = _TEXT
        return [_text(piece)]

    def skip(self, size: int) -> list[Item]:
        """A number of bytes is missing before the next part; -1: a number that is not known."""
        items: list[Item] = []
        for at in (self._out, self._err):
            raw, at.partial = at.partial, b""
            items += self._line(at, raw, b"\n") if raw else []
            # The next part begins somewhere in a line.
            at.mid = _TEXT if at is self._out and self._is_text else ""
        what = f"{size} bytes" if size > 0 else "a part"
        words = f"{what} of the output lost, because it came faster than it was read"
        data = {"log": words, "level": "warning", "stream": STDOUT, "truncated": True}
        return [*items, Entry("logs", data)]

    def finish(self) -> list[Item]:
        """What is left at the end of the output."""
        items: list[Item] = []
        for at in (self._out, self._err):
            raw, at.partial = at.partial, b""
            if raw:
                body = raw.rstrip(b"\r")
                items += self._line(at, body, raw[len(body) :])
        return items

    @property
    def _is_text(self) -> bool:
        return self.mode is OutputMode.TEXT or (self.mode is OutputMode.AUTO and not self._seen)

    @property
    def _may_be_structured(self) -> bool:
        return not self._out.mid and self._out.partial.lstrip()[:1] in {b"{", b""}

    def _split(self, at: _Stream, data: bytes, now_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Whole lines and their ends. Keeps the rest, with a carriage return at its end, which may be the first half of a
        line's end.
        """
        # The partial line has no end, but for such a return.
        scan = max(0, len(at.partial) - 1)
        data, begin, at.partial = at.partial + data, 0, b""
        for found in _ENDS.finditer(data, scan):
            raw, end, begin = data[begin : found.start()], found[0], found.end()
            if end == b"\r":
                if now_s - self._progress_s[at.name] < PROGRESS_S:
                    at.mid = ""
                    continue
                self._progress_s[at.name] = now_s
            yield raw, end
        at.partial = data[begin:]

    def _line(self, at: _Stream, raw: bytes, end: bytes) -> Iterator[Item]:
        mid, at.mid = at.mid, ""
        if mid == _CUT:
            return
        if mid == _TEXT:
            yield from _pieces(raw + end)
            return
        if at is self._out and raw.lstrip()[:1] == b"{" and len(raw) <= LONGEST_STRUCTURED:
            found = structured(raw.decode(errors="replace"))
            if found is not None:
                self._seen = True
                yield from map(self._noted, found)
                return
        if at is self._out and self._is_text:
            yield from _pieces(raw + end)
            return
        if not raw and end == b"\r":
            return
        yield self._log(at, raw, truncated=len(raw) > LONGEST_LOG)

    def _long(self, at: _Stream) -> Iterator[Item]:
        """What is returned of a line that is too long to be kept until its end comes."""
        if at is self._out and self._may_be_structured:
            if len(at.partial) <= LONGEST_STRUCTURED:
                return
        elif at.mid == _CUT:
            at.partial = at.partial[-1:] if at.partial.endswith(b"\r") else b""
            return
        if at is self._out and (at.mid == _TEXT or self._is_text):
            if len(at.partial) > PIECE_BYTES:
                size = _whole(at.partial, len(at.partial) - 1)
                piece, at.partial, at.mid = at.partial[:size], at.partial[size:], _TEXT
                yield from _pieces(piece)
        elif len(at.partial) > LONGEST_LOG:
            raw, at.partial, at.mid = at.partial, b"", _CUT
            yield self._log(at, raw, truncated=True)

    def _log(self, at: _Stream, raw: bytes, *, truncated: bool) -> Entry:
        text = self.mask(raw[:LONGEST_LOG].decode(errors="ignore" if truncated else "replace"))
        if at is self._err and text.strip():
            line = printable(text).encode(errors="replace")[:TAIL_BYTES].decode(errors="ignore")
            self.tail = [*self.tail, line][-TAIL_LINES:]
        return log_entry(text, at.name, truncated=truncated)

    def _noted(self, item: Item) -> Item:
        if isinstance(item, Finish):
            error = " ".join(printable(self.mask(item.error)).split())[:LONGEST_ERROR]
            self.finish_said = Finish(item.failed, error)
            return self.finish_said
        if isinstance(item, Entry) and item.event == "logs":
            return Entry("logs", {**item.data, "log": self.mask(item.data["log"])})
        return item


def _whole(data: bytes, size: int) -> int:
    """The largest size up to ``size`` that does not divide a character of UTF-8."""
    for back in range(min(4, size)):
        byte = data[size - 1 - back]
        if byte < 0x80:
            return size
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return size if back + 1 >= length else size - 1 - back
    return size


def _text(raw: bytes) -> Chunk:
    return Chunk(json_text(raw.decode(errors="replace")))


def _pieces(raw: bytes) -> Iterator[Chunk]:
    begin = 0
    while len(raw) - begin > PIECE_BYTES:
        end = begin + (_whole(raw[begin : begin + PIECE_BYTES], PIECE_BYTES) or PIECE_BYTES)
        yield _text(raw[begin:end])
        begin = end
    if begin < len(raw):
        yield _text(raw[begin:])


def _joined(items: list[Item]) -> list[Item]:
    """The same, with short texts in a row as one chunk, because each chunk costs time at every reader."""
    found: list[Item] = []
    texts: list[str] = []
    size = 0

    def close() -> None:
        if texts:
            found.append(Chunk(json_text("".join(texts))))
            texts.clear()

    for item in items:
        text: Any = (
            json.loads(item.text) if isinstance(item, Chunk) and item.text[:1] == '"' else None
        )
        length = 0 if text is None else len(text.encode())
        if text is None or size + length > PIECE_BYTES:
            close()
            size = 0
        if text is None:
            found.append(item)
        else:
            texts.append(text)
            size += length
    close()
    return found


__all__ = ["STDERR", "STDOUT", "Chunk", "Entry", "Final", "Finish", "Item", "TaskOutput"]
