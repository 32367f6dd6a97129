"""``ownpod`` commands in the test's own process, which start at once."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from click.testing import CliRunner

from ownpod import settings
from ownpod.tools.cli import main


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, its output, and what it wrote to standard error."""

    code: int
    output: str
    errors: str


class Run(Protocol):
    """Runs ``ownpod`` with arguments. Fails the test if it ends with an exception that is no exit."""

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> Done: ...


@contextlib.contextmanager
def running_commands(monkeypatch: pytest.MonkeyPatch, **environ: object) -> Iterator[Run]:
    """Commands with these variables, until the end of the block. A test that changes one afterwards clears the settings' cache."""
    for name, value in environ.items():
        monkeypatch.setenv(name, str(value))
    settings.current.cache_clear()

    def run(*arguments: str, stdin: str | bytes = "") -> Done:
        done = CliRunner().invoke(main, arguments, prog_name="ownpod", input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    yield run
    settings.current.cache_clear()


def command_environment(directory: Path, redis_url: str, workers: str) -> dict[str, str]:
    """The variables of an installation in this directory, which gets a ``workers.yaml`` with this text."""
    (directory / "workers.yaml").write_text(workers)
    return {
        "REDIS_URL": redis_url,
        "OWNPOD_WORKERS_FILE": str(directory / "workers.yaml"),
        "OWNPOD_DATA_DIR": str(directory / "var"),
    }
