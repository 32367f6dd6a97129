"""The simulator of endpoints that share devices, its mixes, and the table in the docs. It is no package."""

import importlib
import math
import re
import sys
from pathlib import Path
from random import Random

import pytest

from ownpod.rules.sharing import hold_s
from ownpod.rules.templates import DEFAULT_RESIDENCY_S

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))
mixes, policies, sim, simulator = map(
    importlib.import_module, ("mixes", "policies", "sim", "simulator")
)
Job, Mix = simulator.Job, simulator.Mix

SEEDS = range(40)
FIFO = policies.Fifo("in order")
OWNPOD = policies.OwnPod()
EXCLUSIVE = policies.Fifo("one at a time", exclusive=True)


def mix(jobs, loads, devices=1):
    made = tuple(Job(float(at), endpoint, float(duration)) for at, endpoint, duration in jobs)
    return Mix("test", "", devices, {name: float(load) for name, load in loads.items()}, made)


def by_chance(seed):
    """Two or three endpoints on one or two devices, from seldom used to overloaded."""
    random = Random(seed)
    names = ("a", "b", "c")[: random.choice((2, 3))]
    loads = {name: random.choice((3, 8, 20, 40)) for name in names}
    pause_s = random.choice((2, 10, 40))
    at, jobs = 0.0, []
    for _ in range(60):
        at += random.expovariate(1 / pause_s)
        jobs.append((round(at, 1), random.choice(names), round(random.uniform(0.5, 20), 1)))
    return mix(jobs, loads, random.choice((1, 1, 2)))


def order(run):
    return "".join(start.job.endpoint for start in run.starts)


def run(jobs_of, policy):
    return simulator.Simulator(jobs_of, policy).run()


A_B_A_A = mix([(0, "a", 5), (1, "b", 5), (2, "a", 5), (3, "a", 5)], {"a": 10, "b": 20})


def test_in_the_order_of_arrival_each_change_costs_a_load():
    done = run(A_B_A_A, FIFO)
    assert order(done) == "abaa"
    assert len(done.swaps) == 2
    # Load of a, job, stop, load of b, job, stop, load of a.
    assert [start.at_s for start in done.starts] == [10, 36, 52, 57]


def test_the_least_recently_used_of_two_devices_is_swapped():
    jobs = [(0, "a", 1), (0, "b", 1), (20, "a", 1), (30, "c", 1)]
    done = run(mix(jobs, {"a": 3, "b": 3, "c": 3}, devices=2), FIFO)
    assert [(swap.loser, swap.winner) for swap in done.swaps] == [("b", "c")]


def test_an_exclusive_group_uses_one_device_and_swaps_when_nothing_is_in_flight():
    jobs = [(0, "a", 8), (1, "b", 1)]
    done = run(mix(jobs, {"a": 3, "b": 3}, devices=2), EXCLUSIVE)
    assert [(start.at_s, start.device) for start in done.starts] == [(3, 0), (15, 0)]


def test_a_policy_that_never_gives_a_device_is_an_error():
    class Never(policies.Fifo):
        def devices(self, now):
            return []

    with pytest.raises(RuntimeError, match="1 jobs wait"):
        run(mix([(0, "a", 1)], {"a": 1}), Never("never"))


def check(jobs_of, done):
    """Each job ran once, on a device that was loaded for it, and no device ran two at a time or while it was loaded."""
    assert sorted(map(repr, (s.job for s in done.starts))) == sorted(map(repr, jobs_of.jobs))
    for device in range(jobs_of.devices):
        free_s = -math.inf
        for start in (start for start in done.starts if start.device == device):
            assert start.at_s >= max(free_s, start.job.arrival_s)
            free_s = start.at_s + start.job.duration_s
            loads = [load for load in done.loads if load.device == device]
            last = [load for load in loads if load.ready_s <= start.at_s][-1]
            assert last.endpoint == start.job.endpoint
            for load in loads:
                begun_s = load.ready_s - jobs_of.load_s[load.endpoint]
                assert load.ready_s <= start.at_s or begun_s >= free_s


@pytest.mark.parametrize("policy", [FIFO, EXCLUSIVE], ids=lambda policy: policy.name)
def test_each_job_by_chance_runs_once_on_a_device_that_is_loaded_for_it(policy):
    for jobs_of in map(by_chance, SEEDS):
        check(jobs_of, run(jobs_of, policy))


@pytest.fixture(scope="module")
def by_ownpod():
    """Mixes by chance, and what happened with OwnPod's policy."""
    return [(jobs_of, run(jobs_of, OWNPOD)) for jobs_of in map(by_chance, SEEDS)]


def test_jobs_a_b_a_a_run_as_a_a_a_b():
    done = run(A_B_A_A, OWNPOD)
    assert order(done) == "aaab"
    assert [(swap.loser, swap.winner, swap.was_busy) for swap in done.swaps] == [("a", "b", False)]


@pytest.mark.slow
def test_with_ownpod_each_job_by_chance_runs_once_on_a_device_that_is_loaded_for_it(by_ownpod):
    for jobs_of, done in by_ownpod:
        check(jobs_of, done)


@pytest.mark.slow
def test_no_swap_comes_before_the_residency(by_ownpod):
    swaps = [(jobs_of, swap) for jobs_of, done in by_ownpod for swap in done.swaps]
    assert len(swaps) > 100
    for jobs_of, swap in swaps:
        least_s = max(DEFAULT_RESIDENCY_S, jobs_of.load_s[swap.loser])
        assert swap.at_s - swap.ready_s >= least_s


@pytest.mark.slow
def test_an_endpoint_with_work_keeps_its_device_for_its_hold(by_ownpod):
    swaps = [(jobs_of, s) for jobs_of, done in by_ownpod for s in done.swaps if s.was_busy]
    assert len(swaps) > 20
    for jobs_of, swap in swaps:
        # The load of the winner is not known before its first.
        assert swap.at_s - swap.ready_s >= hold_s(jobs_of.load_s[swap.loser], 0)


@pytest.mark.slow
def test_no_endpoint_needs_a_device_for_longer_than_the_bound(by_ownpod):
    for jobs_of, done in by_ownpod:
        for load in done.loads:
            assert load.needed_s <= policies.longest_need_s(jobs_of, load.endpoint)


@pytest.mark.slow
def test_no_job_waits_for_longer_than_the_bound(by_ownpod):
    for jobs_of, done in by_ownpod:
        for start in done.starts:
            job = start.job
            ahead_s = sum(
                other.job.duration_s
                for other in done.starts
                if other.job.endpoint == job.endpoint
                and other.job.arrival_s <= job.arrival_s
                and other.at_s + other.job.duration_s > job.arrival_s
                and other is not start
            )
            assert start.waited_s <= policies.longest_wait_s(jobs_of, job.endpoint, ahead_s)


def test_an_endpoint_with_a_long_load_gets_a_device_between_two_with_short_ones():
    """Two endpoints that always have work, and whose hold is short, do not swap only each other."""
    jobs = [(second, name, 4) for second in range(0, 300, 3) for name in ("a", "b")]
    jobs.append((30, "c", 4))
    jobs_of = mix(sorted(jobs), {"a": 3, "b": 3, "c": 40})
    done = run(jobs_of, OWNPOD)
    (waited_s,) = [start.waited_s for start in done.starts if start.job.endpoint == "c"]
    assert waited_s <= policies.longest_need_s(jobs_of, "c")


@pytest.mark.parametrize("name", mixes.GENERATED)
def test_a_generated_mix_is_what_its_generator_wrote(name):
    assert mixes.path(name).read_text() == mixes.text(name)
    assert mixes.read(mixes.path(name)).name == name


def test_a_recorded_mix_has_how_long_each_job_waited_and_is_in_its_own_file(tmp_path):
    head = {"name": "mine", "about": "", "devices": 1, "load_s": {"a": 2.5}, "swaps": 3}
    file = tmp_path / "mine.csv"
    file.write_text(mixes.file_text(head, [(Job(0.0, "a", 1.5), 4.0), (Job(2.0, "a", 1.0), 0.2)]))
    found = mixes.read(file)
    assert found.jobs == (Job(0.0, "a", 1.5), Job(2.0, "a", 1.0))
    assert (found.waits_s, found.swaps, found.load_s) == ((4.0, 0.2), 3, {"a": 2.5})
    for mix in mixes.all_mixes():
        assert mixes.path(mix.name).exists()
        assert (mix.swaps is None) == (mix.name in mixes.GENERATED)
    assert len([mix for mix in mixes.all_mixes() if mix.swaps is not None]) >= 3


def test_the_page_has_a_row_for_each_mix_and_policy():
    page = sim.PAGE.read_text()
    part = page[page.index(sim.BEGIN) : page.index(sim.END)]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    assert cells[0] == sim.COLUMNS
    expected = [
        (mix.name, policy)
        for mix in mixes.all_mixes()
        for policy in (
            *(policy.name for policy in policies.POLICIES),
            *([] if mix.swaps is None else [sim.MEASURED]),
        )
    ]
    assert [row[:2] for row in cells[2:]] == expected
    for row in cells[2:]:
        assert row[2].isdigit()
        assert all(re.fullmatch(r"[\d.]+ s", cell) for cell in row[3:6])
    assert [line for line in part.splitlines() if line.startswith("- ")] == [
        sim.described(mix) for mix in mixes.all_mixes()
    ]


def test_a_text_replaces_the_one_before_and_nothing_else():
    page = f"before\n{sim.BEGIN}old\n{sim.END}after\n"
    once = sim.replaced(page, "new")
    assert once == f"before\n{sim.BEGIN}\nnew\n\n{sim.END}after\n"
    assert sim.replaced(once, "new") == once
