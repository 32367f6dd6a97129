"""One line for each event: time, level, who, what."""

import logging
import sys

NOISY = ("celery.worker.strategy", "celery.app.trace", "celery.worker.consumer", "urllib3")
"""Loggers whose INFO repeats what OwnPod says about the same job or connection."""


def configure(level: str, name: str = "") -> None:
    """Logs to stderr; ``name`` stands in each line, for processes that share a log."""
    who = f"[{name}] " if name else ""
    logging.basicConfig(
        stream=sys.stderr,
        level=level,
        format=f"%(asctime)s %(levelname)-7s {who}%(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    if level != "DEBUG":
        for noisy in NOISY:
            logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("celery.redirected").setLevel(logging.WARNING)
