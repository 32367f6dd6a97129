"""The log: one line for each event, with time, level, process and message; as text, or as JSON for programs."""

import logging
import re
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

NOISY = ("celery.worker.strategy", "celery.app.trace", "celery.worker.consumer", "urllib3")
"""Loggers whose INFO lines repeat OwnPod's own lines about the same job or connection."""

_jobs = logging.getLogger("ownpod.job")


class _Form:
    """The form of this process's log."""

    json = False


def configure(level: str, name: str = "", form: str = "text") -> None:
    """Makes this process log to stderr.

    Args:
        level: the lowest level that is logged.
        name: the process's name in each line, because several processes may share a log.
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
"""Characters that could start a new line, control a terminal or change the direction of text, and lone surrogates."""


def escaped(text: str) -> str:
    """Text with such characters escaped, so that a value from a request cannot forge a line of the log."""
    return _UNPRINTED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _OneLine(logging.Formatter):
    """Formats each record as one line. The lines of a traceback begin with spaces, which no record does."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        # Not splitlines(), which also splits at characters that escaped() replaces.
        first, *more = super().format(record).split("\n")
        return "\n".join((first, *(f"  {escaped(line)}" for line in more)))


def text_formatter(line: str, dates: str | None = None) -> logging.Formatter:
    """A formatter of text, whose lines no request can forge."""
    return _OneLine(line, dates)


def formatter(name: str, form: str) -> logging.Formatter:
    """The formatter for a form, see :func:`configure`."""
    if form == "json":
        return JsonFormatter(
            ["asctime", "levelname", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"process": name},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    process = f"[{name}] " if name else ""
    return _OneLine(f"%(asctime)s %(levelname)-7s {process}%(message)s", "%H:%M:%S")


def moved(job_id: str, status: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs that a job has changed its state.

    Args:
        job_id: the job.
        status: the new state.
        level: the level of the line.
        fields: worker, attempt, reason, requestId and others; a field that is None is omitted.
    """
    if not _jobs.isEnabledFor(level):
        return
    known = {name: value for name, value in fields.items() if value is not None}
    text = "".join(f", {name} {value}" for name, value in known.items())
    extra = {"job": job_id, "status": status, **known}
    _jobs.log(level, "job %s %s%s", job_id, status, text, extra=extra)


def moving(job_id: str, status: str, **fields: Any) -> None:
    """Logs a change to a state that is not terminal. In text at DEBUG only, because each job has several of them."""
    moved(job_id, status, level=logging.INFO if _Form.json else logging.DEBUG, **fields)
