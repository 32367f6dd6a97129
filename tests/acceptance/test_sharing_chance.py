"""Jobs by chance for endpoints with different load times that share one device, and kills in each step of a swap.

150 jobs in each test; with `make chaos` 500.
"""

import itertools
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from chaos import SECONDS, SEED, ending
from helpers import overlaps, wait_until
from sharing import STEPS, Arrivals, Killer, Records, bursts, endpoint
from test_managed_chaos import Processes, Watcher

from ownpod.rules.managed import Phase
from ownpod.rules.residents import hold_s
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed

LONG = SECONDS > 20
JOBS = 500 if LONG else 150
WITHIN_S = 90 if LONG else 25
"""In which they come."""
LIMIT_S = 400 if LONG else 300
"""In which they end after that."""
SWAPS_S = 400
"""In which a part is killed in each step. A step of some ms is met by chance, on a loaded machine in some of the swaps only."""
HOLD_S = 3
LOADS_S = {"a": 0, "b": 0.5, "c": 1}
RESIDENCY_S = {"a": 0, "b": 3, "c": 0}
ENDPOINTS = {
    "a": {"env": {"HANDLER": "async", "CONCURRENCY": "8"}},
    "b": {"protocol": "push"},
    "c": {"env": {"HANDLER": "async", "CONCURRENCY": "8"}},
}
SLACK_S = 40.0
"""Beyond the bound of a wait: two turns of the scaler and the agent, jobs that end, and the end of a worker."""
AFTER_A_KILL_S = 8.0
"""For which nothing may happen after a kill: until another process scales, or the agent runs again."""


def configuration(names):
    made = {}
    for name in names:
        template = ENDPOINTS[name]
        env = {"LOAD_S": str(LOADS_S[name])} | template.get("env", {})
        made[name] = endpoint(**template | {"env": env, "residency": RESIDENCY_S[name]})
        made[name]["maxAttempts"] = 100
    return made


def load_of(worker):
    """Seconds. No start is recorded if the agent was killed in between and the worker was ready before it came back."""
    return (worker.ready_ms - (worker.started_ms or worker.ready_ms)) / 1000


class Run:
    """An OwnPod whose endpoints share a device, with its jobs, and what is to be true of them afterwards."""

    def __init__(self, start_ownpod, directory: Path, names: str) -> None:
        file = directory / "workers.yaml"
        file.write_text(yaml.safe_dump({"endpoints": configuration(names)}))
        self.names = names
        self.ownpod = start_ownpod(
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES="cpu:1",
            OWNPOD_SHUTDOWN_GRACE_S=2,
            OWNPOD_DEVICE_HOLD_S=HOLD_S,
            OWNPOD_LEASE_S=4,
        )
        self._runs = {name: directory / f"runs-{name}" for name in names}
        self.clients: dict[str, Arrivals] = {}
        self.jobs: dict[str, dict[str, dict]] = {}

    def submit(self, chance: random.Random, within_s: float) -> None:
        times = bursts(chance, self.names, JOBS, within_s)
        for name in self.names:
            url, own = f"{self.ownpod.base}/{name}", random.Random(f"{chance.random()} {name}")
            self.clients[name] = Arrivals(url, self._runs[name], own, times[name], 0.1)

    def wait(self) -> None:
        for client in self.clients.values():
            wait_until(client.done.is_set, WITHIN_S + 60, "all jobs are accepted")
        until = time.monotonic() + LIMIT_S
        self.jobs = {
            name: client.all_ended(max(until - time.monotonic(), 1))
            for name, client in self.clients.items()
        }

    def swap_until(self, condition, seconds: float) -> None:
        """One more job at a time for an endpoint whose worker does not have the device, until the condition is true."""
        until = time.monotonic() + seconds
        for number in itertools.count(JOBS):
            if condition():
                return
            name = self.names[number % len(self.names)]
            client = self.clients[name]
            client.submit(number)
            self.jobs[name] |= client.all_ended(max(until - time.monotonic(), 1))

    def end(self) -> None:
        for client in self.clients.values():
            client.end()

    def check(self, records: Records, killer: Killer | None = None) -> str:
        with connect(self.ownpod.redis_url) as client:
            managed = Managed(client)
            left = lambda: [w for w in managed.list() if w.phase is not Phase.READY]  # noqa: E731
            # An agent that was killed a moment ago records what has happened when it runs again.
            wait_until(lambda: left() == [], what="no worker that comes or goes")
            workers = sorted(managed.list() + managed.recent(), key=lambda w: w.created_ms)
            assert client.hlen(keys.DEVICES_NEXT) == 0
            held = {hold.worker for mine in Agents(client).all_holds().values() for hold in mine}
            assert held == {worker.id for worker in managed.list()}
        self.none_is_lost_or_runs_twice(killer)
        self.the_device_has_one_worker_at_a_time(workers)
        self.none_gives_way_before_its_time(workers, records)
        self.none_gives_way_while_its_jobs_wait(records)
        self.each_swap_serves_jobs(records, killer)
        return self.none_waits_beyond_its_bound(workers, killer)

    def none_is_lost_or_runs_twice(self, killer):
        assert sum(map(len, self.jobs.values())) >= JOBS
        again = 0
        for name, ended in self.jobs.items():
            assert Counter(s["status"] for s in ended.values()) == {"COMPLETED": len(ended)}
            assert {i: s["output"]["echo"] for i, s in ended.items()} == self.clients[name].accepted
            lines = self._runs[name].read_text().splitlines()
            runs = Counter(line.split(" ", 2)[2] for line in lines if line.startswith("+"))
            assert runs.keys() == set(self.clients[name].accepted.values())
            again += runs.total() - len(runs)
        assert overlaps(self._runs["b"]) == []
        killed_workers = sum(part == "worker" for part, _ in killer.killed) if killer else 0
        if not killed_workers:
            assert again == 0
        # All that a killed worker ran.
        assert again <= 8 * killed_workers

    def the_device_has_one_worker_at_a_time(self, workers):
        last = None
        for worker in sorted((w for w in workers if w.placed_ms), key=lambda w: w.placed_ms):
            assert last is None or last.stopped_ms <= worker.placed_ms
            # In the order in which they were wanted, so that none is passed over without an end.
            assert last is None or last.created_ms <= worker.created_ms
            last = worker

    def none_gives_way_before_its_time(self, workers, records):
        by_id = {worker.id: worker for worker in workers}
        for swap in records.swaps.values():
            worker, other = by_id[swap.worker], by_id[swap.beneficiary]
            assert worker.endpoint != other.endpoint
            load_s = load_of(worker)
            least_s = max(load_s, RESIDENCY_S[worker.endpoint])
            if "whose oldest job has waited" in swap.reason:
                least_s = max(HOLD_S, 3 * load_s)
            assert (swap.seen_ms - worker.ready_ms) / 1000 >= least_s, swap

    def none_gives_way_while_its_jobs_wait(self, records):
        """A A A B: an idle worker gives way only when no job of its endpoint waits."""
        for name, ended in self.jobs.items():
            accepted_ms = self.clients[name].accepted_ms
            timed = accepted_ms.keys() & ended.keys()
            for swap in records.swaps.values():
                if "it was idle" not in swap.reason or not self._is_of(name, swap.worker):
                    continue
                ran = {i for i, s in ended.items() if s["workerId"] == swap.worker}
                late = {
                    i
                    for i, s in ended.items()
                    if i in timed - ran
                    and "retries" not in s
                    and accepted_ms[i] < swap.before_ms
                    and self._ended_ms(i, s, accepted_ms) > swap.seen_ms
                }
                assert late == set(), swap

    def _is_of(self, name, worker):
        return any(s["workerId"] == worker for s in self.jobs[name].values())

    def _ended_ms(self, job, status, accepted_ms):
        return accepted_ms[job] + status["delayTime"]

    def each_swap_serves_jobs(self, records, killer):
        served = Counter(s["workerId"] for ended in self.jobs.values() for s in ended.values())
        idle = [swap for swap in records.swaps.values() if not served[swap.worker]]
        kills = sum(killer.killed.values()) if killer else 0
        assert len(idle) <= kills, idle
        assert 1 <= len(records.swaps) < JOBS / 4

    def none_waits_beyond_its_bound(self, workers, killer):
        kills = sum(killer.killed.values()) if killer else 0
        load_s = dict.fromkeys(self.names, 0.0)
        for worker in workers:
            if worker.ready_ms:
                took_s = load_of(worker)
                load_s[worker.endpoint] = max(load_s[worker.endpoint], took_s)
        waits_s = dict.fromkeys(self.names, 0.0)
        for worker in workers:
            if worker.placed_ms:
                wait_s = (worker.placed_ms - worker.created_ms) / 1000
                waits_s[worker.endpoint] = max(waits_s[worker.endpoint], wait_s)
        told = []
        for name in self.names:
            others = [other for other in self.names if other != name]
            bound_s = sum(
                load_s[o] + max(hold_s(load_s[o], load_s[p], HOLD_S) for p in self.names if p != o)
                for o in others
            )
            bound_s += SLACK_S + AFTER_A_KILL_S * kills
            longest_s = max(s["delayTime"] for s in self.jobs[name].values()) / 1000
            told.append(
                f"{name}: {len(self.jobs[name])} jobs, load {load_s[name]:.1f} s, longest wait "
                f"{longest_s:.1f} s, for the device {waits_s[name]:.1f} s, bound {bound_s:.1f} s"
            )
            assert waits_s[name] <= bound_s
        return "; ".join(told)


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + LIMIT_S + 60)
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_jobs_by_chance_run_in_turns(start_ownpod, tmp_path, capsys, names):
    run = Run(start_ownpod, tmp_path, names)
    records = Records(run.ownpod.redis_url, lambda *_: None)
    with ending(run, records):
        run.submit(random.Random(f"{SEED} {names}"), WITHIN_S)
        run.wait()
        told = run.check(records)
    with capsys.disabled():
        print(f"\nsharing, seed {SEED}: {len(records.swaps)} swaps, {records.looks} looks; {told}")


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + LIMIT_S + SWAPS_S + 60)
def test_jobs_by_chance_while_parts_are_killed_in_each_step_of_a_swap(
    start_ownpod, tmp_path, capsys
):
    chance = random.Random(SEED)
    deck = [("agent", step) for step in STEPS]
    deck += [("housekeeping", step) for step in chance.sample(STEPS, 2)]
    deck += [("worker", step) for step in chance.sample(["DRAINING", "STOPPING", "STARTING"], 2)]
    run = Run(start_ownpod, tmp_path, "abc")
    processes = Processes(tmp_path / "var")
    watcher = Watcher(run.ownpod.redis_url, processes)
    killer = Killer(run.ownpod, lambda worker: processes.living().get(worker, []), deck, chance)
    records = Records(run.ownpod.redis_url, killer)
    with ending(run, records, watcher):
        run.submit(chance, WITHIN_S)
        try:
            run.wait()
            run.swap_until(lambda: "agent" not in dict(killer.left), SWAPS_S)
        finally:
            with capsys.disabled():
                kills = ", ".join(f"{part} in {step}" for part, step in killer.killed)
                print(f"\nsharing, seed {SEED}: {len(records.swaps)} swaps; killed: {kills}")
        told = run.check(records, killer)
    with capsys.disabled():
        print(told)
    assert watcher.wrong == []
    assert "agent" not in dict(killer.left)
