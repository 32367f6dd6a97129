"""Managed workers while everything is killed: in every phase of a worker, by chance with a fixed seed.

Two endpoints share two devices, and scale to zero and back again and again while their jobs go through. The phases that are
short are made longer: a worker ends a second after its SIGTERM. With the engine of processes a worker is prepared within
some ms, so the agent runs for a ms at a time from when a worker is wanted, and is stopped while it prepares that worker.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
import requests
import yaml
from chaos import SECONDS, SEED, Client, Parts, ending, processes_of, soon
from helpers import overlaps, wait_until

from ownpod.agent.commands import MARK
from ownpod.agent.directories import RECORD
from ownpod.errors import RedisUnavailable
from ownpod.rules.managed import LIVE, Phase
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed

HANDLERS = Path(__file__).with_name("handlers.py")
KILLS_S = max(60.0, SECONDS)
"""Seconds in which processes are killed."""
ALL_PHASES_S = 120
"""Seconds of a run in which something is certainly killed in each phase."""
JOBS = max(200, int(2 * KILLS_S))
ENDED_S = 150.0 + KILLS_S / 2
"""Seconds in which all jobs end after the last kill."""
GONE_S = 120.0
"""Seconds in which the last worker is gone: those of an orphan, and some more."""
DEVICES = 2
KILL_PAUSE_S = (0.1, 0.8)
FROZEN_S = (0.1, 0.6)
"""How long the agent is stopped after a kill while it prepares a worker."""
SLOW_TO_END = """trap 'sleep 1; exit 0' TERM; "$@" & wait $!"""
"""In a worker's shell, which is its first process."""
AIM_SHORT_S, AIM_S = 0.8, 2.0
"""Seconds to wait for a worker in a phase that is short, and in any other, in which a process is to be killed."""
STEP_S, STEPS_S = 0.001, 1.0
"""For how long the agent runs between two looks whether it prepares a worker, and for how long it is watched so."""

PARTS: Parts = {
    "agent": lambda line, depth: "ownpod agent" in line and depth == 1,
    "node": lambda line, _: "celeryd: " in line and "celeryd: housekeeping" not in line,
    "dispatcher": lambda line, depth: "ownpod dispatch" in line and depth == 1,
    "API": lambda line, _: "gunicorn" in line,
    "housekeeping": lambda line, _: "celeryd: housekeeping" in line,
    "Redis": lambda line, _: "redis.sock" in line,
}
KINDS = [*PARTS, "worker"]
SHORT = (Phase.PREPARING, Phase.DRAINING, Phase.STOPPING)
AIMS = [phase for phase in Phase if phase is not Phase.STOPPED]

LOOK = """
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local phase, devices, host = unpack(redis.call('HMGET', KEYS[1] .. ':' .. id, 'phase', 'devices', 'host'))
  found[#found + 1] = {id, phase or '', devices or '[]', host or ''}
end
return cjson.encode({workers = found, held = redis.call('HGETALL', KEYS[2]), stopped = redis.call('ZRANGE', KEYS[3], 0, -1)})
"""
"""All records and holds, as they are at one moment."""


class Bursts(Client):
    """Submits so many jobs in bursts, with pauses in which workers become idle."""

    def __init__(self, endpoint: str, runs: Path, chance: random.Random, count: int) -> None:
        self._count = count
        self.done = threading.Event()
        super().__init__(endpoint, runs, chance, pause_s=0)

    def _run(self) -> None:
        number = 0
        while number < self._count:
            size = min(self._chance.randint(1, max(2, self._count // 10)), self._count - number)
            for _ in range(size):
                self.submit(number)
                number += 1
            # Evenly over the time of the kills.
            self.stop.wait(self._chance.uniform(0.5, 1.5) * size * KILLS_S / self._count)
        self.done.set()


class Processes:
    """The processes of managed workers below a data directory, with the devices in the engine's own records."""

    def __init__(self, data: Path) -> None:
        self._root = data.resolve() / "agent"
        self._devices: dict[str, tuple[str, ...]] = {}

    def living(self) -> dict[str, list[psutil.Process]]:
        """Them by worker id."""
        found = defaultdict(list)
        mark = f"ownpod:{self._root}/"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                value = process.environ().get(MARK, "")
                if value.startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                    found[Path(value).name].append(process)
        return found

    def devices(self, worker_id: str) -> tuple[str, ...]:
        """The devices that a worker was started with; () while the engine has not recorded it yet."""
        if worker_id not in self._devices:
            for file in self._root.glob(f"*/{worker_id}/{RECORD}"):
                with contextlib.suppress(OSError, ValueError):
                    self._devices[worker_id] = tuple(json.loads(file.read_text())["devices"])
        return self._devices.get(worker_id, ())


def alive(processes: list[psutil.Process]) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


class Watcher(threading.Thread):
    """Looks all the time for what must never be: two workers on a device, a process of a stopped worker."""

    def __init__(self, redis_url: str, processes: Processes) -> None:
        super().__init__(daemon=True)
        self.wrong: list[str] = []
        self.looks = 0
        self.phases: Counter[str] = Counter()
        self._client = connect(redis_url)
        self._managed = Managed(self._client)
        self._processes = processes
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        stopped: set[str] = set()
        while not self._ended.wait(0.05):
            # The records first: a worker that was STOPPED before its processes were listed has none.
            with contextlib.suppress(redis.RedisError, RedisUnavailable):
                stopped = self._records()
            self._look(stopped)
            self.looks += 1

    def _records(self) -> set[str]:
        text = self._client.eval(LOOK, 3, keys.MANAGED, keys.DEVICES_HELD, keys.MANAGED_STOPPED)
        found = json.loads(str(text))
        pairs = iter(found["held"])
        held = dict(zip(pairs, pairs, strict=True))
        owners: dict[str, str] = {}
        for worker_id, phase, devices, host in found["workers"]:
            self.phases[phase] += 1
            if phase not in LIVE:
                continue
            for device in json.loads(devices):
                if (other := owners.setdefault(device, worker_id)) != worker_id:
                    self.wrong.append(f"records of {worker_id} and {other} have {device}")
                if held.get(f"{host}/{device}#0") != worker_id:
                    self.wrong.append(f"{worker_id} ({phase}) does not hold {device}: {held}")
        return set(found["stopped"] or ())

    def _look(self, stopped: set[str]) -> None:
        living = self._processes.living()
        on: defaultdict[str, list[str]] = defaultdict(list)
        for worker_id in living:
            for device in self._processes.devices(worker_id):
                on[device].append(worker_id)
        for device, workers in on.items():
            # One of them may have ended while they were listed.
            if len(workers) > 1 and sum(alive(living[worker]) for worker in workers) > 1:
                self.wrong.append(f"{device} has processes of {workers}")
        for worker_id in stopped & living.keys():
            if alive(living[worker_id]):
                lines = [" ".join(p.cmdline()) for p in living[worker_id] if alive([p])]
                self.wrong.append(f"{worker_id} is STOPPED, and runs: {lines}")

    def end(self) -> None:
        self._ended.set()
        self.join(30)
        self._client.close()


class Killer:
    """Kills processes by chance, each kind while a worker is in each phase.

    Attributes:
        killed: the number of kills by kind and by the phase in which a worker was seen just before; "none": in no certain one.
    """

    def __init__(self, ownpod, processes: Processes, chance: random.Random) -> None:
        self.killed: Counter[tuple[str, str]] = Counter()
        self._ownpod = ownpod
        self._processes = processes
        self._chance = chance
        self._agents: list[psutil.Process] = []

    def run(self, until_s: float) -> None:
        """Kills until then, and until one of each kind is killed, for twice as long at most. Each kind has its turn in each phase,
        as far as there are workers in it.
        """
        deck: list[tuple[str, Phase]] = []
        with connect(self._ownpod.redis_url) as client:
            managed = Managed(client)
            while time.monotonic() < until_s or (
                time.monotonic() < until_s + KILLS_S
                and {kind for kind, _ in self.killed} != set(KINDS)
            ):
                if not deck:
                    deck = [(kind, phase) for kind in KINDS for phase in AIMS]
                    self._chance.shuffle(deck)
                time.sleep(self._chance.uniform(*KILL_PAUSE_S))
                with contextlib.suppress(psutil.Error):
                    self._find_agents()
                with self._aimed(managed, deck) as ((kind, phase), worker):
                    deck.remove((kind, phase))
                    if not worker:
                        # Without a worker in its phase it is due again before the deck is dealt anew.
                        deck.append((kind, phase))
                    if self._kill(kind, worker):
                        self.killed[kind, phase if worker else "none"] += 1

    def table(self) -> str:
        """The kills by phase, a line for each, with a column for each kind."""
        widths = [max(len(kind), 4) for kind in KINDS]
        head = "  ".join(kind.rjust(width) for kind, width in zip(KINDS, widths, strict=True))
        lines = [f"{'killed while a worker was':26}{head}"]
        for phase in (*AIMS, "none"):
            cells = (str(self.killed[kind, phase]) for kind in KINDS)
            row = "  ".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))
            lines.append(f"{'(in no certain phase)' if phase == 'none' else phase:26}{row}")
        return "\n".join(lines)

    def _find_agents(self) -> None:
        """Before they are needed, because that takes longer than a worker is prepared."""
        if not any(agent.is_running() for agent in self._agents):
            self._agents = processes_of(self._ownpod, "agent", PARTS)

    @contextlib.contextmanager
    def _aimed(
        self, managed: Managed, deck: list[tuple[str, Phase]]
    ) -> Iterator[tuple[tuple[str, Phase], str | None]]:
        """What to kill, and a worker that is in the phase for it as soon as there is one; None after a while.

        While a worker is prepared, the agent is stopped until a while after the block.
        """
        began = time.monotonic()
        preparing = [card for card in deck if card[1] is Phase.PREPARING]
        while (passed_s := time.monotonic() - began) < AIM_S:
            now = self._look(managed)
            placed = sum(len(workers) for phase, workers in now.items() if phase in LIVE)
            if preparing and Phase.WANTED in now and placed < DEVICES and self._agents:
                with self._stepped(managed) as worker:
                    if worker:
                        yield preparing[0], worker
                        time.sleep(self._chance.uniform(*FROZEN_S))
                        return
            phases = SHORT if passed_s < AIM_SHORT_S else AIMS
            if aimed := [card for card in deck if card[1] in now and card[1] in phases]:
                yield aimed[0], now[aimed[0][1]][0]
                return
            time.sleep(0.002)
        yield deck[0], None

    def _look(self, managed: Managed) -> dict[Phase, list[str]]:
        """The workers in each phase that there is now."""
        found = defaultdict(list)
        with contextlib.suppress(RedisUnavailable):
            for worker in managed.list():
                found[worker.phase].append(worker.id)
        return found

    @contextlib.contextmanager
    def _stepped(self, managed: Managed) -> Iterator[str | None]:
        """Lets the agent run for a ms at a time until it prepares a worker, and yields that one; None after a while.

        The agent is stopped in the block.
        """
        until_s = time.monotonic() + STEPS_S
        try:
            while True:
                send(self._agents, signal.SIGSTOP)
                now = self._look(managed)
                if Phase.PREPARING in now or Phase.WANTED not in now or time.monotonic() > until_s:
                    yield next(iter(now.get(Phase.PREPARING, ())), None)
                    return
                send(self._agents, signal.SIGCONT)
                time.sleep(STEP_S)
        finally:
            send(self._agents, signal.SIGCONT)

    def _living(self) -> dict:
        """The processes of workers, among which a victim is chosen, by worker id."""
        return self._processes.living()

    def _kill(self, kind: str, worker: str | None) -> bool:
        if kind == "worker":
            living = self._living()
            victims = living.get(worker or "") or [p for found in living.values() for p in found]
        else:
            victims = soon(lambda: processes_of(self._ownpod, kind, PARTS))
            # The worker's own node, if it has one.
            own = [p for p in victims if kind == "node" and worker and worker in line_of(p)]
            victims = own or victims
        if not victims:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._chance.choice(victims).pid, signal.SIGKILL)
            return True
        return False


def send(processes: list[psutil.Process], signum: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)


def line_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def endpoint(kind: str, **template: object) -> dict[str, object]:
    env = {"HANDLER": kind, "PYTHONUNBUFFERED": "1"}
    command = ["sh", "-c", SLOW_TO_END, "sh", sys.executable, str(HANDLERS)]
    return {
        "template": {"command": command, "env": env, **template},
        "workersMax": 2,
        "idleTimeout": 1,
        "scalerType": "REQUEST_COUNT",
        "scalerValue": 4,
        "gpu": {"count": 1},
        # More attempts than by default: in a minute here more dies than elsewhere in a year.
        "maxAttempts": 100,
    }


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * KILLS_S + ENDED_S + GONE_S)
def test_every_job_is_completed_and_every_device_is_free_whatever_is_killed(
    start_ownpod, tmp_path, capsys
):
    file = tmp_path / "workers.yaml"
    endpoints = {"pull-ep": endpoint("sync"), "push-ep": endpoint("async", protocol="push")}
    file.write_text(yaml.safe_dump({"endpoints": endpoints}))
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES=f"cpu:{DEVICES}",
        OWNPOD_APPENDFSYNC="always",
        OWNPOD_LEASE_S=4,
        OWNPOD_SHUTDOWN_GRACE_S=2,
    )
    runs, processes = tmp_path / "runs", Processes(tmp_path / "var")
    watcher = Watcher(ownpod.redis_url, processes)
    with ending(watcher):
        # With the SDK a worker pulls about a job a second.
        counts = {"pull-ep": JOBS * 3 // 10, "push-ep": JOBS - JOBS * 3 // 10}
        clients = [
            Bursts(f"{ownpod.base}/{name}", runs, random.Random(f"{SEED} {name}"), count)
            for name, count in counts.items()
        ]
        killer = Killer(ownpod, processes, random.Random(SEED))
        killer.run(time.monotonic() + KILLS_S)
        began = time.monotonic()
        for client in clients:
            wait_until(client.done.is_set, ENDED_S, "all jobs are accepted")
        ended = {}
        for client in clients:
            left_s = began + ENDED_S - time.monotonic()
            ended[client] = client.all_ended(max(left_s, 1))
        all_done_s = time.monotonic() - began
        try:
            gone_s = wait_until_gone(ownpod, processes)
        finally:
            told = (
                f"\nmanaged, seed {SEED}: {sum(map(len, ended.values()))} jobs, "
                f"{killer.killed.total()} kills in {KILLS_S:g} s, all done {all_done_s:.1f} s after the last; "
                f"{watcher.looks} looks, which saw "
                + ", ".join(f"{phase} {n}" for phase, n in watcher.phases.most_common())
                + f"\n{killer.table()}"
            )
            with capsys.disabled():
                print(told)
        for client, statuses in ended.items():
            assert Counter(s["status"] for s in statuses.values()) == {"COMPLETED": len(statuses)}
            assert {i: s["output"]["echo"] for i, s in statuses.items()} == client.accepted
        assert sum(map(len, ended.values())) == JOBS
        assert overlaps(runs) == []
        # Nothing is left that keeps a device, or the endpoints, from further jobs.
        for name in endpoints:
            url = f"{ownpod.base}/{name}/runsync?wait=90000"
            answer = requests.post(url, json={"input": {"text": "next"}}, timeout=100).json()
            assert answer.get("output", {}).get("echo") == "next", answer
    assert watcher.wrong == []
    assert {kind for kind, _ in killer.killed} == set(KINDS)
    # In a shorter run a busy host may miss a phase that takes some ms.
    if SECONDS >= ALL_PHASES_S:
        assert {phase for _, phase in killer.killed} >= set(AIMS)
    assert gone_s <= GONE_S


def wait_until_gone(ownpod, processes: Processes) -> float:
    """Waits until there is no worker, no process of one, and no device that is held. Returns seconds."""
    began = time.monotonic()
    with connect(ownpod.redis_url) as client:
        managed, agents = Managed(client), Agents(client)
        left = lambda: (managed.list(), dict(processes.living()), agents.all_holds())  # noqa: E731
        try:
            wait_until(lambda: not any(left()), GONE_S)
        except AssertionError:
            raise AssertionError(f"left after {GONE_S:g} s: {left()}") from None
        assert client.scard(f"{keys.MANAGED_HOST}{agents.agents()[0].host}") == 0
        assert client.hlen(keys.MANAGED_ENTRIES) == 0
    return time.monotonic() - began
