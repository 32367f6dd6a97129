"""The start of an agent in a directory, or with a Redis, that it cannot use: one line."""

import pytest

from ownpod.agent import run
from ownpod.errors import OwnPodError, StartError
from ownpod.rules.templates import ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.managed import Managed


@pytest.fixture
def managed(client):
    return Managed(client)


@pytest.mark.parametrize("content", [b"", b"../..\n", b"a b\n"])
def test_a_file_with_another_id_than_an_installations_is_written_again(managed, tmp_path, content):
    file = tmp_path / run.INSTANCE_FILE
    file.write_bytes(content)
    instance = run._instance(managed, tmp_path)
    assert run.INSTANCE.fullmatch(instance)
    assert file.read_text() == f"{instance}\n"
    assert run._instance(managed, tmp_path) == instance


def test_a_directory_that_cannot_be_used_is_named(managed, tmp_path):
    (tmp_path / "agent").write_text("a file")
    with pytest.raises(StartError, match="OWNPOD_DATA_DIR: .*agent/instance cannot be used"):
        run._instance(managed, tmp_path / "agent")
    (tmp_path / run.INSTANCE_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(StartError, match="it is no text"):
        run._instance(managed, tmp_path)


def test_an_id_in_redis_that_would_be_another_path_is_refused(client, managed, tmp_path):
    client.set(keys.INSTANCE, "../../etc")
    with pytest.raises(StartError, match="is no id"):
        run._instance(managed, tmp_path)
    client.delete(keys.INSTANCE)
    client.rpush(keys.INSTANCE, "x")
    with pytest.raises(OwnPodError):
        run._instance(managed, tmp_path)


def test_a_reason_has_nothing_that_a_terminal_obeys(managed):
    managed.want("aaaaaaaaaaaaaa", "ep", spec=ManagedSpec(Template(command=("x",))))
    managed.waits("aaaaaaaaaaaaaa", "no\n\x1b[2J \udc80 device")
    reason = managed.get("aaaaaaaaaaaaaa").reason
    assert reason.isprintable()
    assert reason.endswith("device")
