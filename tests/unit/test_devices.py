"""The devices of a host, on an NVML that behaves as the driver does; and the rules of their names."""

import os
import threading

import click
import pynvml
import pytest
from fake_nvml import GB, MIB, Card, Driver, process
from helpers import wait_until

from ownpod.agent.devices import Devices, relatives
from ownpod.rules import devices as rules
from ownpod.rules.devices import DeviceChoice, Difficulties, Use, parse_choice, parse_labels
from ownpod.rules.managed import AgentInfo, Device, Hold
from ownpod.tools.gpus import parse_duration


def pools_of(name, memory_mb):
    return ("ADA_24",) if "4090" in name else (f"{memory_mb // 1000}",)


def reader(driver, choice="auto", labels="", **options):
    options = {"own_pids": set, "pools_of": pools_of, **options}
    return Devices(parse_choice(choice), parse_labels(labels), nvml=driver, **options)


@pytest.fixture
def cards():
    return [Card("GPU-aaaa-1"), Card("GPU-bbbb-2", "NVIDIA A100-SXM4-80GB", 81920 * MIB)]


@pytest.fixture
def driver(cards):
    return Driver(*cards)


# What is offered.


def test_a_gpu_has_its_figures_and_pools(driver, cards):
    cards[0].used = 3 * GB
    first, second = reader(driver).refresh()
    assert (first.id, first.index, first.name) == ("GPU-aaaa-1", 0, "NVIDIA GeForce RTX 4090")
    assert (first.memory_mb, first.pools, first.problem) == (24564, ("ADA_24",), "")
    assert first.metrics == {
        "memory_used_mb": 3072.0,
        "utilization_percent": 37.0,
        "temperature_c": 61.0,
        "power_w": 215.5,
    }
    assert (second.id, second.index, second.simulated) == ("GPU-bbbb-2", 1, False)


def test_figures_that_a_gpu_does_not_have_are_left_out(driver, cards):
    cards[0].unsupported = {"power", "temperature", "memory", "processes", "mode"}
    first = reader(driver).refresh()[0]
    assert first.metrics == {"utilization_percent": 37.0}
    assert (first.memory_mb, first.problem) == (0, "")


@pytest.mark.parametrize("choice", ["1", "GPU-bbbb", "GPU-BBBB-2", "GPU-bbbb-2,1"])
def test_only_chosen_gpus_are_offered(driver, choice):
    devices = reader(driver, choice)
    assert [device.id for device in devices.refresh()] == ["GPU-bbbb-2"]
    assert devices.problem == ""


def test_a_chosen_gpu_that_is_not_there_is_reported_and_the_others_are_offered(driver):
    devices = reader(driver, "0,7")
    assert [device.index for device in devices.refresh()] == [0]
    assert devices.problem == "no GPU 7 on this host"


def test_without_nvml_there_is_no_device_and_no_problem():
    devices = reader(Driver(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert devices.refresh() == ()
    assert devices.problem == ""


def test_a_chosen_gpu_on_a_host_without_nvml_is_a_problem():
    devices = reader(Driver(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), "0")
    assert devices.refresh() == ()
    assert devices.problem == "NVML's library is not found"


def test_any_other_error_of_nvml_is_reported_and_tried_again(cards):
    driver = Driver(*cards, error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    devices = reader(driver)
    assert devices.refresh() == ()
    assert devices.problem == "NVML cannot be used: Driver Not Loaded"
    driver.error = None
    assert len(devices.refresh()) == 2
    assert devices.problem == ""


def test_stand_ins_are_simulated_and_have_no_figures():
    devices = Devices(
        parse_choice("cpu:2"), parse_labels("pool=low,pool.1=high+top"), pools_of=pools_of
    )
    first, second = devices.read()
    assert (first.id, first.name, first.simulated) == ("cpu-0", "CPU", True)
    assert (first.pools, second.pools) == (("low",), ("low", "high", "top"))
    assert (second.index, second.metrics, second.memory_mb) == (1, {}, 0)


def test_labels_add_pools_and_slots_to_devices(driver):
    first, second = reader(
        driver, labels="pool=low,slots=2,slots.GPU-bbbb=3,pool.1=ADA_24"
    ).refresh()
    assert (first.pools, first.slots) == (("ADA_24", "low"), 2)
    assert (second.pools, second.slots) == (("81", "low", "ADA_24"), 3)


# MIG.


def test_the_parts_of_a_gpu_with_mig_are_offered_instead_of_it(driver, cards):
    parts = [Card("MIG-1", "NVIDIA A100 MIG 3g.40gb", 40 * GB), None, Card("MIG-2", total=20 * GB)]
    driver.cards[1] = Card("GPU-bbbb-2", "NVIDIA A100-SXM4-80GB", 80 * GB, parts=parts)
    found = reader(driver).refresh()
    assert [device.id for device in found] == ["GPU-aaaa-1", "MIG-1", "MIG-2"]
    assert (found[1].name, found[1].memory_mb, found[1].index) == (
        "NVIDIA A100 MIG 3g.40gb",
        40960,
        1,
    )
    assert found[1].metrics == {"memory_used_mb": 0.0}
    assert [device.id for device in reader(driver, "1").refresh()] == ["MIG-1", "MIG-2"]
    assert [device.id for device in reader(driver, "MIG-2").refresh()] == ["MIG-2"]


def test_a_gpu_with_mig_and_without_parts_cannot_be_used():
    (device,) = reader(Driver(Card("GPU-a", parts=[]))).refresh()
    assert device.problem.startswith("MIG is enabled")


def test_a_gpu_that_gets_mig_is_replaced_by_its_parts_and_is_not_lost(driver, cards):
    devices = reader(driver)
    devices.refresh()
    cards[0].parts = [Card("MIG-1"), Card("MIG-2")]
    assert [device.id for device in devices.refresh()][:2] == ["MIG-1", "MIG-2"]
    cards[0].parts = [Card("MIG-3")]
    found = devices.refresh()
    assert [device.id for device in found] == ["MIG-3", "GPU-bbbb-2"]
    assert not any(device.problem for device in found)


# GPUs that are lost.


def test_a_lost_gpu_stays_listed_with_its_problem_and_the_others_work(driver, cards):
    devices = reader(driver)
    devices.refresh()
    cards[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(3):
        first, second = devices.refresh()
        assert (first.id, first.metrics) == ("GPU-aaaa-1", {})
        assert first.problem.startswith("lost: ")
        assert (second.problem, second.metrics["temperature_c"]) == ("", 61.0)
        assert devices.problem == ""
    cards[0].error = None
    assert [device.problem for device in devices.refresh()] == ["", ""]


def test_a_gpu_that_is_lost_while_its_figures_are_read_has_the_error(driver, cards, monkeypatch):
    def lost(_handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    devices = reader(driver)
    devices.refresh()
    monkeypatch.setattr(driver, "nvmlDeviceGetUtilizationRates", lost, raising=False)
    assert [device.problem for device in devices.refresh()] == ["lost: GPU is lost"] * 2


def test_a_gpu_that_was_lost_before_it_was_known_is_a_problem_of_the_host(driver, cards):
    cards[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    devices = reader(driver)
    assert [device.id for device in devices.refresh()] == ["GPU-bbbb-2"]
    assert devices.problem == "GPU 0: GPU is lost"


def test_a_gpu_that_is_not_counted_any_more_is_lost_until_it_is_back(driver, cards):
    devices = reader(driver)
    devices.refresh()
    driver.open = False
    devices.refresh()
    driver.cards = cards[1:]
    devices.refresh()
    problems = {device.id: device.problem for device in devices.refresh()}
    assert problems == {"GPU-aaaa-1": "lost: NVML does not find it any more", "GPU-bbbb-2": ""}
    driver.cards = cards
    assert [device.problem for device in devices.refresh()] == ["", ""]


def test_known_gpus_are_not_offered_while_nvml_cannot_be_used(driver):
    devices = reader(driver)
    devices.refresh()
    driver.open = False
    driver.error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    devices.refresh()
    found = devices.refresh()
    assert [device.id for device in found] == ["GPU-aaaa-1", "GPU-bbbb-2"]
    assert all("RM has detected an NVML/RM version mismatch" in device.problem for device in found)
    driver.error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert all(device.problem for device in devices.refresh())
    assert devices.problem == "NVML's library is not found"


# Other programs.


def test_a_gpu_that_another_program_uses_names_it(driver, cards):
    cards[0].computing = [process(4711, 12 * GB)]
    cards[0].used = 12.1 * GB
    driver.programs[4711] = "/usr/bin/python3 train.py --key secret"
    first, second = reader(driver).refresh()
    assert first.problem == "used by another program: python3, 12.1 of 24 GB"
    assert second.problem == ""


def test_a_program_that_cannot_be_named_and_others_are_counted(driver, cards):
    cards[0].computing = [process(5), process(4711, 2 * GB)]
    first = reader(driver).refresh()[0]
    assert first.problem == "used by another program: process 4711 and 1 more, 0 of 24 GB"


def test_descendants_of_own_workers_are_no_other_program(driver, cards):
    cards[0].computing = [process(300, GB), process(200, GB)]
    family = {300: frozenset({300, 250, 200, 100}), 200: frozenset({200, 100})}
    own = {200}
    devices = reader(driver, own_pids=lambda: own, relatives=family.get)
    assert devices.refresh()[0].problem == ""
    own.clear()
    assert "process 300 and 1 more" in devices.refresh()[0].problem


def test_without_the_pids_of_own_workers_uses_are_not_checked(driver, cards):
    cards[0].computing = [process(300, GB)]
    assert reader(driver, own_pids=None).refresh()[0].problem == ""


def test_an_own_worker_whose_process_is_not_visible_here_is_no_other_program(driver, cards):
    cards[0].computing = [process(300, GB)]
    devices = reader(driver, own_pids=lambda: {300}, relatives=lambda _: None)
    assert devices.refresh()[0].problem == ""


def test_a_desktop_does_not_occupy_a_gpu_and_a_game_does(driver, cards):
    cards[0].drawing = [process(7, 300 * MIB)]
    driver.programs = {7: "/usr/lib/xorg/Xorg", 8: "/home/games/doom"}
    devices = reader(driver)
    assert devices.refresh()[0].problem == ""
    cards[0].drawing.append(process(8, 6 * GB))
    assert devices.refresh()[0].problem.startswith("used by another program: doom,")


def test_the_relatives_of_a_process_are_its_ancestors_and_the_leaders_of_its_group():
    found = relatives(os.getpid())
    assert {os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)} - {0, 1} <= found
    assert relatives(2**22 + 1) is None


# The thread.


def test_reads_are_cached_until_the_next_is_due(driver, cards):
    devices = reader(driver, every_s=3600)
    assert len(devices.read()) == 2
    driver.cards = []
    cards[0].used = GB
    assert devices.read()[0].metrics["memory_used_mb"] == 0
    soon = reader(driver, every_s=0)
    assert soon.read() == ()
    driver.open = False
    driver.cards = cards
    wait_until(lambda: len(soon.read()) == 2)


def test_a_driver_that_blocks_blocks_no_read_and_makes_its_gpus_unusable(driver):
    devices = reader(driver, every_s=0, hung_s=0.05)
    devices.refresh()
    driver.block = threading.Event()
    wait_until(lambda: all("not answered" in device.problem for device in devices.read()))
    assert devices.problem.startswith("NVML has not answered for")
    block, driver.block = driver.block, None
    block.set()
    wait_until(lambda: not any(device.problem for device in devices.read()))
    assert devices.problem == ""


# The rules.


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("auto", DeviceChoice()),
        ("cpu:0", DeviceChoice(stand_ins=0)),
        ("cpu:8", DeviceChoice(stand_ins=8)),
        ("0, 2,0", DeviceChoice(gpus=("0", "2"))),
        ("GPU-5f3e2a1c,MIG-1", DeviceChoice(gpus=("GPU-5f3e2a1c", "MIG-1"))),
    ],
)
def test_a_choice_of_devices_is_read(text, choice):
    assert parse_choice(text) == choice


@pytest.mark.parametrize(
    "text", ["", "cpu", "cpu:x", "cpu:1001", "all", "0,,1", "-1", "GPU-", "0;1"]
)
def test_a_wrong_choice_of_devices_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        parse_choice(text)


@pytest.mark.parametrize(
    "text",
    ["zone", "=a", "zone=", "a b=c", "zone=a,zone=b", "pool=+", "slots=0", "slots.0=x", "a=ä"],
)
def test_wrong_labels_are_refused(text):
    with pytest.raises(ValueError, match="must"):
        parse_labels(text)


def test_labels_are_read():
    assert parse_labels(" zone=a , pool=low+fast,") == {"zone": "a", "pool": "low+fast"}


def test_a_use_counts_unless_it_is_own_or_a_small_graphics_program():
    uses = [
        Use(1, 10),
        Use(2, 500),
        Use(3, 900, graphics=True),
        Use(4, None, graphics=True),
        Use(5),
    ]
    assert [use.pid for use in rules.foreign(uses, {1})] == [2, 5]


AGENTS = [
    AgentInfo("a", "process", (Device("GPU-11", 0, "x"), Device("GPU-12", 1, "x"))),
    AgentInfo("b", "process", (Device("GPU-21", 0, "x"),)),
]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/GPU-11", ("a", "GPU-11")),
        ("a/0", ("a", "GPU-11")),
        ("1", ("a", "GPU-12")),
        ("GPU-2", ("b", "GPU-21")),
        ("b/gpu-2", ("b", "GPU-21")),
        ("GPU-12", ("a", "GPU-12")),
    ],
)
def test_a_device_is_found_by_host_and_id_index_or_beginning(name, found):
    host, device = rules.find(name, AGENTS)
    assert (host, device.id) == found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("0", "not unique: it may be a/GPU-11, b/GPU-21"),
        ("a/GPU-1", "not unique: it may be a/GPU-11, a/GPU-12"),
        ("b/1", "not found; known devices: a/GPU-11, a/GPU-12, b/GPU-21"),
        ("", "not found"),
        ("c/", "not found"),
    ],
)
def test_a_device_that_is_unknown_or_ambiguous_is_refused_with_those_there_are(name, reason):
    with pytest.raises(ValueError, match=reason):
        rules.find(name, AGENTS)
    with pytest.raises(ValueError, match="known devices: none"):
        rules.find("0", [])


@pytest.mark.parametrize(
    ("device", "agent", "holds", "state"),
    [
        ({}, {}, [], ("free", "", ())),
        ({}, {}, [Hold("other", worker="w")], ("free", "", ())),
        ({}, {}, [Hold("d", worker="w")], ("busy", "", ("w",))),
        ({"slots": 2}, {}, [Hold("d", worker="w")], ("free", "", ("w",))),
        (
            {"slots": 2},
            {},
            [Hold("d", worker="v"), Hold("d", worker="w")],
            ("busy", "", ("v", "w")),
        ),
        ({}, {}, [Hold("d", worker="w", idle_s=41.0)], ("busy", "idle for 41 s", ("w",))),
        (
            {},
            {},
            [Hold("d", worker="w", next="n", idle_s=41.0)],
            ("busy", "idle for 41 s, is being freed for n", ("w",)),
        ),
        ({}, {}, [Hold("d", next="n")], ("busy", "is being freed for n", ())),
        ({"slots": 2}, {}, [Hold("d", next="n")], ("free", "", ())),
        (
            {"slots": 2},
            {},
            [Hold("d", worker="v", idle_s=9.0), Hold("d", worker="w")],
            ("busy", "", ("v", "w")),
        ),
        ({}, {"draining": True}, [], ("draining", "", ())),
        (
            {},
            {"draining": True},
            [Hold("d", worker="w"), Hold("d", reserved="2 h left")],
            ("reserved", "2 h left", ("w",)),
        ),
        ({"problem": "lost"}, {}, [Hold("d", reserved="x")], ("unusable", "lost", ())),
        ({"problem": "lost"}, {"silent_s": 61.2}, [], ("silent", "no heartbeat for 61 s", ())),
    ],
)
def test_the_state_of_a_device_is_what_prevents_its_use_first(device, agent, holds, state):
    found = rules.state_of(Device("d", 0, "x", **device), AgentInfo("a", "process", **agent), holds)
    assert (found.word, found.reason, found.workers) == state


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5h", 5400),
        ("30m", 1800),
        ("30 min", 1800),
        ("365d", 31_536_000),
    ],
)
def test_the_time_of_a_reservation_is_read(text, seconds):
    assert parse_duration(None, None, text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0.5", "-1", "2x", "1e3", "366d", "1h30m"])
def test_a_wrong_time_of_a_reservation_is_refused(text):
    with pytest.raises(click.BadParameter, match="from 1s to 365d"):
        parse_duration(None, None, text)


# Difficulties.


def with_difficulties(
    driver, choice="auto", labels="", difficulties="", *, presets=True, claimed=()
):
    given = Difficulties(
        rules.parse_difficulties(difficulties), has_presets=presets, claimed=claimed
    )
    return reader(driver, choice, labels, difficulties=lambda: given)


def pools(devices):
    return {device.index: device.pools for device in devices}


def test_each_device_of_a_host_with_presets_has_a_difficulty(driver):
    found = with_difficulties(driver, difficulties="1:high").refresh()
    assert pools(found)[0] == ("ADA_24", "low")
    assert pools(found)[1][-1] == "high"
    assert pools(with_difficulties(driver, difficulties="high,0:low").refresh())[1][-1] == "high"
    assert pools(with_difficulties(driver, difficulties="GPU-bbbb:high").refresh())[0][-1] == "low"


def test_without_presets_no_device_gets_a_difficulty(driver):
    assert pools(with_difficulties(driver, presets=False).refresh())[0] == ("ADA_24",)
    assert pools(with_difficulties(driver, difficulties="1:high", presets=False).refresh())[0] == (
        "ADA_24",
        "low",
    )


def test_a_pool_label_replaces_the_difficulty(driver):
    found = with_difficulties(driver, labels="pool.1=mine", difficulties="high").refresh()
    assert pools(found)[0] == ("ADA_24", "high")
    assert pools(found)[1][-1] == "mine"


def test_a_device_that_another_difficulty_claims_is_not_low(driver):
    found = with_difficulties(driver, claimed=("ADA_24",)).refresh()
    assert pools(found)[0] == ("ADA_24",)
    assert pools(found)[1][-1] == "low"


def test_stand_ins_have_difficulties_which_change_at_once(driver):
    given = [Difficulties(has_presets=True)]
    devices = reader(driver, "cpu:2", difficulties=lambda: given[0])
    assert pools(devices.read()) == {0: ("low",), 1: ("low",)}
    given[0] = Difficulties({"1": "high"}, has_presets=True)
    assert pools(devices.read()) == {0: ("low",), 1: ("high",)}


def test_without_nvml_a_host_with_presets_has_stand_ins():
    none = Driver(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    (one,) = with_difficulties(none).refresh()
    assert (one.id, one.simulated, one.pools) == ("cpu-0", True, ("low",))
    assert with_difficulties(none, presets=False).refresh() == ()
    given = Difficulties({"1": "high"}, has_presets=True)
    choice = rules.parse_device_ids("0,1")
    ids = Devices(choice, {}, pools_of=pools_of, nvml=none, difficulties=lambda: given)
    assert pools(ids.refresh()) == {0: ("low",), 1: ("high",)}
    assert ids.problem == ""


def test_gpus_that_were_chosen_have_no_stand_ins_and_a_broken_driver_neither():
    none = Driver(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    chosen = with_difficulties(none, "0")
    assert chosen.refresh() == ()
    assert chosen.problem == "NVML's library is not found"
    broken = with_difficulties(Driver(error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    assert broken.refresh() == ()
    assert "NVML cannot be used" in broken.problem
