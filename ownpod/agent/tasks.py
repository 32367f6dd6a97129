"""The containers of a host's one-off tasks: a thread for each starts its container, keeps its output, and stores its result.

The position in the output is written in the same step as the chunks and entries up to it, so the kill of an agent loses no
output, and the next agent repeats none. A run is over when its result is stored; its container stays until
its worker is drained.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from ownpod.agent.engine import Engine, EngineError, Found, Launch, Source
from ownpod.errors import OwnPodError, RedisUnavailable
from ownpod.rules.about import about_of
from ownpod.rules.managed import ManagedWorker, Role
from ownpod.rules.output import Mask
from ownpod.rules.presets import OutputMode
from ownpod.rules.secrets import SecretMissing
from ownpod.rules.task_ending import LONGEST_TEXT, STOPPED, Ending, ending, failed, lost, output_of
from ownpod.rules.task_input import variables
from ownpod.rules.task_lines import Entry, Item
from ownpod.rules.task_output import STDERR, STDOUT, TaskOutput
from ownpod.rules.task_runs import LIVE, TaskRun
from ownpod.rules.templates import ManagedSpec
from ownpod.store.common import CHUNK_BYTES
from ownpod.store.outputs import Place, new_batch
from ownpod.store.tasks import Kept, Task, TaskRuns

log = logging.getLogger(__name__)

READ_S, FLUSH_S = 30.0, 0.5
"""Seconds for which one read waits for output; and while the beginning of a line of text has come."""

TOGETHER_S = 0.02
"""Seconds between two reads of a task that writes little at a time, so that they bring several lines each."""

RETRY_S = 1.0
"""Seconds until the next try after the engine or Redis did not answer."""

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL when a task is cancelled, or its time is over, as with ``docker stop``."""

CHECK_S = 0.2
"""Seconds between two checks of a container whose output has ended although it runs."""

GONE = "its container is gone: another program has removed it"
TOO_MUCH = f"the task wrote more than {CHUNK_BYTES // 1024 // 1024} MiB of text, the most that is kept of a job"


class Starter(Protocol):
    """Makes launches, see :class:`ownpod.agent.steps.Steps`."""

    def launch_of(self, worker: ManagedWorker, spec: ManagedSpec) -> Launch: ...


class TaskThread:
    """One run of a one-off task, until its result is stored or :meth:`close`.

    Args:
        host: this host's name.
        worker: the task's worker.
        spec: what it is started from.
        run: the run.
        engine: runs the container.
        runs: the runs in Redis.
        starter: makes the launch.
        mask: hides secrets in log lines.
    """

    def __init__(
        self,
        host: str,
        worker: ManagedWorker,
        spec: ManagedSpec,
        run: TaskRun,
        *,
        engine: Engine,
        runs: TaskRuns,
        starter: Starter,
        mask: Mask,
    ) -> None:
        self.run = run
        self._host = host
        self._worker = worker
        self._id = worker.id
        self._spec = spec
        self._engine = engine
        self._runs = runs
        self._starter = starter
        self._mask = mask
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._stopper: threading.Thread | None = None
        self._muted = False
        """What the container still writes is not kept, because the run is over."""
        self._thread = threading.Thread(target=self._work, name=f"task-{worker.id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stops the container. Its end is noticed as every end."""
        with self._lock:
            if self._stopper is None or not self._stopper.is_alive():
                self._stopper = threading.Thread(
                    target=self._stop, name=f"stop-{self._id}", daemon=True
                )
                self._stopper.start()

    def wake(self) -> None:
        """The container may have ended."""
        with self._lock:
            if self._source is not None:
                self._source.wake()

    def close(self) -> None:
        """Ends the thread; the container goes on."""
        self._closed.set()
        self.wake()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _stop(self) -> None:
        try:
            self._engine.stop(self._id, GRACE_S)
        except EngineError as error:
            log.warning("task %s is not stopped: %s; tried again", self.run.id, error)
        self.wake()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                if self._do():
                    return
            except (RedisUnavailable, EngineError) as error:
                log.warning("task %s: %s; tried again", self.run.id, error)
            except OwnPodError as error:
                log.warning("task %s: %s", self.run.id, error)
                return
            except Exception:
                log.exception("task %s is not followed any more", self.run.id)
                return
            self._closed.wait(RETRY_S)

    def _do(self) -> bool:
        """Continues from the state in Redis and in the engine. Returns whether nothing is left to do.

        Raises:
            RedisUnavailable, EngineError: the next call continues.
        """
        task = self._task()
        if task.run != self.run or task.has_result:
            return True
        found = self._clear_earlier(task, self._engine.list().get(self._id))
        if found is None:
            if task.ran:
                return self._done(lost(GONE))
            if task.stop or task.is_over:
                return self._done(failed(STOPPED, "stopped"))
            if not self._start():
                return True
        elif not task.ran:
            self._launched()
        result = self._follow()
        return result is not None and self._done(result)

    def _task(self) -> Task:
        return self._runs.tasks([self._id])[self._id]

    def _clear_earlier(self, task: Task, found: Found | None) -> Found | None:
        """Removes the container of an earlier run. Returns that of this run."""
        if task.container == self.run.id:
            return found
        if found is not None:
            self._engine.stop(self._id, GRACE_S)
            self._engine.remove(self._id)
        self._runs.cleared(self._id, task.container)
        return None

    def _start(self) -> bool:
        """Starts the container. Returns whether there is one. Raises: RedisUnavailable."""
        if not self._runs.launch(self._id, self._host, self.run):
            return False
        text = self._runs.input(self.run.job_id)
        try:
            launch = self._starter.launch_of(self._worker, self._spec)
            own = variables(self.run.job_id, text)
            data = {name: v for name, v in own.items() if name.startswith("METADATA_")}
            # A preset's own variables are not replaced by what a client sends.
            env = {**data, **launch.env, **{n: v for n, v in own.items() if n not in data}}
            self._engine.start(replace(launch, env=env, input=text))
        except (EngineError, SecretMissing) as error:
            reason = self._mask(str(error))
            log.warning("task %s cannot be started: %s", self.run.id, reason)
            self._done(failed(f"the container cannot be started: {reason}", "start"))
            return False
        self._launched()
        log.info("task %s: its container runs as worker %s", self.run.id, self._id)
        return True

    def _launched(self) -> None:
        known = {"worker_id": self._id, "attempt": self.run.attempt}
        self._runs.launched(
            self._id,
            self.run,
            [Entry("worker", {"status": status, **known}) for status in ("created", "working")],
        )

    def _follow(self) -> Ending | None:
        """Keeps the output until the container has ended. None: to be continued by the next call.

        Raises:
            RedisUnavailable, EngineError: the next call continues.
        """
        place = self._runs.place(self._id)
        output = TaskOutput.resumed(output_mode(self._worker), place.state, self._mask)
        source = self._engine.follow(self._id, place.position, whole=True)
        with self._lock:
            self._source = source
        try:
            if not self._read(source, output, place):
                return None
        finally:
            with self._lock:
                self._source = None
            source.close()
        found = self._engine.list().get(self._id)
        if found is not None and found.running:
            # The end of the engine's answer does not show that of the container.
            self._closed.wait(CHECK_S)
            return None
        return self._ending(found, output)

    def _read(self, source: Source, output: TaskOutput, place: Place) -> bool:
        """Reads until the container has ended. False: another agent continues, or this one ends."""
        batch, position = place.batch, place.position
        while not self._closed.is_set():
            part = source.read(FLUSH_S if output.waits else READ_S)
            items: list[Item] = []
            if part is None:
                items = output.finish()
            elif part.data or part.skipped:
                position = part.position
                items = output.skip(part.skipped) if part.skipped else []
                stream = STDERR if part.is_error else STDOUT
                items += output.feed(part.data, time.monotonic(), stream=stream)
            elif not self._closed.is_set():
                items = output.flush()
            if items and not self._muted:
                next_place = Place(new_batch(), position, output.state())
                if not self._keep(items, batch, next_place):
                    return False
                batch = next_place.batch
            if part is None:
                return True
            if part.data and len(part.data) < 1024:
                self._closed.wait(TOGETHER_S)
        return False

    def _keep(self, items: list[Item], before: str, place: Place) -> bool:
        """Keeps a part of the output. False: another agent has kept some."""
        kept = self._runs.append(self._id, self.run, items, before, place)
        if kept is Kept.CONFLICT:
            return False
        if kept is not Kept.YES:
            self._muted = True
            if kept is Kept.TOO_MUCH:
                self._runs.stop(self._id, self.run.id, TOO_MUCH)
            self.stop()
        return True

    def _ending(self, found: Found | None, output: TaskOutput) -> Ending:
        task = self._task()
        if task.stop == TOO_MUCH:
            return failed(TOO_MUCH, "output")
        if found is None:
            return lost(GONE)
        final = self._runs.final(self._id)
        chunks = [] if final else self._runs.chunks(self.run.job_id, LONGEST_TEXT)
        return ending(
            found,
            finish=output.finish_said,
            output=output_of(final, chunks),
            tail=output.tail,
            memory_bytes=self._spec.template.limits.memory_bytes,
            stopped=bool(task.stop) or task.is_over,
        )

    def _done(self, result: Ending) -> bool:
        """Stores the result. Raises: RedisUnavailable."""
        self._runs.done(self._id, self.run, result)
        how = result.error or f"exit code {result.exit_code}"
        log.info("task %s has ended: %s", self.run.id, how.splitlines()[0])
        return True


class Tasks:
    """The runs of all task workers of a host.

    Args:
        host: this host's name.
        engine: runs the containers.
        runs: the runs in Redis.
        starter: makes the launches.
    """

    def __init__(self, host: str, engine: Engine, runs: TaskRuns, starter: Starter) -> None:
        self._host = host
        self._engine = engine
        self._runs = runs
        self._starter = starter
        self._threads: dict[str, TaskThread] = {}
        self._closed = False

    def turn(
        self,
        mine: Mapping[str, tuple[ManagedWorker, ManagedSpec]],
        masks: Mapping[str, Callable[[str], str]],
        found: Mapping[str, Found],
    ) -> None:
        """Starts the threads of runs that have begun, and stops those that are to end.

        Args:
            mine: the workers of this host, with what they are started from.
            masks: what hides the secrets of each.
            found: what the engine has.

        Raises:
            RedisUnavailable.
        """
        if self._closed:
            return
        begun = {
            worker_id: entry
            for worker_id, entry in mine.items()
            if entry[0].role is Role.TASK and entry[0].run and entry[0].phase in LIVE
        }
        for worker_id in self._threads.keys() - begun.keys():
            self._threads.pop(worker_id).close()
        tasks = self._runs.tasks(list(begun)) if begun else {}
        for worker_id, task in tasks.items():
            thread = self._threads.get(worker_id)
            if thread is not None and (not thread.alive or thread.run != task.run):
                thread.close()
                del self._threads[worker_id]
                thread = None
            if task.run is None or task.has_result:
                continue
            if thread is None:
                self._threads[worker_id] = thread = self._begin(
                    begun[worker_id], task.run, masks[worker_id]
                )
            ended = worker_id in found and not found[worker_id].running
            if ended:
                thread.wake()
            elif (task.stop or task.is_over) and worker_id in found:
                thread.stop()

    def _begin(
        self, entry: tuple[ManagedWorker, ManagedSpec], run: TaskRun, mask: Mask
    ) -> TaskThread:
        worker, spec = entry
        return TaskThread(
            self._host,
            worker,
            spec,
            run,
            engine=self._engine,
            runs=self._runs,
            starter=self._starter,
            mask=mask,
        )

    def close(self, timeout_s: float) -> None:
        """Ends all threads; none begins any more. The next agent continues."""
        self._closed = True
        for thread in self._threads.values():
            thread.close()
        until = time.monotonic() + timeout_s
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))


def output_mode(worker: ManagedWorker) -> OutputMode:
    """What plain lines of a task's standard output are, from its worker's record."""
    try:
        return OutputMode(about_of(worker).get("output", OutputMode.AUTO))
    except ValueError:
        return OutputMode.AUTO
