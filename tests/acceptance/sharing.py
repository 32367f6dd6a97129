"""What the tests of endpoints on one device share: their configuration, what the records show of swaps, kills in a step."""

import contextlib
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
import requests
from chaos import Client, Parts, processes_of

from ownpod.rules.managed import Phase
from ownpod.store import keys
from ownpod.store.client import connect

HANDLERS = Path(__file__).with_name("handlers.py")

LOOK = """
local time, found = redis.call('TIME'), {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local phase, reason, gives = unpack(redis.call('HMGET', KEYS[1] .. ':' .. id, 'phase', 'reason', 'gives_way'))
  found[#found + 1] = {id, phase or '', reason or '', gives or ''}
end
return cjson.encode({at = time[1] * 1000 + math.floor(time[2] / 1000), workers = found,
  held = redis.call('HKEYS', KEYS[2]), kept = redis.call('HGETALL', KEYS[3])})
"""
"""The workers, the held slots and the kept ones, as they are at one moment."""

PARTS: Parts = {
    "agent": lambda line, depth: "ownpod agent" in line and depth == 1,
    "housekeeping": lambda line, _: "celeryd: housekeeping" in line,
}


def endpoint(**template: object) -> dict[str, object]:
    """An endpoint whose workers need the device, and never leave for being idle."""
    env = {"HANDLER": "sync", "PYTHONUNBUFFERED": "1"} | template.pop("env", {})  # type: ignore[operator]
    command = [sys.executable, str(HANDLERS)]
    return {
        "template": {"command": command, "env": env, "residency": 0} | template,
        "gpu": {"count": 1},
        "workersMax": 1,
        "idleTimeout": 3600,
    }


def swaps(ownpod) -> list[str]:
    """The lines of the metrics that count swaps."""
    lines = requests.get(f"{ownpod.base.removesuffix('/v2')}/metrics", timeout=70).text.splitlines()
    return sorted(line for line in lines if "worker_swaps_total{" in line)


class Arrivals(Client):
    """Submits jobs at their times."""

    def __init__(
        self,
        endpoint: str,
        runs: Path,
        chance: random.Random,
        at_s: list[float],
        longest_s: float,
    ) -> None:
        self.accepted_ms: dict[str, float] = {}
        self.done = threading.Event()
        self._at_s = at_s
        super().__init__(endpoint, runs, chance, pause_s=0, lengths_s=[0, 0.02, longest_s])

    def _run(self) -> None:
        began = time.monotonic()
        for number, at_s in enumerate(self._at_s):
            if self.stop.wait(max(began + at_s - time.monotonic(), 0)):
                return
            self.submit(number)
            self.accepted_ms[next(reversed(self.accepted))] = time.time() * 1000
        self.done.set()


def bursts(chance: random.Random, names: str, jobs: int, within_s: float) -> dict[str, list[float]]:
    """When jobs come, in seconds, by endpoint: several at a time, endpoints and pauses by chance."""
    sizes = list[int]()
    while sum(sizes) < jobs:
        sizes.append(min(chance.randint(1, 16), jobs - sum(sizes)))
    times = sorted(chance.uniform(0, within_s) for _ in sizes)
    at_s: dict[str, list[float]] = {name: [] for name in names}
    for size, time_s in zip(sizes, times, strict=True):
        at_s[chance.choice(names)] += [time_s] * size
    return at_s


@dataclass
class Swap:
    """A worker that gives way, as its record showed it.

    Attributes:
        before_ms: when it had not been asked to leave yet.
        seen_ms: when it had.
    """

    worker: str
    before_ms: float
    seen_ms: float
    reason: str
    beneficiary: str


@dataclass
class Look:
    """What the records show at one moment. ``steps``: of swaps, each with the worker that is in it."""

    at_ms: float
    steps: dict[str, str] = field(default_factory=dict)


STEPS = ("DRAINING", "STOPPING", "device free", "PREPARING", "STARTING")
"""Of a swap: the first two are the phases of the worker that gives way, the last two of that which gets the device."""


SHORT = ("device free", "PREPARING")
"""Steps that take some ms."""


class Records(threading.Thread):
    """Looks at the records every few ms, and tells about each look.

    Args:
        redis_url: of the OwnPod.
        told: called for each look, in this thread.
    """

    def __init__(self, redis_url: str, told: Callable[["Records", Look], None]) -> None:
        super().__init__(daemon=True)
        self.swaps: dict[str, Swap] = {}
        self.looks = 0
        self._told = told
        self._client = connect(redis_url)
        self._beneficiaries = set[str]()
        self._last_ms = 0.0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.003):
            with contextlib.suppress(redis.RedisError):
                self._told(self, self.look())

    def look(self) -> Look:
        text = self._client.eval(LOOK, 3, keys.MANAGED, keys.DEVICES_HELD, keys.DEVICES_NEXT)
        found = json.loads(str(text))
        look = Look(found["at"])
        pairs = iter(found["kept"] or ())
        kept = dict(zip(pairs, pairs, strict=True))
        self._beneficiaries |= set(kept.values())
        phases = {worker: phase for worker, phase, _, _ in found["workers"]}
        for slot, worker in kept.items():
            if slot not in (found["held"] or ()) and phases.get(worker) == Phase.WANTED:
                look.steps["device free"] = worker
        for worker, phase, reason, beneficiary in found["workers"]:
            if beneficiary and worker not in self.swaps:
                self.swaps[worker] = Swap(worker, self._last_ms, look.at_ms, reason, beneficiary)
            if phase in {Phase.DRAINING, Phase.STOPPING}:
                is_step = bool(beneficiary)
            else:
                is_step = worker in self._beneficiaries
            if is_step and phase.upper() in STEPS:
                look.steps[phase.upper()] = worker
        self.looks += 1
        self._last_ms = look.at_ms
        return look

    def end(self) -> None:
        self._ended.set()
        self.join(30)
        self._client.close()


class Killer:
    """Kills a part of OwnPod while a swap is in a step: each part and step of its deck once, as the swaps come.

    Args:
        ownpod: whose parts are killed.
        workers: finds the processes of a worker.
        deck: what is to be killed, in which step.
        chance: chooses from the deck.
    """

    def __init__(
        self,
        ownpod,
        workers: Callable[[str], list[psutil.Process]],
        deck: list[tuple[str, str]],
        chance: random.Random,
    ) -> None:
        self.left = list(deck)
        self.killed: Counter[tuple[str, str]] = Counter()
        self._ownpod = ownpod
        self._workers = workers
        self._chance = chance
        self._last: dict[str, str] = {}
        self._agents: list[psutil.Process] = []
        chance.shuffle(self.left)

    def __call__(self, records: Records, look: Look) -> None:
        """Kills what is due now that records show this."""
        new = {
            step: worker for step, worker in look.steps.items() if self._last.get(step) != worker
        }
        self._last = look.steps
        if any(step in look.steps for step in ("DRAINING", "STOPPING")):
            self._find_agents()
        if cards := [card for card in self.left if card[1] in new and card[1] not in SHORT]:
            self._kill(records, cards[0], new[cards[0][1]])
        elif "STOPPING" in new and (cards := [card for card in self.left if card[1] in SHORT]):
            self._step_through(records, cards[0])

    def _step_through(self, records: Records, card: tuple[str, str]) -> None:
        """Lets the agent run for a ms at a time until the swap is in the step of the card, which is over in some ms."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            self._signal_agents(signal.SIGSTOP)
            steps = records.look().steps
            if card[1] in steps:
                self._kill(records, card, steps[card[1]])
            self._signal_agents(signal.SIGCONT)
            if card[1] in steps or "STARTING" in steps:
                return
            time.sleep(0.001)

    def _find_agents(self) -> None:
        """Before they are needed, because that takes longer than some steps."""
        if not any(agent.is_running() for agent in self._agents):
            self._agents = processes_of(self._ownpod, "agent", PARTS)

    def _signal_agents(self, number: int) -> None:
        for agent in self._agents:
            with contextlib.suppress(psutil.Error):
                agent.send_signal(number)

    def _kill(self, records: Records, card: tuple[str, str], worker: str) -> None:
        part, step = card
        victims = self._agents
        if part == "worker":
            victims = self._workers(worker)
        elif part != "agent":
            victims = processes_of(self._ownpod, part, PARTS)
        killed = False
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
                killed = True
        if killed and records.look().steps.get(step) == worker:
            # It was still in this step when the part was gone.
            self.left.remove(card)
            self.killed[card] += 1
