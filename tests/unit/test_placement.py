"""Which host takes which wanted worker, and why one waits."""

from dataclasses import dataclass, replace

import pytest

from ownpod.rules.managed import AgentInfo, Device, Hold, ManagedWorker, Phase
from ownpod.rules.placement import (
    ABOUT_TO_START,
    WITHHOLD_S,
    cannot_start,
    kept_reason,
    matches,
    place,
    pools_of,
    replaces,
    why_waits,
)

UUID = "GPU-5a1b0c9d-1111-2222-3333-444455556666"


def device(device_id, *pools, **values):
    return Device(**{"id": device_id, "index": 0, "name": "card", "pools": pools} | values)


def agent(*devices, host="h", **values):
    numbered = tuple(replace(d, index=n) for n, d in enumerate(devices))
    return AgentInfo(host, "process", numbered, **values)


def wants(name, count=1, *pools, created_ms=0):
    return ManagedWorker(name, "ep", "r", Phase.WANTED, created_ms, gpu_count=count, pools=pools)


def placed(wanted, host, holds=(), **values):
    return [(p.worker.id, p.devices) for p in place(wanted, host, holds, **values)]


# RunPod's pools


@pytest.mark.parametrize(
    ("name", "memory_mb", "pools"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, ("ADA_24",)),
        ("NVIDIA GeForce RTX 3090", 24576, ("AMPERE_24",)),
        ("NVIDIA L4", 23034, ("AMPERE_24",)),
        ("NVIDIA L40S", 46068, ("ADA_48_PRO",)),
        ("NVIDIA  RTX A4500", 20470, ("AMPERE_16",)),
        ("NVIDIA RTX 6000 Ada Generation", 49140, ("ADA_48_PRO",)),
        ("NVIDIA A40", 46068, ("AMPERE_48",)),
        ("NVIDIA A100-SXM4-80GB", 81920, ("AMPERE_80",)),
        ("NVIDIA H100 80GB HBM3", 81559, ("ADA_80_PRO",)),
        ("NVIDIA H200", 143771, ("HOPPER_141",)),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, ("BLACKWELL_96",)),
        ("NVIDIA B200", 183359, ("BLACKWELL_180",)),
        ("Tesla T4", 15360, ("AMPERE_16",)),
        ("NVIDIA A10G", 23028, ("AMPERE_24", "ADA_24")),
        ("NVIDIA GeForce GTX 1080", 8192, ()),
        ("cpu", 0, ()),
    ],
)
def test_a_gpu_belongs_to_runpods_pools_by_its_name_or_else_by_its_memory(name, memory_mb, pools):
    assert pools_of(name, memory_mb) == pools


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("ADA_24", True),
        ("ada_24", True),
        ("low", True),
        ("any", True),
        (UUID, True),
        (UUID[:12], True),
        (UUID[:5], False),
        ("GPU-5a1c", False),
        ("NVIDIA GeForce RTX 4090", True),
        ("nvidia  geforce rtx 4090", True),
        ("RTX 4090", True),
        ("RTX 40*", True),
        ("RTX 409", False),
        ("4090", False),
        ("*", False),
        ("", False),
        ("24GB", True),
        ("24 GB", True),
        ("16g", True),
        ("32GB", False),
        ("AMPERE_24", False),
    ],
)
def test_a_pool_names_devices_by_pool_id_name_or_least_memory(pool, expected):
    found = device(UUID, "ADA_24", "low", name="NVIDIA GeForce RTX 4090", memory_mb=24564)
    assert matches(found, pool) is expected


# Placement


def test_the_oldest_worker_gets_the_device():
    wanted = [wants("young", created_ms=2), wants("old", created_ms=1)]
    assert placed(wanted, agent(device("a"))) == [("old", ("a",))]


def test_one_call_places_several_and_no_device_twice():
    wanted = [wants(f"w{n}", created_ms=n) for n in range(3)]
    host = agent(device("a"), device("b"), device("c", slots=2))
    found = placed(wanted, host)
    assert found == [("w0", ("a",)), ("w1", ("b",)), ("w2", ("c",))]
    assert placed(wanted, host, [Hold("a", "x"), Hold("c", "y")]) == [
        ("w0", ("b",)),
        ("w1", ("c",)),
    ]


def test_the_least_used_device_is_taken_first_then_the_one_with_the_least_memory():
    host = agent(
        device("shared", slots=2),
        device("large", memory_mb=80000),
        device("small", memory_mb=24000),
    )
    wanted = [wants(f"w{n}", created_ms=n) for n in range(3)]
    found = placed(wanted, host, [Hold("shared", "x")])
    assert [devices[0] for _, devices in found] == ["small", "large", "shared"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_worker_gets_all_of_its_devices_or_none(count):
    found = placed([wants("w", count)], agent(device("a"), device("b")))
    assert [len(devices) for _, devices in found] == ([count] if count <= 2 else [])


def test_devices_come_from_the_first_pool_that_has_enough():
    host = agent(device("a", "high"), device("b", "low"), device("c", "low"))
    assert placed([wants("w", 1, "high", "low")], host) == [("w", ("a",))]
    assert placed([wants("w", 2, "high", "low")], host) == [("w", ("b", "c"))]
    assert placed([wants("w", 3, "high", "low")], host) == []
    assert placed([wants("w", 1, "high", "low")], host, [Hold("a", "x")]) == [("w", ("b",))]


def test_an_excluded_device_is_not_taken():
    host = agent(device("a", "p", name="NVIDIA L4"), device("b", "p", name="NVIDIA RTX A5000"))
    assert placed([wants("w", 1, "p", "-NVIDIA L4")], host) == [("w", ("b",))]
    assert placed([wants("w", 1, "-RTX A5000")], host) == [("w", ("a",))]


@pytest.mark.parametrize(
    ("host", "holds"),
    [
        (agent(device("a"), draining=True), []),
        (agent(device("a", problem="used by pid 4")), []),
        (agent(device("a", slots=3)), [Hold("a", reserved="2 h left")]),
        (agent(device("a")), [Hold("a", "other")]),
        (agent(), []),
    ],
)
def test_no_worker_is_placed_where_no_device_is_free(host, holds):
    assert placed([wants("w")], host, holds) == []


def test_a_worker_without_need_of_a_device_goes_to_every_host_that_is_not_drained():
    assert placed([wants("w", 0)], agent()) == [("w", ())]
    assert placed([wants("w", 0)], agent(draining=True)) == []


def test_a_worker_that_needs_two_devices_keeps_a_free_one_from_younger_workers():
    wanted = [wants("big", 2, created_ms=1), wants("small", created_ms=2)]
    host, holds = agent(device("a"), device("b")), [Hold("a", "x")]
    assert placed(wanted, host, holds) == []
    assert placed(wanted, host, holds, waited_s={"big": WITHHOLD_S - 1}) == []
    # The other device may be in use without an end.
    assert placed(wanted, host, holds, waited_s={"big": WITHHOLD_S}) == [("small", ("b",))]
    assert placed(wanted, host, holds, waited_s={"big": 2 * WITHHOLD_S}) == []
    assert placed(wanted, host) == [("big", ("a", "b"))]


def test_a_worker_that_the_host_can_never_take_keeps_no_device():
    wanted = [wants("big", 3, created_ms=1), wants("small", created_ms=2)]
    host = agent(device("a"), device("b"), device("c", problem="lost"))
    assert placed(wanted, host) == [("small", ("a",))]


# Why does it wait?

# Devices that another worker has left for a wanted one


KEPT = [Hold("a", None, next="w"), Hold("b", "y")]


def test_a_kept_device_goes_only_to_the_worker_that_it_is_kept_for():
    host = agent(device("a"), device("b"))
    assert placed([wants("v", created_ms=1), wants("w", created_ms=2)], host, KEPT) == [
        ("w", ("a",))
    ]
    assert placed([wants("v")], host, KEPT) == []


def test_a_device_that_is_being_freed_goes_to_none():
    assert placed([wants("w")], agent(device("a")), [Hold("a", "x", next="w")]) == []


def test_a_worker_prefers_the_device_that_is_kept_for_it():
    host = agent(device("a"), device("b"), device("c"))
    kept = [Hold("c", None, next="w")]
    assert placed([wants("w")], host, kept) == [("w", ("c",))]
    assert placed([wants("w", 3)], host, kept) == [("w", ("c", "a", "b"))]


def test_a_kept_slot_leaves_the_others_of_the_device():
    host = agent(device("a", slots=2))
    assert placed([wants("v"), wants("u", created_ms=9)], host, [Hold("a", None, next="w")]) == [
        ("v", ("a",))
    ]


def test_withheld_devices_are_not_those_that_are_kept_for_another():
    host = agent(device("a"), device("b"))
    kept = [Hold("a", None, next="w")]
    assert placed([wants("v", 2), wants("w", created_ms=9)], host, kept) == [("w", ("a",))]


BUSY = [Hold("a", "x"), Hold("b", "y")]
LOW = agent(device("a", "low"), device("b", "low"))
CPU = agent(device("cpu-0", "low", simulated=True), device("cpu-1", "low", simulated=True))


@pytest.mark.parametrize(
    ("worker", "agents", "holds", "reason"),
    [
        (wants("w"), [], [], "no agent is running"),
        (
            wants("w"),
            [replace(LOW, silent_s=75)],
            [],
            "no agent is running: the last heartbeat, of host h, was 75 s ago",
        ),
        (wants("w"), [replace(LOW, draining=True)], [], "host h is drained"),
        (wants("w", 0), [agent()], [], "an agent is about to take it"),
        (wants("w", 1, "low"), [LOW], [], "an agent is about to take it"),
        (wants("w", 1, "high"), [LOW], [], "no host has a device of pool high"),
        (wants("w", 1, "x", "y"), [LOW], [], "no host has a device of the pools x, y"),
        (wants("w"), [agent()], [], "no host has a device"),
        (wants("w", 1, "low"), [LOW], BUSY, "all 2 GPUs of pool low are busy"),
        (wants("w"), [agent(device("a"))], BUSY, "the only GPU is busy"),
        (
            wants("w", 3, "low"),
            [LOW],
            [],
            "it needs 3 devices of one host, and no host has more than 2 of pool low",
        ),
        (
            wants("w", 2, "low"),
            [LOW],
            BUSY[:1],
            "it needs 2 GPUs of one host, and no host has more than 1 free of pool low",
        ),
        (
            wants("w", 1, "low"),
            [CPU],
            [Hold("cpu-0", "x"), Hold("cpu-1", reserved="2 h left")],
            "no device of pool low is free: 1 busy, 1 reserved (2 h left)",
        ),
        (
            wants("w"),
            [agent(device("a", problem="used by pid 4"))],
            [],
            "no GPU is free: 1 unusable (used by pid 4)",
        ),
        (
            wants("w", 1, "low"),
            [LOW],
            [Hold("a", "x", next="w"), Hold("b", next="v")],
            "no GPU of pool low is free: 1 being freed, 1 being freed for another worker",
        ),
        (wants("w", 1, "low"), [LOW], [Hold("a", next="w")], "an agent is about to take it"),
    ],
)
def test_the_reason_names_what_is_missing(worker, agents, holds, reason):
    assert why_waits(worker, agents, {"h": holds}) == reason


def test_all_hosts_that_are_not_drained_are_counted():
    hosts = [LOW, replace(LOW, host="i"), replace(LOW, host="j", draining=True)]
    found = why_waits(wants("w", 1, "low"), hosts, {"h": BUSY, "i": BUSY})
    assert found == "all 4 GPUs of pool low are busy"


def test_an_agents_reason_replaces_its_own_and_no_better_one():
    mine = cannot_start("h", "no secret")
    for before in ("", ABOUT_TO_START, cannot_start("h", "no command")):
        assert replaces(before, mine)
    for before in (mine, cannot_start("h2", "no secret"), "all 2 GPUs are busy"):
        assert not replaces(before, mine)


def test_the_reason_of_an_agent_stays_while_a_device_is_free():
    mine = cannot_start("h", "no secret")
    assert kept_reason(mine, ABOUT_TO_START)
    assert not kept_reason(mine, "all hosts are drained")
    assert not kept_reason("all 2 GPUs are busy", ABOUT_TO_START)


# What it costs


@dataclass(frozen=True)
class Counting(Device):
    """A device that counts how often its name is compared."""

    read: list[int] = None

    def __getattribute__(self, name):
        if name == "pools":
            object.__getattribute__(self, "read")[0] += 1
        return super().__getattribute__(name)


def test_a_thousand_wanted_workers_are_placed_on_a_hundred_hosts_with_few_comparisons():
    read = [0]
    hosts = [
        agent(
            *(
                Counting(f"{h}-{n}", n, "card", pools=("low",), slots=2, read=read)
                for n in range(5)
            ),
            host=f"h{h}",
        )
        for h in range(100)
    ]
    read[0] = 0
    left = {f"w{n}": wants(f"w{n}", 1, "low", created_ms=n) for n in range(1000)}
    taken = []
    for host in hosts:
        # As an agent reads them: the oldest 200.
        found = place(sorted(left.values(), key=lambda w: w.created_ms)[:200], host, [])
        taken += [(host.host, d, p.worker.id) for p in found for d in p.devices]
        for placement in found:
            del left[placement.worker.id]
    assert not left
    assert len({w for _, _, w in taken}) == 1000
    # Each device is compared once with each pool, however many workers want it.
    assert read[0] <= 100 * 5 * 2
