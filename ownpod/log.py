"""One line for each event: time, level, who, what; as text, or as JSON for programs."""

import logging
import re
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

NOISY = ("celery.worker.strategy", "celery.app.trace", "celery.worker.consumer", "urllib3")
"""Loggers whose INFO repeats what OwnPod says about the same job or connection."""

_jobs = logging.getLogger("ownpod.job")


class _Form:
    """How this process logs."""

    json = False


def configure(level: str, name: str = "", form: str = "text") -> None:
    """Logs to stderr.

    Args:
        level: the least that is logged.
        name: stands in each line, for processes that share a log.
        form: "text" or "json", see ``OWNPOD_LOG_FORMAT``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(name, form))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    _Form.json = form == "json"
    if level != "DEBUG":
        for noisy in NOISY:
            logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("celery.redirected").setLevel(logging.WARNING)


_UNPRINTED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What could begin a line, drive a terminal or turn a line's direction, and halves of characters."""


def escaped(text: str) -> str:
    """Text on one line: what comes from outside cannot end it and begin one of its own."""
    return _UNPRINTED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _OneLine(logging.Formatter):
    """A line for each record. A traceback follows on lines that begin with spaces, as no record does."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        # Not splitlines(): what else it takes for a line's end is escaped.
        first, *more = super().format(record).split("\n")
        return "\n".join((first, *(f"  {escaped(line)}" for line in more)))


def text_formatter(line: str, dates: str | None = None) -> logging.Formatter:
    """A formatter for people, whose lines no caller can forge."""
    return _OneLine(line, dates)


def formatter(name: str, form: str) -> logging.Formatter:
    """How a line looks."""
    if form == "json":
        return JsonFormatter(
            ["asctime", "levelname", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"process": name},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    who = f"[{name}] " if name else ""
    return _OneLine(f"%(asctime)s %(levelname)-7s {who}%(message)s", "%H:%M:%S")


def moved(job_id: str, status: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """A job has moved to a state. ``fields``: worker, attempt, reason, requestId, ...; those that are
    None are left out.
    """
    if not _jobs.isEnabledFor(level):
        return
    known = {name: value for name, value in fields.items() if value is not None}
    text = "".join(f", {name} {value}" for name, value in known.items())
    extra = {"job": job_id, "status": status, **known}
    _jobs.log(level, "job %s %s%s", job_id, status, text, extra=extra)


def moving(job_id: str, status: str, **fields: Any) -> None:
    """The same, of a move that is not the end: as text only at DEBUG, where it would be in the way."""
    moved(job_id, status, level=logging.INFO if _Form.json else logging.DEBUG, **fields)
