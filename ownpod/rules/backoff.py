"""Pauses between tries. Pure."""

MOST_DOUBLINGS = 30
"""Number of doublings after which a pause grows no more; a float overflows after a thousand."""

POLL_SHARE = 0.1
"""A poll's pause as a share of the time polled so far, so that polling adds at most a tenth to that time."""


def backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    """The pause in seconds after a number of failures in a row, from 1 on: ``first_s``, then twice as long each
    time, up to ``longest_s``.
    """
    return min(first_s * 2.0 ** min(max(failures - 1, 0), MOST_DOUBLINGS), longest_s)


def poll_pause_s(polled_s: float, first_s: float, longest_s: float) -> float:
    """The pause in seconds before the next poll: a share of the time polled so far, between two limits."""
    return min(max(first_s, polled_s * POLL_SHARE), longest_s)
