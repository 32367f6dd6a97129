"""How agents share wanted workers."""

from ownpod.agent.taking import PASSES, take
from ownpod.rules.managed import AgentInfo, Device, ManagedWorker, Phase


def workers(count):
    return [
        ManagedWorker(f"worker{n:08}", "ep", "r1", Phase.WANTED, created_ms=n, gpu_count=1)
        for n in range(count)
    ]


def host(devices):
    return AgentInfo(
        "a", "process", tuple(Device(f"cpu-{n}", n, "stand-in") for n in range(devices))
    )


def test_an_agent_that_was_too_late_continues_with_the_next_workers():
    wanted = workers(10)
    taken_by_others = {worker.id for worker in wanted[:7]}
    found = take(wanted, host(2), [], lambda placement: placement.worker.id not in taken_by_others)
    assert [placement.worker.id for placement in found] == [w.id for w in wanted[7:9]]


def test_no_device_is_given_twice():
    wanted = workers(10)
    late = {wanted[0].id, wanted[2].id}
    found = [*take(wanted, host(3), [], lambda placement: placement.worker.id not in late)]
    assert sorted(device for p in found for device in p.devices) == ["cpu-0", "cpu-1", "cpu-2"]


def test_an_agent_whose_every_claim_is_refused_ends_its_turn():
    claims = []
    assert [*take(workers(100), host(1), [], claims.append)] == []
    assert len(claims) == PASSES
