"""Fetches one model, as a process of its own: ``python -m ownpod.agent.model_fetch``.

A process, because the libraries take memory that an agent must not keep, and one that hangs can be ended. Its standard
input has the order in one line; each line of its output is JSON: its progress, and in the last line its end. It ends when its
standard input is closed, which happens when its agent dies, too; the bytes on the disk stay for the next try.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ownpod.agent import model_sources
from ownpod.agent.model_downloads import FetchError
from ownpod.agent.model_folders import listed
from ownpod.agent.model_hub import Hub
from ownpod.agent.model_orders import Order, order_in
from ownpod.agent.model_sources import Meter
from ownpod.agent.model_store import ModelStore
from ownpod.rules.model_news import State
from ownpod.rules.models import (
    HF,
    HTTP,
    REMOTE,
    SERVICE,
    Manifest,
    ModelFile,
    NoRoom,
    check_source,
)

TELL_S = 0.25
"""Least seconds between two lines."""

FETCHERS = {
    HTTP: model_sources.over_http,
    REMOTE: model_sources.over_fsspec,
    SERVICE: model_sources.over_service,
}


def fetch(order: Order, say: "Lines") -> Manifest:
    """Fetches a model, or waits until another process has fetched it. Raises: FetchError."""
    source, store = order.source, ModelStore(Path(order.root))
    try:
        check_source(source)
        say.state(State.WAITING)
        with store.fetching(source, wait=True):
            # Another process may have fetched it while this one waited.
            if (found := store.find(source)) is not None:
                return found
            return _fetch(order, store, say)
    except ValueError as error:
        raise FetchError(str(error)) from None
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise FetchError(f"{order.root} cannot be used: {what}") from None


def _fetch(order: Order, store: ModelStore, say: "Lines") -> Manifest:
    source, into = order.source, store.partial(order.source.key)

    def room(need: int, have: int) -> None:
        try:
            store.make_room(source, need, have=have, quota=order.quota, stay=order.stay)
        except NoRoom as error:
            raise FetchError(str(error)) from None

    store.drop_rest(source)
    say.state(State.FETCHING)
    meter = Meter(say.progress, room, say.state, say.checked)
    revision, files = "", tuple[ModelFile, ...]()
    if source.in_cache:
        revision, found = Hub(source, store.hub, into, meter).fetch()
        place = f"hub/{source.cache_folder}"
        inside = f"snapshots/{revision}"
        files = tuple(replace(file, path=f"{inside}/{file.path}") for file in found)
    else:
        into.mkdir(mode=0o755, exist_ok=True)
        place, inside = f"store/{source.key}", ""
        if source.kind == HF:
            revision, _ = Hub(source, store.hub, into, meter).fetch()
        else:
            inside = FETCHERS[source.kind](source, into, meter, order.options)
        say.state(State.CHECKING)
        model_sources.clear(into)
        files = listed(into)
        _open_to_all(into)
    if not files:
        raise FetchError("the source has no files")
    manifest = Manifest(source, place, inside, files, time.time_ns() // 1_000_000, revision)
    store.complete(manifest)
    return manifest


def _open_to_all(directory: Path) -> None:
    """Containers may run as any user; and what a server has written must not be a program with rights of its own."""
    for top, _, names in os.walk(directory):
        Path(top).chmod(0o755)
        for name in names:
            Path(top, name).chmod(0o644)


class Lines:
    """Writes the lines of this process."""

    def __init__(self) -> None:
        self._state = State.WAITING
        self._last = float("-inf")
        self._lock = threading.Lock()
        self._at = (0, 0)
        self._checked = 0

    def state(self, state: State) -> None:
        with self._lock:
            self._state = state
            self._step()

    def progress(self, done: int, total: int) -> None:
        with self._lock:
            self._at = (done, total)
            self._step_at_times()

    def checked(self, count: int) -> None:
        with self._lock:
            self._checked += count
            self._step_at_times()

    def end(self, **values: object) -> None:
        self._line(values)

    def _step_at_times(self) -> None:
        if time.monotonic() - self._last >= TELL_S:
            self._last = time.monotonic()
            self._step()

    def _step(self) -> None:
        done, total = self._at
        values = {"state": self._state.value, "done": done, "total": total}
        self._line({**values, "checked": self._checked})

    def _line(self, values: Mapping[str, object]) -> None:
        sys.stdout.write(f"{json.dumps(values)}\n")
        sys.stdout.flush()


def _end_with_the_agent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Fetches the model of the order in the first line of the standard input."""
    # The hub's library makes files as the umask says, and containers that run as another user must read them.
    os.umask(0o022)
    order, say = order_in(sys.stdin.readline()), Lines()
    threading.Thread(target=_end_with_the_agent, daemon=True).start()
    try:
        fetch(order, say)
    except FetchError as error:
        say.end(error=str(error), again=error.again)
    except Exception as error:
        say.end(error=f"it failed unexpectedly: {type(error).__name__}", again=True)
        raise
    else:
        say.end(ready=True)


if __name__ == "__main__":
    main()
