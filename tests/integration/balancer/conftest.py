"""A real HAProxy in front of a small worker over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from web_worker import Front, WebWorker, front


@pytest.fixture
def lb(tmp_path: Path) -> Iterator[Front]:
    with front(tmp_path / "front") as made:
        yield made


@pytest.fixture
def worker() -> Iterator[WebWorker]:
    with WebWorker("w1").serving() as made:
        yield made
