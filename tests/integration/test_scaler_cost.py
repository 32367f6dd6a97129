"""What a decision of the scaler costs, as counts of operations: finished jobs and stopped workers add none."""

import sys
import time
from collections import Counter

import pytest
from helpers import job_store, load_settings, new_job

from ownpod.housekeeping.scaler import PATIENCE_S, Scaler, new_worker_id
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import AgentInfo
from ownpod.rules.templates import ManagedSpec, ScalerType, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import MOST_STOPPED, Managed

pytestmark = pytest.mark.slow

FINISHED = 10_000
DIGITS = 400
"""Bytes by which the numbers in the requests and replies of a decision may differ, because they have more digits."""
SPEC = ManagedSpec(
    Template(command=("handler",)), Scaling(2, 2, scaler=ScalerType.REQUEST_COUNT, scaler_value=1)
)


def commands(client):
    """How often Redis has executed each command, those in scripts included."""
    stats = client.info("commandstats")
    return Counter({name: stats[name]["calls"] for name in stats if name != "cmdstat_info"})


def traffic(client):
    stats = client.info("stats")
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


def python_calls(call):
    """The number of functions that are called, those in C included."""
    count = 0

    def counted(_frame, event, _what):
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counted)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def test_a_decision_costs_the_same_after_10_000_jobs_and_200_stopped_workers(client):
    store, managed, agents = job_store(client), Managed(client), Agents(client)
    endpoint = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=SPEC)
    registry = Registry({"ep": endpoint}, Fleet(client), load_settings())
    # As if it ran for a while, so that it compares the hosts' heartbeats, too.
    ahead_s = -PATIENCE_S - 1
    clock = lambda: time.monotonic() + ahead_s  # noqa: E731
    scaler = Scaler(registry, managed, agents, Wakeups(client), clock=clock)
    ahead_s = 0.0
    for _ in range(2):
        worker_id = new_worker_id()
        agents.heartbeat(AgentInfo("h", "process", ()), "h:1")
        assert managed.want(worker_id, "ep", spec=SPEC)
        assert managed.place(worker_id, "h", "h:1", ())
        assert managed.started(worker_id, "h")
        assert managed.ready(worker_id)

    def one():
        """Of a decision: commands, bytes, and calls of functions."""
        agents.heartbeat(AgentInfo("h", "process", ()), "h:1")
        # The registry reads again after a second, so that few decisions have its part.
        assert registry.endpoints
        before = commands(client)
        began = traffic(client)
        scaler.once()
        size = traffic(client) - began
        return commands(client) - before, size, python_calls(scaler.once)

    def cost():
        found = [one() for _ in range(5)]
        return min((c for c, _, _ in found), key=Counter.total), *(
            min(values) for values in ([s for _, s, _ in found], [n for _, _, n in found])
        )

    cost()
    few = cost()
    for number in range(FINISHED):
        store.jobs.create(new_job(f"job-{number}"))
    assert store.queue.purge("ep", reason="counted") == FINISHED
    for _ in range(MOST_STOPPED):
        worker_id = new_worker_id()
        assert managed.want(worker_id, "ep", spec=SPEC)
        assert managed.discard(worker_id, "counted")
    assert client.zcard(keys.MANAGED_STOPPED) == MOST_STOPPED
    many = cost()
    assert len(managed.list()) == 2
    assert many[0] == few[0]
    assert abs(many[1] - few[1]) < DIGITS, (few, many)
    assert many[2] == few[2]
    assert few[0].total() > 5
