"""The models of this host: each is fetched once, by a process of its own, before a worker holds a device for it."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ownpod.agent.engine import EngineError
from ownpod.agent.model_orders import FetchSettings
from ownpod.agent.model_orders import Order as Fetch
from ownpod.agent.model_process import End, FetchProcess
from ownpod.agent.model_store import ModelStore
from ownpod.agent.outside import Outside
from ownpod.rules.model_mounts import ModelMount, model_mount
from ownpod.rules.model_news import Coming, News, State, progress_words
from ownpod.rules.models import FILE, PLACED, ModelSource, check_source
from ownpod.rules.scaling import start_pause_s
from ownpod.rules.templates import Template
from ownpod.store.models import FETCH, Models, Order

log = logging.getLogger(__name__)

HEAD_START_S = 2.0
"""Seconds for which a host without a worker's model leaves the worker to hosts that have it."""

AT_ONCE = 2
"""Number of models that are fetched at the same time."""

WANTED_S = 15.0
"""Seconds for which a model stays after a worker was last seen that waits for it."""

PUBLISH_S = 20.0
"""Seconds after which a host publishes the same news again."""

NOT_REMOVED = "it is not removed: "
"""How the reason begins for which a model stays that was to be removed."""

PROGRESS_S = 0.5
"""Least seconds between two wakeups of the agent because a fetch goes on."""


class HostModels:
    """The models of this host.

    Args:
        directory: where they are; it is made when it is needed.
        host: this host's name among the agents.
        stored: the news and orders of all hosts.
        container: whether workers of this host have paths of their own.
        fetching: how models are fetched.
        environ: of the process that fetches.
        head_start_s: see :data:`HEAD_START_S`.
        outside: where the engine's host has the models.
        clock: seconds.
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        stored: Models,
        *,
        container: bool,
        fetching: FetchSettings | None = None,
        environ: Mapping[str, str] | None = None,
        head_start_s: float = HEAD_START_S,
        outside: Outside | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = ModelStore(directory.resolve())
        self._host = host
        self._stored = stored
        self._container = container
        self._settings = fetching or FetchSettings()
        self._environ = dict(environ or {})
        self.done: Callable[[], None] = lambda: None
        """Called when something changes, in another thread."""
        self.head_start_s = head_start_s
        self._outside = outside or Outside()
        self._clock = clock
        self._lock = threading.Lock()
        self._news = dict[str, News]()
        """Of models that are being fetched, and of those whose fetch failed."""
        self._retry_at = dict[str, float]()
        self._running = dict[str, FetchProcess]()
        self._wanted = dict[str, float]()
        self._ordered = dict[str, str]()
        """The orders whose fetch has begun, by the model's key."""
        self._pinned: Collection[str] = ()
        self._ended = Counter[str]()
        """Fetches that have ended, by state, until Redis has them."""
        self._published: tuple[float, tuple[News, ...]] = (float("-inf"), ())
        self._closed = False

    # For wanted workers.

    def coming(self, worker_id: str, source: ModelSource, *, may_fetch: bool) -> Coming | None:
        """Why a worker cannot start here because of its model, whose fetch begins then; None: the model is here.

        Args:
            worker_id: a wanted worker.
            source: its model.
            may_fetch: this host could run the worker, and the others have had their chance.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        try:
            check_source(source)
            self._wanted[source.key] = self._clock()
            if source.kind != PLACED:
                # Before a fetch whose files no worker could have.
                self._root(source)
            if source.kind == PLACED or self.store.find(source) is not None:
                self.store.touch(source.key)
                return None
        except (OSError, ValueError) as error:
            return Coming(f"model {source.id[:80]}: {_plain(error)}", failed=True)
        if not self._settings.allowed:
            words = f"model {source.id} is not on this host, and OWNPOD_FETCH_MODELS is false"
            return Coming(words, failed=True)
        with self._lock:
            running, news = source.key in self._running, self._news.get(source.key)
            waits = self._clock() < self._retry_at.get(source.key, 0.0)
        if not running and not waits:
            if not may_fetch or not self._stored.may_fetch(worker_id, self._host):
                return Coming()
            self._begin(source)
            news = self._of(source)
        elif running:
            self._stored.may_fetch(worker_id, self._host)
        elif news is not None and news.state is State.FAILED:
            self._stored.give_up(worker_id, self._host)
        news = news or News(source.key, source.id, source.shown, State.WAITING)
        failed = news.state is State.FAILED
        return Coming(progress_words(news), news.done, news.total, failed)

    def hold(self, worker_id: str, source: ModelSource) -> bool:
        """Keeps a model for a worker that is about to be placed here. False: it is not here any more."""
        try:
            return source.kind == PLACED or self.store.hold(worker_id, source) is not None
        except (OSError, ValueError) as error:
            log.warning("model %s of worker %s: %s", source.id, worker_id, _plain(error))
            return False

    def mount(self, worker_id: str, template: Template) -> ModelMount:
        """What a worker gets of its model. Raises: EngineError, the model is not here."""
        source = template.model
        if source is None:
            return ModelMount()
        try:
            manifest = self.store.hold(worker_id, source)
            if manifest is None:
                if source.kind == PLACED:
                    return ModelMount()
                raise EngineError(f"model {source.id} is not on this host any more")
            taken = [volume.path for volume in template.volumes]
            root = self._root(source)
            if source.kind == FILE and self._container:
                manifest = replace(manifest, place=self._outside.of(manifest.place))
            return model_mount(manifest, root, container=self._container, taken=taken)
        except (OSError, ValueError) as error:
            raise EngineError(f"model {source.id}: {_plain(error)}") from None

    def _root(self, source: ModelSource) -> str:
        """The directory of all models, as workers' mounts name it. Raises: ValueError, the engine cannot see a model there."""
        root = str(self.store.root)
        if not self._container or source.kind == FILE:
            return root
        return self._outside.of(root)

    # The agent's turn.

    def turn(self, living: Collection[str]) -> None:
        """Forgets workers that are gone, does what was asked of this host, and publishes its news.

        Args:
            living: ids of all workers that this host has, or that the engine knows.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        self.store.release(living)
        self._wanted = self._still_wanted()
        orders, self._pinned = self._stored.read(self._host)
        for key, order in orders.items():
            self._obey(key, order)
        self._publish()
        with self._lock:
            ended = self._ended.copy()
        if ended:
            self._stored.count(self._host, ended)
            with self._lock:
                self._ended -= ended

    def _obey(self, key: str, order: Order) -> None:
        source = order.source
        try:
            check_source(source)
            if order.do != FETCH:
                self._remove(source)
            elif not self._is_tried(key, order):
                return
        except (OSError, ValueError) as error:
            self._fail(source, _plain(error))
        self._ordered.pop(key, None)
        self._stored.done(self._host, key, order)

    def _is_tried(self, key: str, order: Order) -> bool:
        """Whether an order to fetch needs nothing more: one fetch for each order, whatever its end."""
        source = order.source
        if source.kind in {FILE, PLACED}:
            return True
        with self._lock:
            running = key in self._running
        if running or self.store.find(source) is not None:
            return not running
        if self._ordered.get(key) == order.text:
            return True
        if self._begin(source):
            self._ordered[key] = order.text
        return False

    def _remove(self, source: ModelSource) -> None:
        with self._lock:
            # Its thread then tries no more.
            running = self._running.pop(source.key, None)
        if running is not None:
            running.kill()
        if problem := self.store.remove(source):
            self._fail(source, f"{NOT_REMOVED}{problem}")
            return
        log.info("model %s is removed", source.id)
        with self._lock:
            self._news.pop(source.key, None)

    def _publish(self) -> None:
        users = self.store.users()
        found = {}
        for whole in self.store.all():
            manifest = whole.manifest
            source, size = manifest.source, manifest.size
            found[source.key] = News(
                *(source.key, source.id, source.shown, State.READY, size, size),
                used_ms=int(whole.used_s * 1000),
                workers=tuple(sorted(w for w, key in users.items() if key == source.key)),
                revision=manifest.revision,
                origin=source,
            )
        with self._lock:
            for key, news in list(self._news.items()):
                mine = found.get(key)
                if mine is None and news.error.startswith(NOT_REMOVED):
                    # It has given way to another one meanwhile.
                    del self._news[key]
                    self._retry_at.pop(key, None)
                elif mine is None:
                    found[key] = news
                elif news.error and key not in self._running:
                    found[key] = replace(mine, error=news.error)
        meter = tuple(found[key] for key in sorted(found))
        at, last = self._published
        if meter != last or (meter and self._clock() - at >= PUBLISH_S):
            self._stored.publish(self._host, meter)
            self._published = (self._clock(), meter)

    # Fetches.

    def _begin(self, source: ModelSource) -> bool:
        with self._lock:
            if self._closed or source.key in self._running or len(self._running) >= AT_ONCE:
                return False
            self._retry_at.pop(source.key, None)
            tries = self._news[source.key].tries if source.key in self._news else 0
            self._note(source, State.WAITING, tries=tries)
            try:
                self._running[source.key] = self._start(source)
            except OSError as error:
                self._note_failure(source, f"no process can be started: {_plain(error)}")
                return False
        threading.Thread(target=self._run, args=(source,), name="model", daemon=True).start()
        return True

    def _start(self, source: ModelSource) -> FetchProcess:
        return FetchProcess(
            Fetch(
                str(self.store.root),
                source,
                self._settings.quota,
                (*self._still_wanted(), *self._pinned),
                self._settings.options,
            ),
            self._environ,
        )

    def _still_wanted(self) -> dict[str, float]:
        """The models that wanted workers need. A copy is read, because the agent's thread may add one meanwhile."""
        now = self._clock()
        return {key: at for key, at in self._wanted.copy().items() if now - at < WANTED_S}

    def _run(self, source: ModelSource) -> None:
        log.info("model %s is fetched from %s", source.id, source.shown or "its place")
        began, error = self._clock(), ""
        with self._lock:
            process = self._running.get(source.key)
        for attempt in range(1, self._settings.tries + 1):
            if process is None:
                break
            end = self._follow(source, process)
            error = end.error
            if not end.again or attempt == self._settings.tries:
                break
            log.info("model %s: %s; tried again", source.id, error)
            time.sleep(start_pause_s(attempt) / 2)
            with self._lock:
                if self._closed or self._running.get(source.key) is not process:
                    break
                try:
                    process = self._running[source.key] = self._start(source)
                except OSError as failure:
                    error = f"no process can be started: {_plain(failure)}"
                    break
        with self._lock:
            if self._running.get(source.key) is process:
                self._running.pop(source.key, None)
                self._ended[State.FAILED if error else State.READY] += 1
                if error:
                    self._note_failure(source, error)
                else:
                    self._news.pop(source.key, None)
        if error:
            log.warning("model %s is not fetched: %s", source.id, error)
        else:
            log.info("model %s is here after %.1f s", source.id, self._clock() - began)
        self.done()

    def _follow(self, source: ModelSource, process: FetchProcess) -> End:
        told_at = float("-inf")
        try:
            for state, done, total in process.steps():
                with self._lock:
                    self._note(source, state, done, total)
                if self._clock() - told_at >= PROGRESS_S:
                    told_at = self._clock()
                    self.done()
        except Exception as error:
            # Without an end the model would count as one that is being fetched until the agent ends.
            log.exception("model %s: its process is not understood", source.id)
            process.kill()
            process.end()
            return End(f"it failed unexpectedly: {type(error).__name__}", again=True)
        return process.end()

    def _of(self, source: ModelSource) -> News | None:
        with self._lock:
            return self._news.get(source.key)

    def _note(
        self, source: ModelSource, state: State, done: int = 0, total: int = 0, tries: int = 0
    ) -> None:
        old = self._news.get(source.key)
        if old is not None:
            tries = old.tries
            total = total or old.total
        self._news[source.key] = News(
            *(source.key, source.id, source.shown, state, done, total), tries=tries
        )

    def _fail(self, source: ModelSource, error: str) -> None:
        with self._lock:
            self._note_failure(source, error)

    def _note_failure(self, source: ModelSource, error: str) -> None:
        old = self._news.get(source.key)
        tries = (old.tries if old else 0) + 1
        self._retry_at[source.key] = self._clock() + start_pause_s(tries)
        news = News(source.key, source.id[:200], source.shown, State.FAILED, tries=tries)
        self._news[source.key] = replace(news, error=error[:300])

    def close(self) -> None:
        """Ends the fetches; the next agent continues them."""
        with self._lock:
            self._closed = True
            running = list(self._running.values())
        for process in running:
            process.kill()


def _plain(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
