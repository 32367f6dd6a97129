"""The slots of a node, as several threads use them."""

import contextlib
import threading
import time

import pytest
from helpers import attempt

from ownpod.node.slots import Slots


@pytest.mark.slow
def test_the_jobs_are_listed_while_slots_are_taken_and_freed():
    slots = Slots(None, None, lease_s=15, on_change=lambda: None)
    stopped = threading.Event()

    def take_slots(number):
        while not stopped.is_set():
            with (
                slots.linger(f"kept-{number}", 1),
                slots.occupy(attempt(job_id=f"run-{number}")),
            ):
                pass

    # Many others, so that to list them takes a while.
    many = contextlib.ExitStack()
    for number in range(500):
        many.enter_context(slots.linger(f"waiting-{number}", 1))
    threads = [threading.Thread(target=take_slots, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 1
    try:
        while time.monotonic() < until:
            assert len(slots.jobs) >= 500
    finally:
        stopped.set()
        for thread in threads:
            thread.join(10)
    assert len(slots.jobs) == 500
    many.close()
    assert slots.jobs == []
