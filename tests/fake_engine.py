"""An engine that starts nothing: tests say what it has, what fails, and what it does not answer."""

import threading
from collections.abc import Callable
from dataclasses import replace

from ownpod.agent.engine import (
    LOG_LINES,
    STOP_GRACE_S,
    EngineError,
    Found,
    Launch,
    Output,
    Started,
)
from ownpod.rules.templates import Template


class FakeSource:
    """The output of a worker of :class:`FakeEngine`. A position is an index in ``engine.outputs``."""

    def __init__(self, engine: "FakeEngine", worker_id: str, position: str) -> None:
        self._engine = engine
        self._worker_id = worker_id
        self._at = int(position or 0)
        self._woken = threading.Event()

    def read(self, timeout_s: float) -> Output | None:
        # First, because output that comes before the end is read.
        found = self._engine.workers.get(self._worker_id)
        ended = found is None or not found.running
        parts = self._engine.outputs.get(self._worker_id, [])
        if self._at < len(parts):
            self._at += 1
            return Output(parts[self._at - 1], str(self._at))
        if ended:
            return None
        self._woken.wait(min(timeout_s, 0.02))
        self._woken.clear()
        return Output(b"", str(self._at))

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self.wake()


class FakeEngine:
    """Implements :class:`ownpod.agent.engine.Engine`.

    Attributes:
        workers: what the engine has, by id.
        launched: what it was asked to start, in order.
        stopped: ids of the workers that it was asked to stop, in order.
        removed: ids of the workers that it was asked to remove, in order.
        start_error: ``start`` raises an EngineError with this text; "": it starts workers.
        away: every call but ``wait`` raises an EngineError with this text; "": the engine answers.
        refused: ``check_template`` refuses templates of this image.
        digests: what tags mean, by reference.
        prepare_error: ``prepare`` raises an EngineError with this text.
        prepared: templates whose image it has got, in order.
        outputs: parts of what the workers have written, by id.
        addresses: where workers serve, by id.
        envs: what is known of the workers' variables, by id.
        holding: ``start`` blocks until this is set.
    """

    name = "fake"

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.workers: dict[str, Found] = {}
        self.launched: list[Launch] = []
        self.stopped: list[str] = []
        self.removed: list[str] = []
        self.start_error = ""
        self.away = ""
        self.refused = ""
        self.digests: dict[str, str] = {}
        self.prepare_error = ""
        self.prepared: list[Template] = []
        self.outputs: dict[str, list[bytes]] = {}
        self.addresses: dict[str, Started] = {}
        self.envs: dict[str, dict[str, str]] = {}
        self.holding = threading.Event()
        self.holding.set()

    def _answer(self) -> None:
        if self.away:
            raise EngineError(self.away)

    def check(self) -> None:
        self._answer()

    def check_template(self, template: Template) -> None:
        if self.refused and template.image == self.refused:
            raise EngineError(f"the image {template.image} cannot be run here")

    def prepare(self, template: Template, progress: Callable[[str], None]) -> None:
        self._answer()
        progress(f"gets {template.image}")
        if self.prepare_error:
            raise EngineError(self.prepare_error)
        self.prepared.append(template)

    def digest(self, template: Template) -> str:
        self._answer()
        return self.digests.get(template.image or "", "")

    def start(self, launch: Launch) -> Started:
        self._answer()
        self.launched.append(launch)
        self.holding.wait(30)
        if self.start_error:
            raise EngineError(self.start_error)
        devices = tuple(device.id for device in launch.devices)
        found = Found(launch.worker_id, running=True, age_s=0.0, devices=devices)
        self.workers.setdefault(launch.worker_id, found)
        return self.address(launch.worker_id)

    def list(self) -> dict[str, Found]:
        self._answer()
        return dict(self.workers)

    def change(self, worker_id: str, **changes: object) -> None:
        """Changes what the engine says of a worker."""
        self.workers[worker_id] = replace(self.workers[worker_id], **changes)  # type: ignore[arg-type]

    def stop(self, worker_id: str, grace_s: float = STOP_GRACE_S) -> None:
        self._answer()
        self.stopped.append(worker_id)
        if worker_id in self.workers:
            self.change(worker_id, running=False, exit_code=0)

    def remove(self, worker_id: str) -> None:
        self._answer()
        self.removed.append(worker_id)
        self.workers.pop(worker_id, None)

    def log(self, worker_id: str, lines: int = LOG_LINES) -> str:
        self._answer()
        return f"last words of {worker_id}"

    def follow(self, worker_id: str, position: str = "") -> FakeSource:
        return FakeSource(self, worker_id, position)

    def env(self, worker_id: str) -> dict[str, str]:
        self._answer()
        return self.envs.get(worker_id, {})

    def address(self, worker_id: str) -> Started:
        return self.addresses.get(worker_id, Started())

    def api_url(self, base_url: str) -> str:
        return base_url

    def pids(self) -> set[int]:
        return set()

    def wait(self, timeout_s: float) -> None:
        threading.Event().wait(timeout_s)
