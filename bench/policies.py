"""The policies that the simulator compares. Each describes how a system chooses, not how fast it is."""

from collections.abc import Iterable

from simulator import Card, Job, Simulator, State


class Fifo:
    """Jobs in the order of their arrival, whatever is loaded: a job for an endpoint that is not loaded holds up all later
    ones, and gets the least recently used device that has no job left from before it.

    This is ollama's scheduler with one model on each device. With ``exclusive``, it is a group of llama-swap: one model
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


POLICIES = (
    Fifo("LRU that waits (ollama)"),
    Fifo("exclusive group (llama-swap)", exclusive=True),
)
