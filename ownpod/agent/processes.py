"""The engine ``process``: workers as plain processes of this host, without containers.

A worker is the template's command in a session and process group of its own. A small shell leads the group: it waits
for the command and writes its exit code, so that the code can be read by an agent that was started later. The shell
then ends the whole group, because the RunPod SDK's heartbeat process survives its worker.

The worker runs in a fresh, empty working directory, because RunPod's SDK 1.8 and 1.9 keep ``.runpod_jobs.pkl`` there,
and a stale one keeps a worker from asking for jobs. See :func:`ownpod.agent.commands.command_line` for paths in commands.

What the engine does not do, because it takes a container: images and ``limits.shm`` are ignored, and a worker sees the
host's files and network with the agent's user. All of a worker's processes are ended with it: those of its session,
those that were started with its environment, those of its control group. Only a process that has left the session and
replaced its environment escapes, unless it is in a control group.
"""

import contextlib
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

from ownpod.agent import cgroups, procfs
from ownpod.agent.commands import MARK, command_line, environment
from ownpod.agent.directories import Directory, Record, RecordUnreadable
from ownpod.agent.engine import LOG_LINES, STOP_GRACE_S, EngineError, Found, Launch, Started
from ownpod.agent.files import FileSource, TwoFiles
from ownpod.agent.ports import Ports, ports_for
from ownpod.agent.shell import SHELL, Shell
from ownpod.agent.volumes import Volumes
from ownpod.rules.task_input import INPUT_VARIABLE
from ownpod.rules.templates import Template

log = logging.getLogger(__name__)

LEADER_S, KILL_S, ENDING_S = 1.0, 15.0, 0.2
"""Seconds that the shell has to write the exit code after a SIGKILL; that all processes have to end after it; between
two checks of processes that were sent SIGKILL."""

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ProcessEngine:
    """Runs workers as processes, see this module's docstring. Implements :class:`ownpod.agent.engine.Engine`.

    Args:
        directory: the agent's data directory; the workers' are ``<directory>/<instance>/<worker id>``.
        instance: id of this installation.
        volumes: the volumes of this host.

    Raises:
        EngineError: this is not Linux, or the instance's id is not one.
    """

    name = "process"

    def __init__(self, directory: Path, instance: str, volumes: Volumes | None = None) -> None:
        if not sys.platform.startswith("linux"):
            raise EngineError("the engine process needs Linux")
        if not ID.fullmatch(instance):
            raise EngineError("the instance's id may have letters, digits, - and _ only")
        self.instance = instance
        self._volumes = volumes or Volumes()
        self._root = directory.resolve() / instance
        self._boot = procfs.boot_id()
        self._records: dict[str, Record] = {}
        self._children: dict[str, Shell] = {}
        self._ended: set[str] = set()
        """Workers of which no process is left."""
        self._shown: set[str] = set()
        """Workers that were listed last as running."""
        self._ending: set[str] = set()
        """Workers whose shell has ended, and whose other processes were sent SIGKILL."""
        self._noted: set[str] = set()
        """What was logged once."""
        self._starting = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wake)

    def check(self) -> None:
        if procfs.find(os.getpid()) is None:
            raise EngineError("the engine process needs /proc")
        if not os.access(SHELL, os.X_OK):
            raise EngineError(f"the engine process needs {SHELL}")
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot make the directory {self._root}: {error.strerror}") from None
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise EngineError(f"the directory {self._root} is not writable")

    def check_template(self, template: Template) -> None:
        if not (template.entrypoint or template.command):
            command_line(template, Path.cwd(), "")
        self._volumes.check_links(template)

    def prepare(self, template: Template, progress: Callable[[str], None]) -> None:
        """Does nothing: the image is only noted."""
        del template, progress

    def digest(self, template: Template) -> str:  # noqa: ARG002 - the protocol has it
        return ""

    def start(self, launch: Launch) -> Started:
        with self._starting:
            record = self._record(launch.worker_id)
            if record and self._leader(record):
                return record.address
            # Of an agent that died while it started this worker, or of a worker that has ended.
            self._clear(launch.worker_id)
            record = self._launch(launch)
        os.eventfd_write(self._wake, 1)
        return record.address

    def list(self) -> dict[str, Found]:
        """See :class:`ownpod.agent.engine.Engine`. Also keeps each worker's output within its limit."""
        found = {}
        for worker_id in self._ids():
            record = self._record(worker_id)
            if record:
                self._directory(worker_id).shorten_output()
                found[worker_id] = self._found(record)
        self._shown = {worker_id for worker_id, worker in found.items() if worker.running}
        return found

    def stop(self, worker_id: str, grace_s: float = STOP_GRACE_S) -> None:
        record = self._record(worker_id)
        if record is None:
            return
        deadline = time.monotonic() + grace_s
        leader = self._leader(record)
        if leader:
            self._terminate(record, leader, deadline)
            procfs.wait_end(leader, deadline - time.monotonic())
        self._kill(worker_id, record)

    def remove(self, worker_id: str) -> None:
        with self._starting:
            record = self._record(worker_id)
            if record and self._leader(record):
                raise EngineError(
                    f"worker {worker_id} runs; it must be stopped before it is removed"
                )
            self._clear(worker_id)

    def log(self, worker_id: str, lines: int = LOG_LINES) -> str:
        return self._directory(worker_id).log(lines)

    def follow(
        self, worker_id: str, position: str = "", *, whole: bool = False
    ) -> FileSource | TwoFiles:
        """See :class:`ownpod.agent.engine.Engine`. The source also keeps the output within its limit."""
        directory = self._directory(worker_id)
        self._record(worker_id)

        def runs() -> bool:
            # The list finds out that a worker has ended.
            return worker_id in self._records and worker_id not in self._ended

        if whole:
            paths = directory.output, directory.errors
            return TwoFiles(*paths, position, runs=runs, shorten=directory.shorten_output)
        return FileSource(directory.output, position, runs=runs, shorten=directory.shorten_output)

    def address(self, worker_id: str) -> Started:
        record = self._record(worker_id)
        return record.address if record else Started()

    def api_url(self, base_url: str) -> str:
        return base_url

    def env(self, worker_id: str) -> Mapping[str, str]:
        record = self._record(worker_id)
        leader = self._leader(record) if record else None
        return procfs.environ(leader) if leader else {}

    def pids(self) -> set[int]:
        return {record.pid for record in tuple(self._records.values()) if self._leader(record)}

    def wait(self, timeout_s: float) -> None:
        """See :class:`ownpod.agent.engine.Engine`. Also returns when a worker was started, to wait for it, too."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        with contextlib.ExitStack() as handles:
            for worker_id in tuple(self._shown):
                record = self._records.get(worker_id)
                leader = self._leader(record) if record else None
                handle = handles.enter_context(procfs.open_handle(leader)) if leader else None
                if handle is not None:
                    poll.register(handle, select.POLLIN)
                else:
                    # It has ended since it was listed, or SIGKILL has not ended the last of its processes yet.
                    timeout_s = min(timeout_s, ENDING_S if worker_id in self._ending else 0)
            poll.poll(max(0.0, timeout_s) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _directory(self, worker_id: str) -> Directory:
        if not ID.fullmatch(worker_id):
            raise EngineError("a worker's id may have letters, digits, - and _ only")
        return Directory(self._root / worker_id)

    def _ids(self) -> tuple[str, ...]:
        try:
            names = [path.name for path in self._root.iterdir()]
            return tuple(sorted(name for name in names if ID.fullmatch(name)))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise EngineError(f"cannot read the directory {self._root}: {error.strerror}") from None

    def _record(self, worker_id: str) -> Record | None:
        """A worker's record; None if there is none, or none that can be read."""
        directory = self._directory(worker_id)
        known = self._records.get(worker_id)
        if known:
            return known
        try:
            record = directory.read()
        except RecordUnreadable as error:
            self._note(
                "worker %s: %s cannot be used (%s), so this worker is left alone",
                *(worker_id, directory.record, error),
            )
            return None
        if record:
            self._records[worker_id] = record
        return record

    def _note(self, text: str, *values: object) -> None:
        """Logs a warning once."""
        line = text % values
        if line not in self._noted:
            self._noted.add(line)
            log.warning("%s", line)

    def _mark(self, worker_id: str) -> str:
        # By its directory, because a copy of a data directory has workers with the same ids.
        return f"ownpod:{self._root / worker_id}"

    def _leader(self, record: Record) -> procfs.Process | None:
        """The shell of a worker, while it lives."""
        if child := self._children.get(record.worker_id):
            child.reap()
        return (
            procfs.find_started(record.pid, record.started) if record.boot == self._boot else None
        )

    def _members(self, worker_id: str, record: Record | None) -> tuple[procfs.Process, ...]:
        """A worker's processes without its shell."""
        mark = f"{MARK}={self._mark(worker_id)}"
        grouped = cgroups.pids(tuple(map(Path, record.groups))) if record else set()
        sure, in_session = [], []
        for process in procfs.living():
            if record and (process.pid, process.started) == (record.pid, record.started):
                continue
            if process.pid in grouped or procfs.was_started_with(process, mark):
                sure.append(process)
            elif record and process.session == record.pid:
                in_session.append(process)
        # The session's number is certainly this worker's only while its shell lives: Linux may use it again later.
        sure_of_session = record and self._leader(record)
        path = self._directory(worker_id).path
        sure += [p for p in in_session if sure_of_session or procfs.uses(p, path)]
        return tuple(sure)

    def _found(self, record: Record) -> Found:
        worker_id = record.worker_id
        # One of an earlier boot is at least as old as this boot.
        age_s = procfs.age_s(record.started if record.boot == self._boot else 0)
        if self._leader(record):
            return Found(worker_id, running=True, age_s=age_s, devices=record.devices)
        if worker_id not in self._ended:
            if left := self._members(worker_id, record):
                # It counts as running until SIGKILL has ended them, because they may still use its devices.
                for process in left:
                    procfs.send(process, signal.SIGKILL)
                self._ending.add(worker_id)
                return Found(worker_id, running=True, age_s=age_s, devices=record.devices)
            self._ending.discard(worker_id)
            self._ended.add(worker_id)
        code = self._directory(worker_id).exit_code()
        if code is None and record.boot == self._boot:
            # Only SIGKILL ends the shell before it has written the code.
            code = -signal.SIGKILL
        memory = code != 0 and cgroups.was_out_of_memory(tuple(map(Path, record.groups)))
        return Found(worker_id, running=False, age_s=age_s, exit_code=code, out_of_memory=memory)

    def _terminate(self, record: Record, leader: procfs.Process, deadline: float) -> None:
        """Sends SIGTERM to each process of the worker's group, once there is one, but not to its shell."""
        while self._leader(record):
            members = self._members(record.worker_id, record)
            group = [process for process in members if process.group == record.pid]
            if sum(procfs.send(process, signal.SIGTERM) for process in group):
                return
            # The shell has not started the command yet.
            if procfs.wait_end(leader, min(0.02, deadline - time.monotonic())):
                return
            if time.monotonic() >= deadline:
                return

    def _kill(self, worker_id: str, record: Record | None) -> None:
        """Sends SIGKILL to a worker's processes until none is left. Raises: EngineError."""
        begin = time.monotonic()
        while True:
            leader = record and self._leader(record)
            left = self._members(worker_id, record)
            if not left and not leader:
                return
            passed_s = time.monotonic() - begin
            if passed_s > KILL_S:
                raise EngineError(
                    f"worker {worker_id}: {len(left)} processes do not end after SIGKILL"
                )
            for process in left:
                procfs.send(process, signal.SIGKILL)
            # The shell ends last, and by itself, because it writes the exit code first.
            if leader and passed_s > LEADER_S:
                procfs.send(leader, signal.SIGKILL)
            for process in (*left, *((leader,) if leader else ())):
                procfs.wait_end(process, 0.1)

    def _clear(self, worker_id: str) -> None:
        """Ends what is left of a worker and removes its directory."""
        directory = self._directory(worker_id)
        record = self._record(worker_id)
        if record is None and not directory.path.exists():
            return
        if worker_id not in self._ended:
            self._kill(worker_id, record)
        if record:
            cgroups.remove(tuple(map(Path, record.groups)))
        try:
            directory.remove()
        except OSError as error:
            self._note("worker %s: cannot remove all of %s: %s", worker_id, directory.path, error)
        self._records.pop(worker_id, None)
        self._children.pop(worker_id, None)
        self._ended.discard(worker_id)
        self._ending.discard(worker_id)

    def _launch(self, launch: Launch) -> Record:
        env = environment(launch, self._mark(launch.worker_id))
        records = tuple(self._records.values())
        ports = ports_for(launch, {port for r in records for port in (r.port, r.health_port)})
        command = command_line(launch.template, Path.cwd(), env["PATH"]) + ports.arguments
        for name in self._volumes.link(launch.template):
            self._note("the engine process does not enforce readOnly of volume %s", name)
        if not launch.template.egress:
            self._note("the engine process does not enforce egress of endpoint %s", launch.endpoint)
        directory = self._directory(launch.worker_id)
        shell = None
        try:
            directory.make()
            if launch.input is not None:
                env |= {INPUT_VARIABLE: str(directory.put_input(launch.input))}
            apart = launch.input is not None
            shell = Shell(directory, command, {**env, **ports.env}, apart=apart)
            record = self._recorded(launch, shell.pid, ports)
            directory.write(record)
            shell.go()
        except (OSError, ValueError) as error:
            # The text of a ValueError contains no value of the environment.
            reason = getattr(error, "strerror", None) or str(error)
            if shell:
                shell.end()
            cgroups.remove_named(directory.group)
            with contextlib.suppress(OSError):
                directory.remove()
            raise EngineError(f"worker {launch.worker_id} cannot be started: {reason}") from None
        self._records[launch.worker_id] = record
        self._children[launch.worker_id] = shell
        # A list() at the time of a removal may have added it again.
        self._ended.discard(launch.worker_id)
        self._shown.add(launch.worker_id)
        return record

    def _recorded(self, launch: Launch, pid: int, ports: Ports) -> Record:
        process = procfs.find(pid)
        if process is None:
            raise OSError(0, "its shell has ended")
        group = self._directory(launch.worker_id).group
        groups = cgroups.limit(group, launch.template.limits, pid, self._note)
        return Record(
            worker_id=launch.worker_id,
            endpoint=launch.endpoint,
            pid=pid,
            started=process.started,
            boot=self._boot,
            port=ports.serves,
            groups=tuple(map(str, groups)),
            devices=tuple(device.id for device in launch.devices),
            health_port=ports.health,
        )
