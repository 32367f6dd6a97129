"""``python -m ownpod.tools.alive``, the health check of the supervisor's container."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import Process, environment, wait_until

from ownpod.housekeeping.sweep import ALIVE_S
from ownpod.store import keys
from ownpod.tools.alive import exists

KEY = keys.housekeeping(socket.gethostname())


def check(url, *options):
    return subprocess.run(
        [sys.executable, *options, "-m", "ownpod.tools.alive"],
        env=environment(REDIS_URL=url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_host_is_healthy_while_its_housekeeping_node_sweeps(client, redis_server, tmp_path):
    silent = check(redis_server.url)
    assert (silent.returncode, silent.stderr) == (
        1,
        f"the housekeeping node of this host has not renewed {KEY}\n",
    )
    node = Process(
        *(sys.executable, "-m", "celery", "-A", "ownpod", "worker", "-n", "housekeeping@%h"),
        log=tmp_path / "node.log",
        REDIS_URL=redis_server.url,
    )
    try:
        wait_until(lambda: client.exists(KEY), 30, "a sweep")
        assert 0 < client.ttl(KEY) <= ALIVE_S
        healthy = check(redis_server.url)
        assert (healthy.returncode, healthy.stderr) == (0, "")
        # A node that hangs does not renew its key.
        node.send(signal.SIGSTOP)
        wait_until(lambda: check(redis_server.url).returncode == 1, ALIVE_S + 10, "the end")
    finally:
        node.kill()
        print(node.output)


def test_a_redis_that_is_away_is_unhealthy_and_named_in_one_line():
    away = check("redis://127.0.0.1:1/0")
    assert away.returncode == 1
    assert away.stderr.startswith("Redis does not answer: ")
    assert away.stderr.count("\n") == 1


def test_users_passwords_and_databases_of_the_address_count(client, redis_server):
    address = f"127.0.0.1:{redis_server.port}"
    client.acl_setuser("probe", enabled=True, passwords=["+a@b:c"], keys=["*"], commands=["+@all"])
    client.config_set("requirepass", "secret")
    try:
        client.set("here", 1)
        assert exists(f"redis://probe:a%40b%3Ac@{address}/0", "here")
        assert not exists(f"redis://probe:a%40b%3Ac@{address}/1", "here")
        assert exists(f"redis://:secret@{address}", "here")
        # With options redis-py connects.
        assert exists(f"redis://:secret@{address}?db=0", "here")
        for wrong in (f"redis://{address}/0", f"redis://:wrong@{address}/0"):
            with pytest.raises(ValueError, match="NOAUTH|WRONGPASS"):
                exists(wrong, "here")
        with pytest.raises(ValueError, match="out of range"):
            exists(f"redis://:secret@{address}/999", "here")
    finally:
        client.config_set("requirepass", "")
        client.acl_deluser("probe")


def test_a_redis_that_accepts_and_is_silent_ends_the_check():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            exists(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "here", timeout_s=0.2)
    assert time.monotonic() - began < 30


def test_the_check_imports_neither_redis_nor_celery_and_costs_little(client, redis_server):
    client.set(KEY, 1)
    imported = check(redis_server.url, "-X", "importtime").stderr
    assert "urllib.parse" in imported
    assert not {"redis", "celery", "kombu", "marshmallow", "asyncio"} & set(
        imported.replace("|", " ").split()
    )
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert check(redis_server.url).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # With Redis's and Celery's packages it is more than half a second. A loaded machine adds to each.
    assert min(spent) < 0.3, (spent, os.getloadavg())
