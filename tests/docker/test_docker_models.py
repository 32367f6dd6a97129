"""Models of workers on a real Docker engine: read-only mounts, links of Hugging Face's cache, and models that stay while they are used."""

import gc
import os

import pytest
from helpers import wait_until
from model_server import COMMIT, model_server
from oneoffs import Rig, W
from test_docker_engine import IMAGE, archive, docker, inspect, remove_all, tiny

from ownpod.agent.containers import ContainerEngine
from ownpod.agent.model_orders import FetchSettings
from ownpod.agent.models import HostModels
from ownpod.agent.outside import Outside, outside, own_ids
from ownpod.rules.managed import Phase
from ownpod.rules.model_mounts import HUB_MOUNT
from ownpod.rules.model_news import State
from ownpod.rules.models import ModelSource
from ownpod.rules.templates import ManagedSpec, Template
from ownpod.store.models import FETCH, REMOVE, Models

__all__ = ["archive", "tiny"]

pytestmark = [
    pytest.mark.timeout(300),
    # docker-py leaves it to the garbage collector to close a socket that could not be connected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

USER_65534 = "ownpod-test/user-65534:1"
"""The tiny image, run by the user 65534, to which no file of the model belongs."""

SIZE = 100_000


@pytest.fixture
def server():
    with model_server() as found:
        found.repositories["org/tiny"] = {"config.json": b"{}", "part/weights": b"42\n"}
        found.files |= {"/a.bin": b"a" * SIZE, "/b.bin": b"b" * SIZE}
        yield found


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "given"
    found.mkdir()
    (found / "weights").write_text("42\n")
    return found


class ModelRig(Rig):
    """Workers that have models."""

    def __init__(self, client, root, server, outside=None):
        self.root = root
        self.news = Models(client)

        def models():
            return HostModels(
                root,
                "h",
                self.news,
                container=True,
                fetching=FetchSettings(quota=SIZE + SIZE // 2, tries=1),
                environ={**os.environ, "HF_ENDPOINT": server.url},
                head_start_s=0.0,
                outside=outside,
            )

        super().__init__(client, ContainerEngine, models)

    def want(self, script, source, image=IMAGE):
        template = Template(image=image, command=("sh", "-c", script), model=source)
        self.managed.want(W, "ep", spec=ManagedSpec(template))

    def starts(self, script, source, **options):
        """The container of a pull worker with a model, once it has printed its last line, ``end``."""
        self.want(f"exec 2>&1; {script}; echo end; sleep 600", source, **options)

        def printed():
            found = self.managed.get(W)
            assert found.phase is not Phase.STOPPED, found.reason
            text = self.engine.log(W)
            return text.endswith("end") and text.removesuffix("end")

        return wait_until(printed, 60, "its output")

    def state(self, source):
        """The state of a model in the news of this host, and what is wrong with it."""
        news = {news.key: news for news in self.news.news(["h"]).get("h", ())}.get(source.key)
        return (news.state, news.error) if news else (None, "")


@pytest.fixture
def make_rig(tiny, client, tmp_path, server):
    made = []

    def make(root=tmp_path / "models", **options):
        found = ModelRig(client, root, server, **options)
        made.append(found)
        return found

    yield make
    for rig in made:
        rig.end()
        for engine in rig.engines:
            engine.close()
        remove_all(rig.instance)
    # Here, because later tests do not ignore its warnings.
    gc.collect()


@pytest.fixture
def user_65534(tiny, archive):
    docker("import", "--change", "USER 65534:65534", str(archive), USER_65534)
    yield USER_65534
    docker("image", "rm", "--force", USER_65534)


def mounts(worker=W):
    """Sources by the path in the container; all are read-only."""
    found = inspect(f"ownpod-{worker}")["Mounts"]
    assert not any(mount["RW"] for mount in found)
    return {mount["Destination"]: mount["Source"] for mount in found}


def test_a_directory_of_the_host_is_the_model_and_cannot_be_written(make_rig, folder):
    source = ModelSource("given", f"file://{folder}")
    script = 'echo "$MODEL_PATH $MODEL_NAME"; cat $MODEL_PATH/weights; echo x >/models/made; true'
    text = make_rig().starts(script, source)
    assert text.startswith("/models given\n42\n")
    assert "Read-only file system" in text
    assert mounts() == {"/models": str(folder)}
    assert [path.name for path in folder.iterdir()] == ["weights"]


def test_a_file_of_the_host_is_the_model(make_rig, folder):
    source = ModelSource("given", f"file://{folder}/weights")
    text = make_rig().starts('cat "$MODEL_PATH"; echo x >"$MODEL_PATH"; true', source)
    assert text.startswith("42\n")
    assert "Read-only file system" in text
    assert (folder / "weights").read_text() == "42\n"


def test_a_model_of_the_hub_is_read_through_its_links_by_any_user(make_rig, user_65534):
    before = os.umask(0o077)
    try:
        rig, source = make_rig(), ModelSource("tiny", "hf://org/tiny")
        script = (
            'echo "$MODEL_PATH $MODEL_NAME $HF_HUB_CACHE $HF_HUB_OFFLINE"; cat $MODEL_PATH/part/weights; '
            "cat $HF_HUB_CACHE/models--org--tiny/refs/main; echo; "
            f"cat $HF_HUB_CACHE/models--org--tiny/snapshots/{COMMIT}/config.json; echo; "
            "echo x >$HF_HUB_CACHE/x; echo x >$MODEL_PATH/config.json; echo x >/models/x; true"
        )
        text = rig.starts(script, source, image=user_65534)
    finally:
        os.umask(before)
    assert text.splitlines()[:4] == [
        f"/models/snapshots/{COMMIT} org/tiny {HUB_MOUNT} 1",
        "42",
        COMMIT,
        "{}",
    ]
    assert text.count("Read-only file system") == 3
    hub = rig.root / "hub"
    assert mounts() == {"/models": f"{hub}/models--org--tiny", HUB_MOUNT: str(hub)}


def test_a_snapshot_of_a_cache_that_the_operator_names_has_its_links(make_rig, folder):
    repository = folder / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("42\n")
    (snapshot / "weights").symlink_to("../../blobs/abc")
    text = make_rig().starts(
        'echo "$MODEL_PATH"; cat $MODEL_PATH/weights', ModelSource("t", f"file://{snapshot}")
    )
    assert text == f"/models/snapshots/{COMMIT}\n42\n"


def test_a_task_reads_its_model_and_cannot_write_it(make_rig, server):
    rig = make_rig()
    source = ModelSource("tiny", f"{server.url}/a.bin")
    script = 'echo "$MODEL_PATH"; echo x >"$MODEL_PATH" || echo refused; cat "$MODEL_PATH"'
    rig.submit(("sh", "-c", script), image=IMAGE, model=source)
    rig.finish(rig.node.start())
    assert rig.text() == f"/models/a.bin\nrefused\n{'a' * SIZE}"
    assert mounts() == {"/models": f"{rig.root}/store/{source.key}"}


def test_a_model_stays_while_a_container_has_it_also_for_the_next_agent(make_rig, server):
    rig = make_rig()
    mine, other = (ModelSource(name, f"{server.url}/{name}.bin") for name in "ab")
    script = 'while [ ! -f /tmp/go ]; do sleep 0.1; done; cat "$MODEL_PATH" | grep -c aaaa'
    rig.want(f"{script}; sleep 600", mine)
    wait_until(lambda: rig.managed.get(W).phase is Phase.STARTING and W in rig.engine.list(), 60)
    rig.next_agent()
    # There is room for one of them.
    rig.news.order("h", FETCH, other)
    wait_until(lambda: rig.state(other)[0] is State.FAILED, 60)
    assert "in use or pinned" in rig.state(other)[1]
    rig.news.order("h", REMOVE, mine)
    wait_until(lambda: "in use by worker" in rig.state(mine)[1], 60)
    docker("exec", f"ownpod-{W}", "sh", "-c", "echo go >/tmp/go")
    wait_until(lambda: rig.engine.log(W) == "1", 30, "it reads its model")
    docker("kill", f"ownpod-{W}")
    wait_until(lambda: rig.managed.get(W).phase is Phase.STOPPED, 60)
    wait_until(lambda: rig.engine.list() == {}, 60)

    def fetched():
        rig.news.order("h", FETCH, other)
        return rig.state(other)[0] is State.READY

    wait_until(fetched, 60, "the other model")
    assert rig.state(mine)[0] is None


def test_an_agent_in_a_container_names_the_path_of_the_host(make_rig, server, tmp_path):
    (tmp_path / "host").symlink_to(tmp_path / "models")
    source = ModelSource("tiny", f"{server.url}/a.bin")
    mounted = {"Destination": str(tmp_path / "models"), "Source": str(tmp_path / "host")}
    rig = make_rig(outside=Outside(str(tmp_path / "models"), None, (mounted,)))
    assert rig.starts('cat "$MODEL_PATH" | grep -c aaa', source) == "1\n"
    # The engine follows the link.
    binds = inspect(f"ownpod-{W}")["HostConfig"]["Mounts"]
    assert [bind["Source"] for bind in binds] == [f"{tmp_path}/host/store/{source.key}"]


def test_models_that_the_engines_host_does_not_have_name_the_variable(make_rig, server, tmp_path):
    gone = tmp_path / "elsewhere"
    source = ModelSource("tiny", f"{server.url}/a.bin")
    rig = make_rig(outside=Outside(str(tmp_path / "models"), str(gone)))
    rig.want("true", source)
    wait_until(lambda: rig.managed.get(W).phase is Phase.STOPPED, 60)
    reason = rig.managed.get(W).reason
    assert f"does not have the model's directory {gone}/store/{source.key}" in reason
    assert "set OWNPOD_MODELS_HOST_DIR" in reason
    assert not gone.exists()
    assert rig.engine.list() == {}


def test_a_container_finds_its_own_mounts_whatever_its_hostname_is(tiny, tmp_path):
    run = ("run", "--detach", "--hostname", "other", "--volume", f"{tmp_path}:/data")
    own = docker(*run, IMAGE, "sh", "-c", "cat /proc/self/mountinfo; echo end; sleep 60")
    try:
        text = wait_until(lambda: (t := docker("logs", own)).endswith("end") and t, 30)
        assert own_ids(text, "other") == [own, "other"]
        assert outside("/data/models", inspect(own)["Mounts"]) == f"{tmp_path}/models"
    finally:
        docker("rm", "--force", own)
