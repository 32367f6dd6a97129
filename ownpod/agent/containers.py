"""The engine ``docker``: each worker is a container of a Docker engine, or of Podman through its Docker API.

What differs with Podman: its bridge does not keep workers from reaching each other, it passes GPUs on from version 5.4
only, and as CDI devices, and reports that memory was exhausted from version 5.0 only. It has a name of its own for the
host, makes directories of mounts that do not exist, does not ask registries what a tag means, and its container that is
being stopped does not count as running (:func:`ownpod.agent.container_states.runs`).
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ownpod.agent.changes import Changes
from ownpod.agent.container_options import (
    HOST,
    OURS,
    PODMAN_HOST,
    address_of,
    input_archive,
    model_mounts,
    model_problem,
    name_of,
    options,
)
from ownpod.agent.container_output import ContainerSource
from ownpod.agent.container_states import end, exit_code, runs, unsettled_s
from ownpod.agent.docker_api import Conflict, DockerApi, NotThere, missing_directory
from ownpod.agent.engine import (
    LOG_LINES,
    STOP_GRACE_S,
    WITHOUT_PORT,
    EngineError,
    Found,
    Launch,
    Started,
)
from ownpod.agent.images import FREE_BYTES, Images
from ownpod.agent.networks import Networks
from ownpod.agent.registry_logins import Logins, no_logins
from ownpod.agent.volumes import Volumes, in_container
from ownpod.rules.endings import why_ended
from ownpod.rules.managed import ORPHAN_S
from ownpod.rules.templates import Protocol, Template
from ownpod.rules.volumes import DIRECTORY, VolumeSource

logger = logging.getLogger(__name__)

LONGEST_LOG = 64 * 1024
"""Maximum length of a log in characters; the beginning is cut off."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CREATE_S = 10.0
"""Seconds until a container that another call creates must be visible."""

CREATE_CHECK_S = 0.05

_RUNNING = ("running", "paused", "restarting")


class ContainerEngine:
    """Implements :class:`ownpod.agent.engine.Engine`.

    Containers without the labels of this instance are never touched, whatever their names are.

    Args:
        instance: the id of this installation of OwnPod.
        allow: patterns of images that may run, ``OWNPOD_IMAGES``.
        volumes: the volumes of this host.
        logins: credentials of registries, by the id that a template has.
        url: of the engine's socket; None: ``DOCKER_HOST``, or the default socket.
        free_bytes: what a pull must leave free on the engine's disk.
        stall_s: seconds without progress after which a pull fails.

    Raises:
        ExtraMissing: docker-py is not installed.
    """

    name = "docker"

    def __init__(
        self,
        instance: str,
        *,
        allow: Iterable[str] = ("**",),
        volumes: Volumes | None = None,
        logins: Logins = no_logins,
        url: str | None = None,
        free_bytes: int = FREE_BYTES,
        stall_s: float = 300.0,
    ) -> None:
        self.instance = instance
        self._volumes = volumes or Volumes()
        self._api = DockerApi(url, stall_s=stall_s)
        self._images = Images(self._api, allow, free_bytes=free_bytes, logins=logins)
        self._labels = [f"{OURS}=1", f"{OURS}.instance={instance}"]
        self._changes = Changes(lambda: self._api.events(self._labels))
        self._networks = Networks(self._api)
        # By container: exit code and out of memory. A list of containers does not have them.
        self._ends: dict[str, tuple[int, bool]] = {}

    def check(self) -> None:
        self._api.call(lambda client: client.ping())
        self._volumes.elsewhere = in_container() or not self._api.local

    def check_template(self, template: Template) -> None:
        self._images.check(template)
        self._volumes.of(template)

    def prepare(self, template: Template, progress: Callable[[str], None]) -> None:
        self._images.prepare(template, progress)

    def digest(self, template: Template) -> str:
        return self._images.digest(template)

    def start(self, launch: Launch) -> Started:
        """See the protocol. A start that fails leaves nothing of the worker, unless the engine is away: then its container
        is adopted by the next call, or is listed as one that did not start.
        """
        found = self._inspect(launch.worker_id)
        if found is None:
            found = self._create(launch)
        if found["State"]["Status"] == "created":
            self._put_input(launch, found["Id"])
            self._start(found["Id"], egress=launch.template.egress)
        if launch.template.protocol in WITHOUT_PORT:
            return Started()
        return address_of(found["Config"]["Labels"], self._host(launch.worker_id))

    def list(self) -> dict[str, Found]:
        filters = {"label": self._labels}
        listed = self._api.call(lambda client: client.containers(all=True, filters=filters))
        workers = {}
        for container in listed:
            worker_id = container["Labels"].get(f"{OURS}.worker")
            found = worker_id and self._found(worker_id, container)
            if found:
                workers[worker_id] = found
        ids = {container["Id"] for container in listed}
        self._ends = {known: end for known, end in self._ends.items() if known in ids}
        self._changes.keep(ids)
        return workers

    def stop(self, worker_id: str, grace_s: float = STOP_GRACE_S) -> None:
        found = self._inspect(worker_id)
        if found is not None and runs(found["State"]):
            self._quiet(lambda client: client.stop(found["Id"], timeout=max(0, math.ceil(grace_s))))

    def remove(self, worker_id: str) -> None:
        """See the protocol. Raises: EngineError, it runs."""
        found = self._inspect(worker_id)
        if found is None:
            return
        try:
            self._quiet(lambda client: client.remove_container(found["Id"], v=True))
        except Conflict as error:
            # A removal by another call is in progress.
            if "progress" not in str(error):
                raise

    def log(self, worker_id: str, lines: int = LOG_LINES) -> str:
        found = self._inspect(worker_id)
        if found is None:
            return ""
        try:
            # Without a stream: docker-py may lose the beginning of one, or never end it.
            text: bytes = self._api.call(lambda client: client.logs(found["Id"], tail=lines))
        except NotThere:
            return ""
        return text.decode(errors="replace").rstrip("\n")[-LONGEST_LOG:]

    def follow(self, worker_id: str, position: str = "", *, whole: bool = False) -> ContainerSource:
        return ContainerSource(self._api, lambda: self._inspect(worker_id), position, whole=whole)

    def address(self, worker_id: str) -> Started:
        """On the engine's own network, which this host reaches without a published port."""
        found = self._inspect(worker_id)
        labels = (found or {}).get("Config", {}).get("Labels", {})
        protocol = labels.get(f"{OURS}.protocol", Protocol.PULL)
        if protocol in WITHOUT_PORT:
            return Started()
        return address_of(labels, self._host(worker_id))

    def api_url(self, base_url: str) -> str:
        """A loopback address names the container itself, so it is replaced by a name of this host."""
        parts = urlsplit(base_url)
        if parts.hostname not in LOOPBACK:
            return base_url
        port = f":{parts.port}" if parts.port else ""
        host = HOST if self._api.podman() is None else PODMAN_HOST
        return urlunsplit(parts._replace(netloc=f"{host}{port}"))

    def env(self, worker_id: str) -> Mapping[str, str]:
        container = self._inspect(worker_id)
        pairs = container["Config"].get("Env") or () if container else ()
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}

    def pids(self) -> set[int]:
        found = (self._inspect(worker_id) for worker_id in self.list())
        states = (container["State"] for container in found if container is not None)
        return {state["Pid"] for state in states if state.get("Pid")}

    def wait(self, timeout_s: float) -> None:
        self._changes.wait(timeout_s)

    def close(self) -> None:
        """Ends the subscription to events, and closes the connections. The workers go on."""
        self._changes.close()
        self._api.close()

    def _create(self, launch: Launch) -> Mapping[str, Any]:
        image = self._images.get(launch.template)
        podman = self._api.podman()
        volumes = [*self._volumes.of(launch.template), *model_mounts(launch)]
        network = self._networks.get(egress=launch.template.egress)
        chosen = options(
            launch,
            image,
            network=network.id,
            host_address=network.host,
            podman=podman,
            volumes=volumes,
        )

        def create(client: Any) -> str:
            host = client.create_host_config(**chosen.host)
            created = client.create_container(**chosen.container, host_config=host)
            return str(created["Id"])

        try:
            if podman is not None and not self._volumes.elsewhere:
                # Podman makes a directory that does not exist, as root's.
                _check_directories(source for _, source in volumes)
            self._api.call(create)
        except Conflict:
            # The same agent before its restart, or a call whose answer was lost, has created it.
            return self._adopt(launch.worker_id)
        except EngineError as error:
            if problem := model_problem(launch, str(error)):
                raise EngineError(problem) from None
            raise
        found = self._inspect(launch.worker_id)
        if found is None:
            raise EngineError("the container was removed by another program")
        return found

    def _adopt(self, worker_id: str) -> Mapping[str, Any]:
        """The container that has the worker's name."""
        name = name_of(worker_id)
        deadline = time.monotonic() + CREATE_S
        while (found := self._inspect(worker_id)) is None and time.monotonic() < deadline:
            try:
                self._api.call(lambda client: client.inspect_container(name))
            except NotThere:
                # An engine reserves the name before others see the container.
                time.sleep(CREATE_CHECK_S)
            else:
                break
        # Once more, because it may have become visible between the two calls.
        found = found or self._inspect(worker_id)
        if found is None:
            raise EngineError(f"another program has a container with the name {name}: remove it")
        return found

    def _start(self, container_id: str, *, egress: bool) -> None:
        deadline = time.monotonic() + CREATE_S
        while True:
            try:
                self._api.call(lambda client: client.start(container_id))
            except EngineError as error:
                if "ambiguous" not in str(error) or time.monotonic() > deadline:
                    self._discard(container_id)
                    raise
            else:
                return
            # There are two networks until one agent has removed one of them.
            self._networks.get(egress=egress)
            time.sleep(CREATE_CHECK_S)

    def _put_input(self, launch: Launch, container_id: str) -> None:
        """Puts a task's input into its container: so it needs no directory of the engine's host, and no environment."""
        if launch.input is None:
            return
        archive = input_archive(launch.input)
        try:
            self._api.call(lambda client: client.put_archive(container_id, "/", archive))
        except EngineError:
            self._discard(container_id)
            raise

    def _discard(self, container_id: str) -> None:
        try:
            self._quiet(lambda client: client.remove_container(container_id, v=True, force=True))
        except EngineError as error:
            logger.warning("container %s could not be removed: %s", container_id[:12], error)

    def _host(self, worker_id: str) -> str:
        """The address of a worker on the workers' network. Raises: EngineError, if it has ended."""
        found = self._inspect(worker_id)
        if found is None:
            raise EngineError("the container was removed by another program")
        networks, state = found["NetworkSettings"]["Networks"].values(), found["State"]
        address = next((n["IPAddress"] for n in networks if n.get("IPAddress")), None)
        # Podman keeps the address of a container for a moment after its end.
        if address and runs(state):
            return str(address)
        log = self.log(worker_id, 5)
        self._discard(found["Id"])
        last = f": {log.splitlines()[-1][:300]}" if log else ""
        raise EngineError(f"ended at once, {why_ended(exit_code(state), log=log)}{last}")

    def _inspect(self, worker_id: str) -> Mapping[str, Any] | None:
        """The worker's container; None if there is none, or if it is not one of this instance."""
        try:
            found: Mapping[str, Any] = self._api.call(
                lambda client: client.inspect_container(name_of(worker_id))
            )
        except NotThere:
            return None
        labels = found["Config"].get("Labels") or {}
        ours = labels.get(OURS) == "1" and labels.get(f"{OURS}.instance") == self.instance
        return found if ours and labels.get(f"{OURS}.worker") == worker_id else None

    def _found(self, worker_id: str, container: Mapping[str, Any]) -> Found | None:
        age_s = max(0.0, time.time() - container["Created"])
        container_id, state = container["Id"], container["State"]
        named = container["Labels"].get(f"{OURS}.devices") or ""
        running = Found(
            worker_id, running=True, age_s=age_s, devices=tuple(filter(None, named.split(",")))
        )
        if state == "removing":
            return None
        if state == "created":
            # Its start is in progress, unless that process has ended in between.
            return Found(worker_id, running=False, age_s=age_s) if age_s > ORPHAN_S else None
        if state in _RUNNING and not self._changes.has_ended(container_id):
            return running
        if container_id not in self._ends:
            try:
                ended = self._state_at_end(container_id)
            except NotThere:
                return None
            if ended is None:
                return running
            self._ends[container_id] = end(ended)
        code, out_of_memory = self._ends[container_id]
        return Found(
            worker_id, running=False, age_s=age_s, exit_code=code, out_of_memory=out_of_memory
        )

    def _state_at_end(self, container_id: str) -> Mapping[str, Any] | None:
        """The state of a container that has ended; None: it runs. Raises: NotThere."""

        def look() -> Mapping[str, Any]:
            found = self._api.call(lambda client: client.inspect_container(container_id))
            state: Mapping[str, Any] = found["State"]
            return state

        state = look()
        if runs(state):
            return None
        if wait_s := unsettled_s(state, time.time()):
            time.sleep(wait_s)
            state = look()
        return state

    def _quiet(self, action: Callable[[Any], Any]) -> None:
        """Calls the engine; it is no error that there is no such container any more."""
        try:
            self._api.call(action)
        except NotThere:
            return


def _check_directories(sources: Iterable[VolumeSource]) -> None:
    for source in sources:
        if source.kind == DIRECTORY and not Path(source.source).is_dir():
            raise EngineError(missing_directory(source.source))
