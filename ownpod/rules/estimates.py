"""How long a job will wait, from how long the jobs of its endpoint ran and how long its workers loaded. Pure."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MOST_RUNS = 1000
"""Number of running and of waiting jobs up to which there is an estimate; for further ones it would cost much and tell little."""


@dataclass(frozen=True)
class Pace:
    """What is known of an endpoint's speed.

    Attributes:
        run_s: median of the seconds for which its jobs ran; None: none has ended yet.
        load_s: seconds from start to ready of its worker that was ready last; None: not known.
        running: seconds since each running job began, by worker id.
    """

    run_s: float | None = None
    load_s: float | None = None
    running: Mapping[str, Sequence[float]] = field(default_factory=dict)


def median_ms(counts: Sequence[int], ends: Sequence[int]) -> float | None:
    """The median of a histogram, in ms, as if the observations of a bucket were spread evenly over it.

    Args:
        counts: number of observations in each bucket, and at last of those above the last end.
        ends: upper ends of the buckets, in ms.

    Returns:
        None: there are no observations. For a median above the last end, that end.
    """
    half, seen, low = sum(counts) / 2, 0, 0
    if not half:
        return None
    for count, end in zip(counts, ends, strict=False):
        if count and seen + count >= half:
            return low + (end - low) * (half - seen) / count
        seen, low = seen + count, end
    return float(low)


def wait_s(
    position: int,
    pace: Pace,
    *,
    running: Sequence[float],
    starting: Sequence[float] = (),
) -> int | None:
    """Whole seconds until a waiting job begins, 1 at least.

    A job that has run for longer than the median counts as one that ends now, and so does a start.

    Args:
        position: of the job in its queue, from 1.
        pace: of its endpoint.
        running: seconds since each running job began whose slot the queue gets.
        starting: seconds since the start of each worker began that the queue gets.

    Returns:
        None: what it depends on is not known.
    """
    if len(running) + len(starting) + position > MOST_RUNS:
        return None
    run_s, load_s = pace.run_s, pace.load_s
    free_in = [max(run_s - elapsed, 0.0) for elapsed in running] if run_s is not None else []
    free_in += [max(load_s - elapsed, 0.0) for elapsed in starting] if load_s is not None else []
    if not free_in or (position > 1 and run_s is None):
        return None
    heapq.heapify(free_in)
    for _ in range(position - 1):
        heapq.heappushpop(free_in, free_in[0] + (run_s or 0.0))
    return max(1, math.ceil(free_in[0]))
