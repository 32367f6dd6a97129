"""Workers in Redis that a host cannot use: its supervisor lives, and jobs go on."""

import json

import psutil
import pytest
from helpers import RedisServer, wait_until

from ownpod.store import keys
from ownpod.store.client import connect

BROKEN = {
    "no-json": "{",
    "no-object": "[]",
    "no-endpoint": "{}",
    "gone": json.dumps({"endpoint": "gone", "url": "http://b:1", "id": "gone"}),
    "later": json.dumps({"endpoint": "local-ep", "url": "http://c:1", "id": "later", "new": 1}),
    "space": json.dumps({"endpoint": "local-ep", "url": "http://a b", "id": "space"}),
}


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def test_a_supervisor_with_entries_that_cannot_be_used_lives_and_runs_jobs(
    start_ownpod, start_worker, redis, tmp_path
):
    url, _ = start_worker()
    elsewhere = {
        "endpoint": "local-ep",
        "url": "https://127.0.0.1:9",
        "id": "elsewhere",
        "caBundle": str(tmp_path / "on-another-host.pem"),
    }
    with connect(redis.url) as client:
        # Some are there before the start, some come later.
        client.hset(keys.ADDED, mapping=dict(list(BROKEN.items())[:3]))
        client.hset(keys.PULLING, "odd", '{"endpoint": 5}')
        ownpod = start_ownpod(url, REDIS_URL=redis.url)
        assert ownpod.ended(ownpod.submit(text="a"))["output"]["echo"] == "a"

        def processes():
            return {p.pid for p in psutil.Process(ownpod.process.pid).children(recursive=True)}

        before = processes()
        client.hset(keys.ADDED, mapping=BROKEN)
        client.hset(keys.ADDED, "elsewhere", json.dumps(elsewhere))

    def told():
        return {entry["id"] for entry in ownpod.get("/workers")["leftOut"]} >= BROKEN.keys()

    wait_until(told, 10)

    def state(worker_id):
        found = ownpod.get("/health")["ownpod"]["workers"]
        return next((w for w in found if w["id"] == worker_id), {"state": "", "reason": ""})

    # The worker of another host has a node here, too, which says what it lacks.
    def lacks_file():
        found = state("elsewhere")
        return found["state"] == "unhealthy" and "cannot be read on this host" in found["reason"]

    wait_until(lacks_file, 20)
    for text in "bcd":
        assert ownpod.ended(ownpod.submit(text=text))["output"]["echo"] == text
    assert before <= processes()
    assert "starting it again" not in ownpod.output
    for worker_id in BROKEN:
        assert ownpod.output.count(f"worker '{worker_id}' of run time is left out: ") >= 1
