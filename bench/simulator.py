"""A simulator of endpoints that share devices: jobs in, starts and swaps out. Pure: discrete events, and no real time.

A device has one model at a time, a loaded model runs one job at a time, and each endpoint has one worker at most. A
policy decides which job a loaded device begins, and which device is loaded for which endpoint.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

STOP_S = 1.0
"""Seconds from the last job of a worker to free memory of its device."""

LONGEST_S = 7 * 86400
"""Seconds after which a simulation counts as one that does not end."""


@dataclass(frozen=True)
class Job:
    arrival_s: float
    endpoint: str
    duration_s: float


@dataclass(frozen=True)
class Mix:
    """Jobs in the order of their arrival, and what they run on.

    Attributes:
        about: what the jobs are.
        load_s: seconds that the worker of each endpoint loads.
        waits_s: of a mix that was recorded from a real OwnPod, the seconds that each job waited there.
        swaps: of such a mix, the number of swaps; None: it was not recorded.
    """

    name: str
    about: str
    devices: int
    load_s: Mapping[str, float]
    jobs: tuple[Job, ...]
    waits_s: tuple[float, ...] = ()
    swaps: int | None = None


class State(Enum):
    FREE = auto()
    LOADING = auto()
    READY = auto()
    STOPPING = auto()


@dataclass
class Card:
    """A device.

    Attributes:
        until_s: when its load, its stop or its job ends; infinite: it does nothing.
        ready_s: when its worker was ready.
        used_s: when its worker was ready, or ended its last job.
        beneficiary: the endpoint whose worker gets it next; it begins no more jobs then.
    """

    index: int
    state: State = State.FREE
    endpoint: str | None = None
    until_s: float = math.inf
    ready_s: float = 0.0
    used_s: float = 0.0
    job: Job | None = None
    beneficiary: str | None = None

    @property
    def is_idle(self) -> bool:
        return self.state is State.READY and self.job is None


@dataclass(frozen=True)
class Start:
    """A job began on a device."""

    at_s: float
    job: Job
    device: int

    @property
    def waited_s(self) -> float:
        return self.at_s - self.job.arrival_s


@dataclass(frozen=True)
class Swap:
    """A device went from one endpoint to another; times of the decision, and of its worker's start before it."""

    at_s: float
    device: int
    loser: str
    winner: str
    ready_s: float
    was_busy: bool


@dataclass(frozen=True)
class Load:
    """A device was loaded; ``needed_s``: for how many seconds the endpoint had a job and no worker, the load included."""

    ready_s: float
    device: int
    endpoint: str
    needed_s: float


@dataclass
class Run:
    """What happened, in its order."""

    starts: list[Start] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)


class Policy(Protocol):
    """Which job is next, and which endpoint gets which device."""

    name: str
    turn_s: float
    """Seconds between two calls of ``devices`` while jobs wait; an arrival is a call, too. 0: after each event."""

    def job(self, now: "Simulator", card: Card) -> Job | None:
        """The waiting job that an idle device begins; None: none."""

    def devices(self, now: "Simulator") -> Iterable[tuple[Card, str]]:
        """Devices, and the endpoints that get them. A busy one ends its job first, and begins no other."""


class Simulator:
    """One run of a mix with a policy.

    Attributes:
        now_s: the time in the simulation.
        waiting: jobs that have not begun, in the order of their arrival.
        loads_s: last load time of the endpoints that have been loaded, as OwnPod knows it.
        needed_since_s: of endpoints that have a job and no worker that is ready or loads: since when.
    """

    def __init__(self, mix: Mix, policy: Policy) -> None:
        self.mix = mix
        self.now_s = 0.0
        self.waiting: list[Job] = []
        self.cards = [Card(index) for index in range(mix.devices)]
        self.loads_s: dict[str, float] = {}
        self.needed_since_s: dict[str, float] = {}
        self.result = Run()
        self._policy = policy
        self._coming = list(reversed(mix.jobs))
        self._turn_s = 0.0

    def run(self) -> Run:
        """Runs until each job has ended. Raises: RuntimeError if jobs wait and nothing more can happen."""
        while self._coming or self.waiting or any(card.job for card in self.cards):
            self.now_s = self._next_s()
            if self.now_s > LONGEST_S:
                raise RuntimeError(f"{len(self.waiting)} jobs wait without an end")
            for card in self.cards:
                if card.until_s <= self.now_s:
                    self._end(card)
            arrived = self._arrive()
            self._begin()
            self._note_needs()
            if not self._policy.turn_s or arrived or self.now_s >= self._turn_s:
                self._decide()
                self._begin()
        return self.result

    def holder(self, endpoint: str) -> Card | None:
        """The device that has an endpoint's worker, or will have it."""
        for card in self.cards:
            if card.beneficiary == endpoint or (card.endpoint == endpoint and not card.beneficiary):
                return card
        return None

    def oldest_wait_s(self, endpoint: str) -> float:
        """Seconds for which the oldest waiting job of an endpoint has waited; 0: none waits."""
        return next((self.now_s - j.arrival_s for j in self.waiting if j.endpoint == endpoint), 0.0)

    def _next_s(self) -> float:
        times = [card.until_s for card in self.cards]
        if self._coming:
            times.append(self._coming[-1].arrival_s)
        if self.waiting and self._policy.turn_s:
            times.append(max(self._turn_s, self.now_s))
        return min(times)

    def _arrive(self) -> bool:
        before = len(self.waiting)
        while self._coming and self._coming[-1].arrival_s <= self.now_s:
            self.waiting.append(self._coming.pop())
        return len(self.waiting) > before

    def _note_needs(self) -> None:
        have = {card.endpoint for card in self.cards if card.state in {State.LOADING, State.READY}}
        for job in self.waiting:
            if job.endpoint not in have:
                self.needed_since_s.setdefault(job.endpoint, self.now_s)

    def _end(self, card: Card) -> None:
        """Ends the device's load, stop or job."""
        card.until_s = math.inf
        if card.state is State.READY:
            card.job, card.used_s = None, self.now_s
            if card.beneficiary:
                self._stop(card)
        elif card.state is State.STOPPING:
            assert card.beneficiary
            self._load(card, card.beneficiary)
        else:
            assert card.endpoint
            card.state, card.ready_s, card.used_s = State.READY, self.now_s, self.now_s
            self.loads_s[card.endpoint] = self.mix.load_s[card.endpoint]
            needed_s = self.now_s - self.needed_since_s.pop(card.endpoint, self.now_s)
            self.result.loads.append(Load(self.now_s, card.index, card.endpoint, needed_s))

    def _stop(self, card: Card) -> None:
        card.state, card.until_s = State.STOPPING, self.now_s + STOP_S

    def _load(self, card: Card, endpoint: str) -> None:
        card.state, card.endpoint, card.beneficiary = State.LOADING, endpoint, None
        card.until_s = self.now_s + self.mix.load_s[endpoint]

    def _begin(self) -> None:
        for card in self.cards:
            if not card.is_idle or card.beneficiary:
                continue
            job = self._policy.job(self, card)
            if job is not None:
                self.waiting.remove(job)
                card.job, card.until_s = job, self.now_s + job.duration_s
                self.result.starts.append(Start(self.now_s, job, card.index))

    def _decide(self) -> None:
        if self._policy.turn_s:
            self._turn_s = (self.now_s // self._policy.turn_s + 1) * self._policy.turn_s
        for card, endpoint in self._policy.devices(self):
            if card.state is State.FREE:
                self._load(card, endpoint)
                continue
            assert card.state is State.READY
            assert card.endpoint
            assert not card.beneficiary
            swap = (self.now_s, card.index, card.endpoint, endpoint, card.ready_s)
            self.result.swaps.append(Swap(*swap, was_busy=card.job is not None))
            card.beneficiary = endpoint
            if card.job is None:
                self._stop(card)
