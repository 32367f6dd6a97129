"""One line of a one-off task's standard output: whether it is structured, and what it means. Pure.

Source: the GPU service, whose documents have two spellings, ``{"type": T, "data": {...}}`` and ``{"event": T, ...}``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ownpod.rules.output import printable

LEVELS = ("debug", "info", "warning", "error")
"""Levels of log lines."""

_OTHER_LEVELS = {"warn": "warning", "critical": "error", "fatal": "error", "trace": "debug"}
_PREFIXES = {f"{level.upper()}:": level for level in LEVELS}

LONGEST_ENTRY = 65_536
"""Bytes of the data of a structured ``worker`` or ``progress`` line, as JSON; a longer one is a log line."""

_LONGEST_STATUS, _LONGEST_TIME = 64, 64
_SPELLINGS = {"log": "logs", "finish": "task_finish", "connection": "worker"}


@dataclass(frozen=True)
class Chunk:
    """A part of the task's output, which becomes a chunk of its job: JSON text."""

    text: str


@dataclass(frozen=True)
class Entry:
    """An entry of the job's journal."""

    event: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Final:
    """The task's whole output, JSON text, instead of its chunks."""

    output: str


@dataclass(frozen=True)
class Finish:
    """The task's own word on its end."""

    failed: bool
    error: str = ""


Item = Chunk | Entry | Final | Finish


def json_text(value: Any) -> str:
    """A value as JSON without half surrogate pairs, which no UTF-8 text can have."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()


def level_of(value: object) -> str:
    """A level by one of its many names; "info" for anything else."""
    name = value.lower() if isinstance(value, str) else ""
    name = _OTHER_LEVELS.get(name, name)
    return name if name in LEVELS else "info"


def log_entry(text: str, stream: str, *, truncated: bool = False) -> Entry:
    """A plain line as a log line, whose level is its prefix's, ``ERROR:`` for example."""
    line = printable(text)
    level = next(
        (lv for prefix, lv in _PREFIXES.items() if line.lstrip().startswith(prefix)), "info"
    )
    cut = {"truncated": True} if truncated else {}
    return Entry("logs", {"log": line, "level": level, "stream": stream, **cut})


def structured(line: str) -> list[Item] | None:
    """What a structured line means; None: it is a plain line, or one that is malformed."""
    try:
        values = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    if isinstance(kind := values.get("type"), str) and isinstance(values.get("data", {}), dict):
        data = values.get("data", {})
    elif isinstance(kind := values.get("event"), str):
        data = {name: value for name, value in values.items() if name != "event"}
    else:
        return None
    read = _READ.get(_SPELLINGS.get(kind, kind))
    try:
        return None if read is None else read(data)
    except RecursionError:
        return None


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _text_delta(data: Mapping[str, Any]) -> list[Item] | None:
    delta = data.get("delta")
    return [Chunk(json_text(delta))] if isinstance(delta, str) else None


def _output_delta(data: Mapping[str, Any]) -> list[Item] | None:
    return [Chunk(json_text(data["output"]))] if "output" in data else None


def _text(data: Mapping[str, Any]) -> list[Item] | None:
    content = data.get("content")
    return [Final(json_text(content))] if isinstance(content, str) else None


def _output(data: Mapping[str, Any]) -> list[Item] | None:
    return [Final(json_text(data["output"]))] if "output" in data else None


def _logs(data: Mapping[str, Any]) -> list[Item] | None:
    text = data.get("log", data.get("message"))
    if not isinstance(text, str):
        return None
    found = {"log": printable(text), "level": level_of(data.get("level")), "stream": "stdout"}
    at = data.get("timestamp")
    if isinstance(at, str) and 0 < len(at) <= _LONGEST_TIME:
        found["timestamp"] = printable(at)
    return [Entry("logs", found)]


def _worker(data: Mapping[str, Any]) -> list[Item] | None:
    status = data.get("status")
    if not isinstance(status, str) or not 0 < len(status) <= _LONGEST_STATUS:
        return None
    return _bounded("worker", data)


def _progress(data: Mapping[str, Any]) -> list[Item] | None:
    progress = data.get("progress", data)
    return _bounded("worker", {"status": "working", "progress": progress})


def _task_finish(data: Mapping[str, Any]) -> list[Item] | None:
    status, error = data.get("status"), data.get("error")
    if not isinstance(status, str):
        return None
    return [Finish(status.lower() != "completed", error if isinstance(error, str) else "")]


def _bounded(event: str, data: Mapping[str, Any]) -> list[Item] | None:
    return [Entry(event, data)] if len(json_text(data)) <= LONGEST_ENTRY else None


_READ = {
    "text_delta": _text_delta,
    "output_delta": _output_delta,
    "text": _text,
    "output": _output,
    "logs": _logs,
    "worker": _worker,
    "progress": _progress,
    "task_finish": _task_finish,
}
