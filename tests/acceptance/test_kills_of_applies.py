"""SIGKILL of `ownpod apply` at any byte that it sends to Redis: all of its endpoints have changed afterwards, or none."""

import json
import os
import random
import sys

import pytest
from helpers import Process, run_command, wait_until
from slow_redis import SlowRedis

from ownpod.rules.catalog import EndpointRow, Kind
from ownpod.rules.catalog_changes import entry_of
from ownpod.rules.records import from_text
from ownpod.store import keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEED = int(os.environ.get("CHAOS_SEED", "18"))
KILLS = 8
ENDPOINTS = 40


def write_file(path, generation):
    """Endpoints with the generation in their image, and one that only this generation has."""
    names = [*(f"ep-{n}" for n in range(ENDPOINTS)), f"only-{generation}"]
    template = {"image": f"org/worker:{generation}", "env": {"TEXT": "x" * 200}}
    endpoints = {name: {"template": template, "workersMax": 1} for name in names}
    path.write_text(json.dumps({"project": "kills", "endpoints": endpoints}))


def rows_of(client):
    texts = client.hgetall(f"{keys.CATALOG}{Kind.ENDPOINT}")
    return {name: from_text(EndpointRow, text) for name, text in texts.items()}


def generation_of(client):
    """The generation of all endpoints. Fails if the catalog, or what other processes read of it, has parts of two."""
    rows = rows_of(client)
    (image,) = {row.container.image for row in rows.values()} or {"org/worker:0"}
    generation = int(image.rpartition(":")[2])
    if generation:
        names = {*(f"ep-{n}" for n in range(ENDPOINTS)), f"only-{generation}"}
        assert rows.keys() == names
    entries = {name: json.loads(t) for name, t in client.hgetall(keys.ENDPOINTS).items()}
    assert entries == {name: json.loads(json.dumps(entry_of(row))) for name, row in rows.items()}
    for row in rows.values():
        assert [release.version for release in row.releases] == list(range(1, row.version + 1))
    return generation


def test_an_apply_that_is_killed_has_changed_all_endpoints_or_none(redis_server, client, tmp_path):
    chance, file = random.Random(SEED), tmp_path / "endpoints.json"
    (tmp_path / "workers.yaml").write_text("endpoints: {}\n")
    command = (sys.executable, "-m", "ownpod", "apply", "-f", str(file), "--prune")
    environ = {"OWNPOD_WORKERS_FILE": tmp_path / "workers.yaml"}
    with SlowRedis(redis_server.port).serving() as proxy:
        write_file(file, 1)
        done = run_command(*command, **environ, REDIS_URL=proxy.url)
        assert (done.returncode, generation_of(client)) == (0, 1), done.stderr
    audits = client.xlen(keys.CATALOG_AUDIT)
    assert audits == ENDPOINTS + 1
    # An apply that changes all has more to send than this one.
    size, stopped, before = proxy.passed, 0, 1
    for generation in range(2, KILLS + 2):
        write_file(file, generation)
        with SlowRedis(redis_server.port).serving() as proxy:
            proxy.most = chance.randrange(size)
            process = Process(*command, log=tmp_path / "apply.log", **environ, REDIS_URL=proxy.url)
            assert proxy.stopped.wait(60), process.output
            stopped += proxy.passed > size // 20
            process.kill()
        assert generation_of(client) == before
        assert client.xlen(keys.CATALOG_AUDIT) == audits
        if generation % 3 == 0:
            # The same file again, and no process is killed.
            done = run_command(*command, **environ, REDIS_URL=redis_server.url)
            assert (done.returncode, generation_of(client)) == (0, generation), done.stderr
            # All endpoints changed or created, and one deleted.
            audits, before = audits + ENDPOINTS + 2, generation
            assert client.xlen(keys.CATALOG_AUDIT) == audits
    assert stopped, "no apply was killed while it wrote; use another seed"


def test_an_apply_that_is_killed_once_it_has_written_has_changed_all(
    redis_server, client, tmp_path
):
    file = tmp_path / "endpoints.json"
    (tmp_path / "workers.yaml").write_text("endpoints: {}\n")
    write_file(file, 1)
    process = Process(
        *(sys.executable, "-m", "ownpod", "apply", "-f", file),
        log=tmp_path / "apply.log",
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
    )
    wait_until(lambda: client.exists(keys.CATALOG_VERSION), 60, "the change")
    process.kill()
    assert generation_of(client) == 1
    assert client.xlen(keys.CATALOG_AUDIT) == ENDPOINTS + 1
