"""Every kind of process is killed and Redis is stopped, by chance with a fixed seed, while jobs go through.

Short in `make test`; `make chaos` runs it for longer and prints what it saw.
"""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter

import pytest
from chaos import (
    HANDLERS,
    KILL_PAUSE_S,
    KINDS,
    SECONDS,
    SEED,
    Client,
    Receiver,
    RedisPauses,
    TwoHosts,
    Workers,
    ending,
    processes_of,
    push_workers,
    soon,
    started_runs,
)
from helpers import Process, answers, overlaps, pull_worker, wait_until

from ownpod.housekeeping.signals import THREADS as HOUSEKEEPING_THREADS


def kill_by_chance(ownpod, workers: Workers, chance: random.Random) -> Counter[str]:
    """Kills for SECONDS, and until each kind had its turn; how many of each."""
    killed: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    deck: list[str] = []
    while time.monotonic() < until or deck:
        time.sleep(chance.uniform(*KILL_PAUSE_S))
        deck = deck or chance.sample(KINDS, len(KINDS))
        kind = deck.pop()
        if kind == "RunPod worker":
            workers.kill(chance)
            killed[kind] += 1
        elif victims := soon(lambda kind=kind: processes_of(ownpod, kind), 30):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims).pid, signal.SIGKILL)
                killed[kind] += 1
    return killed


@pytest.mark.timeout(240 + 6 * SECONDS)
@pytest.mark.parametrize("protocol", ["push", "pull"])
def test_every_accepted_job_is_completed_whatever_is_killed(
    start_ownpod, tmp_path, capsys, protocol
):
    start, urls = push_workers(tmp_path) if protocol == "push" else (None, [])
    file = tmp_path / "workers.yaml"
    # More attempts than by default: in a minute here more dies than elsewhere in a year.
    endpoint = {"maxAttempts": 50, "workers": [{"url": url} for url in urls]}
    file.write_text(json.dumps({"endpoints": {"local-ep": endpoint}}))
    runs, receiver = tmp_path / "runs", Receiver()
    workers = None if start is None else Workers(start, len(HANDLERS))
    with ending(receiver, workers):
        for url in urls:
            wait_until(lambda url=url: answers(url), 60, "the workers")
        ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_LEASE_S=4, OWNPOD_WEBHOOK_DELAY_S=1)
        if workers is None:

            def pull(number: int) -> Process:
                name = f"gpu-{number}"
                log = tmp_path / f"{name}.log"
                return pull_worker(ownpod.port, log, name=name, kind=HANDLERS[number])

            workers = Workers(pull, len(HANDLERS))
        with ending(workers):
            ready = lambda: ownpod.get("/health")["workers"]["ready"] == len(HANDLERS)  # noqa: E731
            wait_until(ready, 60, "the workers")

            def redis_pid() -> int | None:
                return next((p.pid for p in processes_of(ownpod, "Redis")), None)

            # In production mode the SDK runs about a job a second, as it pauses so long between them.
            pause_s = 0.06 if protocol == "push" else 0.4
            chance = random.Random(SEED + 1)
            client = Client(ownpod.endpoint, runs, chance, pause_s, receiver.url)
            pauses = RedisPauses(redis_pid, random.Random(SEED + 2))
            with ending(pauses):
                killed = kill_by_chance(ownpod, workers, random.Random(SEED))
            client.end()
            drained = time.monotonic()
            ended = client.all_ended(120 + SECONDS)
            longest = time.monotonic() - drained
            webhooks = receiver.settled(client.accepted.keys(), 60 + SECONDS)
            twice = webhooks.total() - len(webhooks)
            told = (
                f"\n{protocol}, seed {SEED}: {len(ended)} jobs accepted in {SECONDS:g} s, {sum(killed.values())} kills: "
                + ", ".join(f"{kind} {killed[kind]}" for kind in KINDS)
                + f"; {pauses}\n{started_runs(runs)} runs, all done {longest:.1f} s after the last kill; "
                f"{webhooks.total()} webhooks, {twice} of them again"
            )
            with capsys.disabled():
                print(told)
            states = Counter(status["status"] for status in ended.values())
            assert states == {"COMPLETED": len(ended)}
            assert {i: s["output"]["echo"] for i, s in ended.items()} == client.accepted
            assert overlaps(runs) == []
            assert webhooks.keys() == client.accepted.keys()
            # Again only where the sender was killed in the middle of a try.
            senders = killed["housekeeping"] + killed["dispatcher"]
            assert twice <= senders * HOUSEKEEPING_THREADS
            assert ownpod.ended(ownpod.submit(text="next"), 60)["status"] == "COMPLETED"
            ran_s = SECONDS - sum(pauses.lengths)
            assert len(ended) > ran_s * (0.5 if protocol == "push" else 0.2)
            assert pauses.lengths
            assert set(killed) == set(KINDS)


@pytest.mark.timeout(240 + 6 * SECONDS)
@pytest.mark.parametrize("offset_s", [60, -60])
def test_hosts_whose_clocks_are_a_minute_apart_run_every_job_once_while_redis_stops(
    tmp_path, capsys, offset_s
):
    start, urls = push_workers(tmp_path)
    runs, receiver = tmp_path / "runs", Receiver()
    workers = Workers(start, len(HANDLERS))
    hosts = None
    with ending(receiver, workers):
        for url in urls:
            wait_until(lambda url=url: answers(url), 60, "the workers")
        hosts = TwoHosts(tmp_path, [urls[:1], urls[1:]], offset_s, lease_s=4)
        with ending(hosts):
            try:
                hosts.wait_until_ready(len(urls))
                chance = random.Random(SEED + 1)
                client = Client(hosts.endpoint, runs, chance, 0.06, receiver.url)
                redis = hosts.redis.process.pid
                pauses = RedisPauses(lambda: redis, random.Random(SEED + 2))
                with ending(pauses):
                    time.sleep(SECONDS)
                client.end()
                ended = client.all_ended(60 + SECONDS)
                webhooks = receiver.settled(client.accepted.keys(), 60 + SECONDS)
                told = (
                    f"\nclocks {offset_s:+d} s, seed {SEED}: {len(ended)} jobs accepted in {SECONDS:g} s; {pauses}"
                    f"\n{started_runs(runs)} runs, {webhooks.total()} webhooks"
                )
                with capsys.disabled():
                    print(told)
                states = Counter(status["status"] for status in ended.values())
                assert states == {"COMPLETED": len(ended)}
                assert {i: s["output"]["echo"] for i, s in ended.items()} == client.accepted
                assert overlaps(runs) == []
                # Nothing was killed: so nothing runs again, and no webhook comes again.
                assert started_runs(runs) == len(ended)
                assert set(webhooks.values()) == {1}
                assert webhooks.keys() == client.accepted.keys()
                assert pauses.lengths
            finally:
                print(hosts.output)
