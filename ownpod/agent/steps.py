"""An agent's steps for single workers: start, stop, report the end, remove. Each is done in a thread of its own."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ownpod.agent.devices import Devices
from ownpod.agent.engine import QUICK_GRACE_S, STOP_GRACE_S, Engine, EngineError, Launch, Started
from ownpod.agent.memory import Memory
from ownpod.agent.models import HostModels
from ownpod.agent.output import Followers
from ownpod.agent.prefetch import get_image
from ownpod.agent.secret_values import SecretValues
from ownpod.agent.starts import Starts
from ownpod.errors import RedisUnavailable
from ownpod.rules.credentials import digest_of
from ownpod.rules.launching import environment
from ownpod.rules.managed import ManagedWorker, Role
from ownpod.rules.model_mounts import ModelMount
from ownpod.rules.reconcile import Ended, Stop
from ownpod.rules.secrets import SecretMissing
from ownpod.rules.templates import ManagedSpec, Protocol, Template
from ownpod.store.managed import Managed

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Number of workers that are started or stopped at the same time."""


@dataclass(frozen=True)
class Host:
    """The host of an agent, for its workers and for OwnPod.

    Attributes:
        name: the name under which its workers and devices are listed.
        api_url: the API's base URL as the workers reach it.
        labels: the operator's labels, for example its data center.
        images: patterns of the images that it may start, read again each time; None: all, or its engine starts none.
    """

    name: str
    api_url: str
    labels: Mapping[str, str]
    images: Iterable[str] | None = None


class Steps:
    """Does the steps of a plan, one at a time for each worker.

    Args:
        host: this host.
        engine: runs the workers.
        devices: the devices of this host.
        managed: the workers' records.
        followers: keep the workers' output.
        values: the templates' secrets.
        done: called at the end of each step, in its thread.
        models: of this host; None: its workers get none.
    """

    def __init__(
        self,
        host: Host,
        engine: Engine,
        devices: Devices,
        *,
        managed: Managed,
        followers: Followers,
        values: SecretValues,
        done: Callable[[], None],
        models: HostModels | None = None,
    ) -> None:
        self._models = models
        self._host = host
        self._engine = engine
        self._devices = devices
        self.memory = Memory(devices)
        self._managed = managed
        self._followers = followers
        self._values = values
        self._done = done
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._under_way = set[str]()
        self._failures = dict[str, str]()
        """Why workers are stopped that are to count as failed, by id."""
        self._starts = Starts()

    @property
    def under_way(self) -> frozenset[str]:
        """Ids of the workers whose step has not ended."""
        with self._lock:
            return frozenset(self._under_way)

    @property
    def closed(self) -> bool:
        """No start begins any more."""
        return self._starts.closed

    def launch(self, worker: ManagedWorker, spec: ManagedSpec, device_ids: Sequence[str]) -> None:
        """Starts a worker that this host has got, on devices that it holds."""
        self._start(worker.id, lambda: self._launch(worker, spec, device_ids))

    def restart(self, worker: ManagedWorker, spec: ManagedSpec) -> None:
        """Ends a worker that has asked for a restart, and starts it again with the devices that it holds."""
        self._start(worker.id, lambda: self._restart(worker, spec))

    def stop(self, step: Stop) -> None:
        """Ends a worker."""
        self._start(step.worker, lambda: self._stop(step))

    def report(self, step: Ended, worker: ManagedWorker) -> None:
        """Records that a worker has ended, whose devices are free then, and removes what it left."""
        self._start(step.worker, lambda: self._report(step, worker))

    def remove(self, worker_id: str, device_ids: Sequence[str] = ()) -> None:
        """Ends and removes a worker that has no record here, and frees its devices."""
        self._start(worker_id, lambda: self._remove(worker_id, device_ids))

    def wait(self) -> None:
        """Blocks until all steps have ended; none begins afterwards."""
        self._pool.shutdown(wait=True)

    def _start(self, worker_id: str, step: Callable[[], None]) -> None:
        """Does a step in another thread, one at a time for each worker."""
        with self._lock:
            if worker_id in self._under_way:
                return
            self._under_way.add(worker_id)
        self._pool.submit(step).add_done_callback(lambda done: self._finished(worker_id, done))

    def _finished(self, worker_id: str, done: "Future[None]") -> None:
        with self._lock:
            self._under_way.discard(worker_id)
        error = done.exception()
        if isinstance(error, RedisUnavailable | EngineError):
            log.warning("worker %s: %s; tried again", worker_id, error)
        elif error is not None:
            log.error("worker %s: its step failed", worker_id, exc_info=error)
        self._done()

    def launch_of(
        self,
        worker: ManagedWorker,
        spec: ManagedSpec,
        device_ids: Sequence[str] | None = None,
        *,
        key: str = "",
    ) -> Launch:
        """What a worker is started with; its image is on this host then.

        Args:
            worker: the worker.
            spec: what it is started from.
            device_ids: the devices that it holds; None: those in its record.
            key: its own key; "": it sends no requests.

        Raises:
            EngineError: the image cannot be had.
            SecretMissing: a secret cannot.
            RedisUnavailable: Redis is away.
        """
        held = worker.devices if device_ids is None else device_ids
        devices = tuple(d for d in self._devices.read() if d.id in held)
        template = self._get_image(worker, spec)
        mount = self._mount(worker.id, spec.template)
        env = environment(
            spec.template,
            worker_id=worker.id,
            endpoint=worker.endpoint,
            base_url=self._engine.api_url(self._host.api_url),
            key=key,
            devices=devices,
            labels=self._host.labels,
            balancing=spec.balancing,
            suggested=mount.env,
        )
        if worker.role is Role.SESSION:
            # The GPU service's variable.
            env["SESSION_ID"] = worker.id
        return Launch(
            worker.id,
            worker.endpoint,
            self._engine.instance,
            template,
            self._values.resolve(worker.id, spec, env),
            devices,
            balancing=spec.balancing,
            mounts=mount.mounts,
        )

    def _get_image(self, worker: ManagedWorker, spec: ManagedSpec) -> Template:
        return get_image(
            *(self._engine, self._managed.releases, (worker.endpoint, worker.release)),
            spec.template,
            lambda words: self._progress(worker.id, words),
        )

    def _launch(self, worker: ManagedWorker, spec: ManagedSpec, device_ids: Sequence[str]) -> None:
        began, started = time.monotonic(), Started()
        is_task = spec.template.protocol is Protocol.CONTAINER
        try:
            if is_task:
                # Its container starts when its node has claimed the job, because the job's time runs from then on.
                self._get_image(worker, spec)
            else:
                key = secrets.token_urlsafe(32)
                launch = self.launch_of(worker, spec, device_ids, key=key)
                # The key counts from before the start, because the worker may ask for a job at once.
                if not self._managed.set_key(worker.id, self._host.name, digest_of(key)):
                    return
                with self._starts.one() as allowed:
                    if not allowed:
                        return
                    started = self._engine.start(launch)
        except (EngineError, SecretMissing) as error:
            self._cannot_start(worker, error)
            return
        self._managed.started(
            worker.id, self._host.name, url=started.url, health_port=started.health_port
        )
        if is_task:
            self._notify_node(worker.id)
        where = f" on {', '.join(device_ids)}" if device_ids else ""
        took_s = time.monotonic() - began
        log.info("worker %s of %s started%s in %.2f s", worker.id, worker.endpoint, where, took_s)

    def _restart(self, worker: ManagedWorker, spec: ManagedSpec) -> None:
        # A handler that did not end when its time had passed does not end by SIGTERM either.
        self._engine.stop(worker.id, QUICK_GRACE_S if worker.restart > 1 else STOP_GRACE_S)
        # The end of the output is known once the engine has listed the worker as ended.
        self._engine.list()
        self._followers.finish(worker.id)
        self.memory.wait_until_free(worker.devices)
        key = secrets.token_urlsafe(32)
        if not self._managed.restarting(worker.id, self._host.name, digest_of(key)):
            return
        self._engine.remove(worker.id)
        try:
            launch = self.launch_of(worker, spec, key=key)
            with self._starts.one() as allowed:
                if not allowed:
                    return
                self._engine.start(launch)
        except (EngineError, SecretMissing) as error:
            self._cannot_start(worker, error)
            return
        self._managed.restarted(worker.id, self._host.name)
        log.info("worker %s of %s started again, as it asked for", worker.id, worker.endpoint)

    def _cannot_start(self, worker: ManagedWorker, error: Exception) -> None:
        # An engine may quote the last line of a worker that ended at once.
        reason = self._values.masked(worker.id, None, str(error))
        log.warning("worker %s of %s cannot be started: %s", worker.id, worker.endpoint, reason)
        self._managed.stopped(
            worker.id, self._host.name, exit_code=None, reason=reason, failed=True
        )
        self._values.forget(worker.id)

    def _notify_node(self, worker_id: str) -> None:
        try:
            self._managed.tasks.started(worker_id)
        except RedisUnavailable as error:
            log.debug("the node of %s probes it later: %s", worker_id, error)

    def _mount(self, worker_id: str, template: Template) -> ModelMount:
        return self._models.mount(worker_id, template) if self._models else ModelMount()

    def _progress(self, worker_id: str, words: str) -> None:
        try:
            self._managed.progress(worker_id, self._host.name, words)
        except RedisUnavailable as error:
            log.debug("progress of %s not published: %s", worker_id, error)

    def _stop(self, step: Stop) -> None:
        if step.announce and not self._managed.stopping(step.worker, self._host.name, step.reason):
            return
        if step.failed:
            self._failures[step.worker] = step.reason
        log.info("worker %s is stopped: %s", step.worker, step.reason)
        self._engine.stop(step.worker, QUICK_GRACE_S if step.quick else STOP_GRACE_S)

    def _report(self, step: Ended, worker: ManagedWorker) -> None:
        reason = self._failures.get(step.worker)
        failed = step.failed or reason is not None
        # Before the record is STOPPED, because its log is the end of what is kept, and before the engine removes the output.
        # That of a task is in its job's journal.
        if worker.role is not Role.TASK:
            self._followers.finish(step.worker)
        output = self._followers.log(step.worker)
        level = logging.WARNING if failed else logging.INFO
        log.log(level, "worker %s has ended: %s", step.worker, reason or step.reason)
        self.memory.wait_until_free(worker.devices)
        self._managed.stopped(
            step.worker,
            self._host.name,
            exit_code=step.exit_code,
            reason=reason or step.reason,
            failed=failed,
            log=output,
            out_of_memory=step.out_of_memory,
        )
        self._failures.pop(step.worker, None)
        self._engine.remove(step.worker)
        self._values.forget(step.worker)

    def _remove(self, worker_id: str, device_ids: Sequence[str]) -> None:
        self._engine.stop(worker_id, STOP_GRACE_S)
        self._engine.remove(worker_id)
        self.memory.wait_until_free(device_ids)
        self._managed.gone(worker_id, self._host.name)
        self._values.forget(worker_id)

    # The end.

    def end_workers(self, grace_s: float) -> None:
        """Starts no more workers, and ends all. Raises: RedisUnavailable, EngineError."""
        # The engine does not list what is being started now.
        self._starts.close(grace_s)
        running = [i for i, found in self._engine.list().items() if found.running]
        ends = [self._pool.submit(self._end_worker, i, grace_s) for i in running]
        for worker_id, end in zip(running, ends, strict=True):
            if error := end.exception():
                log.warning("worker %s was not ended: %s", worker_id, error)

    def _end_worker(self, worker_id: str, grace_s: float) -> None:
        try:
            self._managed.stopping(worker_id, self._host.name, "OwnPod was stopped")
        except RedisUnavailable as error:
            log.warning("worker %s: %s", worker_id, error)
        self._engine.stop(worker_id, grace_s)
