"""The policies that the simulator compares. Each describes how a system chooses, not how fast it is."""

import itertools
from collections.abc import Iterable

from simulator import STOP_S, Card, Job, Mix, Policy, Simulator, State

from ownpod.housekeeping.scaler import EVERY_S
from ownpod.rules.managed import AgentInfo, Device, Hold, Phase
from ownpod.rules.sharing import (
    HOLD_LEAST_S,
    Evict,
    HoldsByHost,
    Resident,
    Wait,
    Waiting,
    choose,
    hold_s,
    keep,
    slot_name,
)
from ownpod.rules.templates import DEFAULT_RESIDENCY_S

HOST = "host"

PHASES = {
    State.LOADING: Phase.STARTING,
    State.READY: Phase.READY,
    State.STOPPING: Phase.STOPPING,
}


class Fifo:
    """Jobs in the order of their arrival, whatever is loaded: a job for an endpoint that is not loaded holds up all later
    ones, and gets the least recently used device that has no job left from before it.

    This is ollama's scheduler with one model on each device, except that ollama chooses one of the busy workers and waits
    for it, while here the first that is idle is swapped. With ``exclusive``, it is a group of llama-swap: one model
    is loaded at a time, and it is swapped as soon as no request is in flight.
    """

    turn_s = 0.0

    def __init__(self, name: str, *, exclusive: bool = False) -> None:
        self.name = name
        self._exclusive = exclusive

    def job(self, now: Simulator, card: Card) -> Job | None:
        for job in now.waiting:
            if job.endpoint == card.endpoint:
                return job
            if now.holder(job.endpoint) is None:
                return None
        return None

    def devices(self, now: Simulator) -> Iterable[tuple[Card, str]]:
        cards = now.cards[:1] if self._exclusive else now.cards
        left = list[str]()
        for job in now.waiting:
            if now.holder(job.endpoint) is not None:
                left.append(job.endpoint)
                continue
            free = [card for card in cards if card.state is State.FREE]
            idle = [card for card in cards if card.is_idle and not card.beneficiary]
            idle = [card for card in idle if card.endpoint not in left]
            idle.sort(key=lambda card: card.used_s)
            return [(card, job.endpoint) for card in [*free, *idle][:1]]
        return []


class OwnPod:
    """The scaler's turns with :func:`ownpod.rules.sharing.choose`; workers begin what waits for their own endpoint."""

    name = "OwnPod"
    turn_s = EVERY_S

    def job(self, now: Simulator, card: Card) -> Job | None:
        return next((job for job in now.waiting if job.endpoint == card.endpoint), None)

    def devices(self, now: Simulator) -> Iterable[tuple[Card, str]]:
        wanted = [name for name in now.needed_since_s if now.holder(name) is None]
        wanted.sort(key=lambda endpoint: now.needed_since_s[endpoint])
        free = [card for card in now.cards if card.state is State.FREE]
        # The simulator loads each device before the next is chosen.
        yield from zip(free, wanted, strict=False)
        if len(wanted) <= len(free):
            return
        agent = AgentInfo(HOST, "process", tuple(_device(card) for card in now.cards))
        workers = {_worker(card): card for card in now.cards if card.endpoint}
        residents = [_resident(now, card) for card in workers.values()]
        holds: HoldsByHost = {HOST: [_hold(card) for card in workers.values()]}
        behind = frozenset[str]()
        for endpoint in wanted[len(free) :]:
            waiting = Waiting(
                endpoint,
                endpoint,
                oldest_wait_s=now.oldest_wait_s(endpoint),
                load_s=now.loads_s.get(endpoint, 0.0),
                behind=behind,
            )
            chosen = choose(waiting, residents, [agent], holds)
            if isinstance(chosen, Wait):
                behind |= chosen.workers
            if chosen is not None:
                holds = keep(holds, HOST, chosen.slots, endpoint)
            if isinstance(chosen, Evict):
                yield workers[chosen.victims[0].worker], endpoint


def longest_need_s(mix: Mix, endpoint: str) -> float:
    """Bound of the seconds for which an endpoint has a job and no worker with :class:`OwnPod`, its load included.

    Each other endpoint may get the device once before it: stop and load, hold, the job that runs then, and a turn of the
    scaler. The hold depends on the next endpoint, so the longest counts.
    """
    longest = {name: max(_durations(mix, name), default=0.0) for name in mix.load_s}
    residency_s = max(DEFAULT_RESIDENCY_S, *mix.load_s.values())
    hold = max(hold_s(a, b) for a, b in itertools.permutations(mix.load_s.values(), 2))
    return sum(
        max(hold, residency_s) + longest[other] + STOP_S + load_s + EVERY_S
        for other, load_s in mix.load_s.items()
        if other != endpoint
    ) + (STOP_S + mix.load_s[endpoint])


def longest_wait_s(mix: Mix, endpoint: str, ahead_s: float) -> float:
    """Bound of the seconds that a job waits with :class:`OwnPod`.

    Args:
        mix: what it is part of.
        endpoint: the job's.
        ahead_s: seconds of the jobs of its endpoint that wait or run when it comes.
    """
    # Each time its endpoint gets the device, jobs of at least the shortest hold begin.
    times = 1 + ahead_s // HOLD_LEAST_S
    return ahead_s + times * longest_need_s(mix, endpoint) + max(_durations(mix, endpoint))


def _durations(mix: Mix, endpoint: str) -> list[float]:
    return [job.duration_s for job in mix.jobs if job.endpoint == endpoint]


def _device(card: Card) -> Device:
    return Device(f"gpu-{card.index}", card.index, "GPU")


def _worker(card: Card) -> str:
    return f"{card.endpoint} on {card.index}"


def _hold(card: Card) -> Hold:
    return Hold(_device(card).id, worker=_worker(card), next=card.beneficiary)


def _resident(now: Simulator, card: Card) -> Resident:
    assert card.endpoint
    return Resident(
        _worker(card),
        card.endpoint,
        HOST,
        (slot_name(_device(card).id, 0),),
        Phase.DRAINING if card.beneficiary else PHASES[card.state],
        idle_s=now.now_s - card.used_s if card.is_idle else 0.0,
        load_s=now.mix.load_s[card.endpoint],
        ready_s=now.now_s - card.ready_s if card.state is State.READY else 0.0,
        jobs=int(card.job is not None),
        queued=sum(job.endpoint == card.endpoint for job in now.waiting),
        oldest_wait_s=now.oldest_wait_s(card.endpoint),
    )


POLICIES: tuple[Policy, ...] = (
    Fifo("LRU that waits (ollama)"),
    Fifo("exclusive group (llama-swap)", exclusive=True),
    OwnPod(),
)
