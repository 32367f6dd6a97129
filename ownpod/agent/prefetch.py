"""The image of a release on this host: which one it is, before its first worker, and what its tag means now.

Also whether this host has the secrets of a release that is to begin, whatever the engine.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ownpod.agent.engine import Engine, EngineError
from ownpod.errors import OwnPodError, RedisUnavailable, WorkerRecordBroken
from ownpod.rules.managed import AgentInfo
from ownpod.rules.releases import HostImage, Release, could_run, is_published
from ownpod.rules.scaling import start_pause_s
from ownpod.rules.templates import ManagedSpec, Template
from ownpod.store.releases import Releases

log = logging.getLogger(__name__)

SECRETS_S = 2.0
"""Seconds between two checks whether a missing secret of a release is there."""

AT_ONCE = 2
"""Number of images that are got at the same time, because they share the network with the jobs."""

NO_DIGEST = "no registry and no image of this host shows what the tag means"


def get_image(
    engine: Engine,
    releases: Releases,
    of: tuple[str, str],
    template: Template,
    progress: Callable[[str], None],
) -> Template:
    """Gets the image of a release, the same one on every host: the first host that resolves its tag decides.

    Args:
        engine: gets it.
        releases: the releases' records.
        of: the endpoint's id and the release's.
        template: the release's.
        progress: gets words for people.

    Returns:
        The template with the digest that its workers are started from; without one, if the engine has none.

    Raises:
        EngineError: the image cannot be had.
        RedisUnavailable: Redis does not answer.
    """
    endpoint, release_id = of
    if template.image is not None and not template.digest:
        try:
            known = releases.digest(endpoint, release_id)
            if not known and (found := _digest(engine, template, progress)):
                known = releases.pin(endpoint, release_id, found)
        except WorkerRecordBroken as error:
            log.warning("the image of %s is started by its tag: %s", endpoint, error)
            known = ""
        template = replace(template, digest=known)
    engine.prepare(template, progress)
    return template


def _digest(engine: Engine, template: Template, progress: Callable[[str], None]) -> str:
    found = engine.digest(template)
    if not found:
        # Once it is here, the engine knows it, whatever the registry answers.
        engine.prepare(template, progress)
        found = engine.digest(template)
    return found


class Prefetch:
    """Gets the images of releases that are to begin, checks their secrets, and checks tags, in threads of its own.

    Args:
        host: the host's name.
        engine: runs the workers. That of processes has no images, and checks no tags.
        releases: the releases' records.
        problem: why the secrets of a release cannot be had here, in words for people; "": they can.
        done: called at the end of each task, in its thread.
        clock: seconds, for the pause after a failure.
    """

    def __init__(
        self,
        host: str,
        engine: Engine,
        releases: Releases,
        *,
        problem: Callable[[ManagedSpec], str] = lambda _spec: "",
        done: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._engine = engine
        self._releases = releases
        self._problem = problem
        self._done = done
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way = set[tuple[str, str]]()
        self._ended = set[tuple[str, str]]()
        """Releases whose image is here and checks that were made, by endpoint."""
        self._tries = dict[tuple[str, str], int]()
        self._retry_at = dict[tuple[str, str], float]()

    def turn(self, info: AgentInfo) -> None:
        """Begins what is to be done for this host. Raises: RedisUnavailable, WorkerRecordBroken."""
        coming, looks = self._releases.tasks()
        if self._engine.name == "process":
            # This engine does not know what tags mean.
            looks = {}
        tasks = [(endpoint, str(number)) for endpoint, number in coming.items()]
        checks = [(endpoint, f"look {asked}") for endpoint, asked in looks.items()]
        self._forget({*tasks, *checks})
        for key in tasks:
            self._begin(key, lambda k=key: self._get(k, info))  # type: ignore[misc]
        for key in checks:
            self._begin(key, lambda k=key: self._look(k))  # type: ignore[misc]

    def _forget(self, current: set[tuple[str, str]]) -> None:
        with self._lock:
            self._ended &= current
            self._tries = {k: n for k, n in self._tries.items() if k in current}
            self._retry_at = {k: at for k, at in self._retry_at.items() if k in current}

    def _begin(self, key: tuple[str, str], task: Callable[[], None]) -> None:
        with self._lock:
            waits = self._clock() < self._retry_at.get(key, 0.0) or len(self._under_way) >= AT_ONCE
            if waits or key in self._ended | self._under_way:
                return
            self._under_way.add(key)
        # The end of the agent does not wait for a pull, which the next agent continues.
        threading.Thread(target=self._do, args=(key, task), name="prefetch", daemon=True).start()

    def _do(self, key: tuple[str, str], task: Callable[[], None]) -> None:
        try:
            task()
        except RedisUnavailable as error:
            log.debug("the image of a release of %s: %s", key[0], error)
        except Exception:
            log.exception("the image of a release of %s is not got", key[0])
            self._fail(key)
        finally:
            with self._lock:
                self._under_way.discard(key)
            self._done()

    def _fail(self, key: tuple[str, str]) -> int:
        """Counts a failure, and returns the number of those in a row."""
        with self._lock:
            self._tries[key] = tries = self._tries.get(key, 0) + 1
            self._retry_at[key] = self._clock() + start_pause_s(tries)
        return tries

    def _get(self, key: tuple[str, str], info: AgentInfo) -> None:
        endpoint, number = key[0], int(key[1])
        release = self._releases.get(endpoint, number)
        if release is None or not could_run(release.spec, info):
            return
        if not is_published(release.spec, self._engine.name):
            return
        if problem := self._problem(release.spec):
            # The earlier workers stay until the secret is set. The end of this task wakes the agent, which would check
            # again at once.
            with self._lock:
                self._retry_at[key] = self._clock() + SECRETS_S
            self._publish(endpoint, release, HostImage(words=problem))
            return
        template = replace(release.spec.template, digest=release.digest)
        try:
            self._engine.check_template(template)
            get_image(
                *(self._engine, self._releases, (endpoint, release.id), template),
                lambda words: self._publish(endpoint, release, HostImage(words=words)),
            )
        except EngineError as error:
            tries = self._fail(key)
            log.warning("release %s of %s: %s", number, endpoint, error)
            self._publish(endpoint, release, HostImage(tries=tries, words=str(error)))
        else:
            with self._lock:
                self._ended.add(key)
            log.info("release %s of %s: this host has what it needs", number, endpoint)
            self._publish(endpoint, release, HostImage(ready=True))

    def _publish(self, endpoint: str, release: Release, image: HostImage) -> None:
        if image.words and not image.tries:
            # A host that has failed keeps that number until it has the image.
            with self._lock:
                tries = self._tries.get((endpoint, str(release.number)), 0)
            image = replace(image, tries=tries)
        self._releases.publish_image(endpoint, release.number, self._host, image)

    def _look(self, key: tuple[str, str]) -> None:
        endpoint, asked = key[0], key[1].removeprefix("look ")
        latest = self._releases.rollout(endpoint).latest
        digest = problem = ""
        try:
            if latest is not None and latest.spec.template.image is not None:
                self._engine.check_template(latest.spec.template)
                digest = self._engine.digest(replace(latest.spec.template, digest=""))
        except OwnPodError as error:
            problem = str(error)
        problem = "" if digest else f"host {self._host}: {problem or NO_DIGEST}"
        made = self._releases.looked(endpoint, asked, digest=digest, problem=problem)
        if made:
            log.info("the tag of the image of %s has moved: release %s", endpoint, made)
        with self._lock:
            self._ended.add(key)
