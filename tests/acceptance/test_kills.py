"""Nodes killed while jobs go through, by chance with a fixed seed: no job is lost."""

import random
import time

import pytest
from helpers import node_processes, wait_until


@pytest.mark.timeout(300)
def test_no_job_is_lost_when_nodes_are_killed(start_worker, start_ownpod):
    chance = random.Random(7)
    urls = [start_worker()[0] for _ in range(2)]
    ownpod = start_ownpod(*urls, OWNPOD_LEASE_S=2)
    jobs = []
    for round_number in range(6):
        jobs += [ownpod.submit(text=f"{round_number}-{n}", seconds=0.01) for n in range(40)]
        time.sleep(chance.uniform(0, 0.3))
        victims = wait_until(lambda: node_processes(ownpod))
        chance.choice(victims).kill()
    done = [ownpod.ended(job, 90) for job in jobs]
    assert {d["status"] for d in done} == {"COMPLETED"}
    assert [d["output"]["echo"] for d in done] == [f"{r}-{n}" for r in range(6) for n in range(40)]
    assert ownpod.ended(ownpod.submit(text="next"))["status"] == "COMPLETED"
