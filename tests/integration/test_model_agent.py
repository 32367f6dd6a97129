"""An agent whose workers have models: a worker holds no device while its model is fetched, and gets it read-only."""

import threading

import pytest
from helpers import job_store, wait_until
from model_server import model_server

from ownpod.agent import models
from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.engine import Started
from ownpod.agent.model_orders import FetchSettings
from ownpod.agent.models import HostModels
from ownpod.agent.outside import Outside
from ownpod.agent.steps import Host
from ownpod.configuration.custom import CUSTOM
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.managed import Phase
from ownpod.rules.model_news import State
from ownpod.rules.models import ModelSource
from ownpod.rules.placement import pools_of
from ownpod.rules.reconcile import Found
from ownpod.rules.sessions import SessionWish
from ownpod.rules.templates import GpuNeed, ManagedSpec, Protocol, Template, VolumeMount
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.models import FETCH, REMOVE, Models
from ownpod.store.outputs import Outputs
from ownpod.store.sessions import Sessions

# Each starts processes.
pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 1000
W, V = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"


class Engine:
    """Starts nothing, and remembers what it would have started."""

    instance = "i"

    def __init__(self, name="docker"):
        self.name, self.started, self.ended = name, {}, set()

    def check_template(self, _template):
        pass

    def api_url(self, url):
        return url

    def prepare(self, _template, _progress):
        pass

    def digest(self, _template):
        return ""

    def start(self, launch):
        self.started[launch.worker_id] = launch
        return Started()

    def list(self):
        return {i: Found(i, running=True, age_s=1.0) for i in self.started if i not in self.ended}

    def env(self, _worker_id):
        return {}

    def stop(self, worker_id, _grace_s=0.0):
        self.ended.add(worker_id)

    def remove(self, worker_id):
        self.started.pop(worker_id, None)

    def log(self, _worker_id, _lines=0):
        return ""


@pytest.fixture
def server():
    with model_server() as found:
        found.files["/model.bin"] = DATA
        yield found


@pytest.fixture
def managed(client):
    return Managed(client)


class Rig:
    """An agent with models of its own, whose turns the test makes."""

    def __init__(
        self, client, managed, root, name, engine, *, outside=None, head_start_s=0.0, **changes
    ):
        self.models = HostModels(
            root,
            name,
            Models(client),
            container=engine.name == "docker",
            fetching=FetchSettings(**{"tries": 1, **changes}),
            head_start_s=head_start_s,
            outside=outside,
        )
        self.engine = engine
        self.woken = threading.Event()
        self.agent = Agent(
            Host(name, "http://127.0.0.1:8000", {}),
            engine,
            Devices(DeviceChoice(stand_ins=1), {}, pools_of=pools_of),
            managed=managed,
            agents=Agents(client),
            outputs=Outputs(client),
            wakeups=Wakeups(client),
            environ={},
            models=self.models,
        )

    def started(self, worker_id=W):
        self.agent.turn()
        return self.engine.started.get(worker_id)


@pytest.fixture
def rig(client, managed, tmp_path):
    made = []

    def make(name="h", engine=None, **changes):
        found = Rig(client, managed, tmp_path / name, name, engine or Engine(), **changes)
        made.append(found)
        return found

    yield make
    for one in made:
        one.agent.leave()


def spec(server, path="/model.bin", **changes):
    source = ModelSource("tiny", f"{server.url}{path}")
    return ManagedSpec(Template(command=("c",), model=source, **changes), gpu=GpuNeed())


def test_a_worker_holds_no_device_while_its_model_is_fetched(server, managed, client, rig):
    server.hold_at = 100_000
    managed.want(W, "ep", spec=spec(server))
    host = rig()
    host.agent.turn()
    assert server.held.wait(60)
    wait_until(lambda: (host.agent.turn(), "of" in managed.get(W).reason)[1])
    found = managed.get(W)
    assert found.phase is Phase.WANTED
    assert found.reason.startswith("host h cannot start it: model tiny is being fetched: ")
    assert found.fetched_ms
    assert Agents(client).holds("h") == []
    assert Models(client).news(["h"])["h"][0].state is State.FETCHING
    server.go.set()
    launch = wait_until(host.started, 20)
    key = spec(server).template.model.key
    assert launch.mounts == {"/models": str(host.models.store.root / "store" / key)}
    assert launch.env["MODEL_PATH"] == "/models/model.bin"
    assert launch.env["MODEL_NAME"] == "tiny"
    assert host.models.store.users() == {W: key}
    host.agent.turn()
    news = Models(client).news(["h"])["h"][0]
    assert (news.state, news.workers, news.total) == (State.READY, (W,), len(DATA))


def test_a_process_gets_the_path_of_the_host_and_the_template_may_name_its_own(
    server, managed, rig
):
    managed.want(W, "ep", spec=spec(server))
    host = rig(engine=Engine("process"))
    launch = wait_until(host.started, 20)
    assert launch.mounts == {}
    assert launch.env["MODEL_PATH"].startswith(str(host.models.store.root))
    managed.want(V, "ep", spec=spec(server, env={"MODEL_PATH": "/own"}))
    host.engine.ended.add(W)
    wait_until(lambda: host.started(V), 20)
    assert host.engine.started[V].env["MODEL_PATH"] == "/own"


def test_a_worker_whose_model_is_on_its_way_waits_for_no_device_also_while_another_host_says_why_it_cannot(
    server, managed, rig
):
    server.hold_at = 100_000
    managed.want(W, "ep", spec=spec(server))
    other = "host other cannot start it: image i:1 is not allowed"
    managed.waits(W, other)
    host = rig()
    host.agent.turn()
    assert server.held.wait(60)
    first = wait_until(lambda: (host.agent.turn(), managed.get(W).fetched_ms)[1])
    # No byte comes, so there is no news.
    wait_until(lambda: (host.agent.turn(), managed.get(W).fetched_ms > first)[1])
    assert managed.get(W).reason == other
    server.go.set()


@pytest.mark.parametrize("engine", ["docker", "process"])
def test_custom_tasks_run_in_containers_only(client, managed, rig, engine):
    sessions = Sessions(job_store(client), result_ttl_s=60)
    custom = ManagedSpec(Template(image="allowed:1", command=("c",), protocol=Protocol.CONTAINER))
    sessions.open_task(W, CUSTOM, spec=custom, job_id="job", owner="")
    sessions.open_task(V, "llama-print", spec=custom, job_id="job-2", owner="")
    host = rig(engine=Engine(engine))
    host.agent.turn()
    assert managed.get(V).phase is not Phase.WANTED
    found = managed.get(W)
    assert (found.phase is Phase.WANTED) == (engine == "process")
    why = "host h cannot start it: custom tasks need an engine that starts containers"
    assert found.reason == (why if engine == "process" else "")


def test_a_session_is_told_its_id(client, rig):
    sessions = Sessions(job_store(client), result_ttl_s=60)
    wish = SessionWish("ep", ManagedSpec(Template(command=("c",))), "m", "p", "low")
    sessions.open(wish, owner="", worker_id=W, reuse=False)
    env = wait_until(rig().started, 20).env
    assert env["SESSION_ID"] == W
    # On another level, RunPod's SDK does not say when a generator begins, and its lines would have no task.
    assert "RUNPOD_LOG_LEVEL" not in env


def test_only_one_host_fetches_the_model_of_a_worker(server, managed, rig):
    server.hold_at = 100_000
    managed.want(W, "ep", spec=spec(server))
    hosts = [rig("h"), rig("i"), rig("j")]
    for _ in range(3):
        for host in hosts:
            host.agent.turn()
    assert server.held.wait(60)
    server.go.set()
    launched = wait_until(lambda: [host for host in hosts if host.started()], 20)
    assert len(launched) == 1
    assert server.gets("/model.bin") == [0]


def test_a_host_with_the_model_has_a_head_start(server, managed, client, rig):
    # It has no model, and would wait for longer than this test does.
    without = rig("a", head_start_s=600.0)
    has = rig("h", head_start_s=600.0)
    source = spec(server).template.model
    Models(client).order("h", FETCH, source)
    wait_until(lambda: (has.agent.turn(), has.models.store.find(source))[1], 20)
    managed.want(W, "ep", spec=spec(server))
    without.agent.turn()
    assert without.started() is None
    assert wait_until(has.started, 20).env["MODEL_NAME"] == "tiny"
    assert without.models.store.find(source) is None
    assert server.gets("/model.bin") == [0]


def test_a_host_that_cannot_fetch_leaves_the_worker_to_another_with_its_reason(
    server, managed, rig
):
    server.refuses["/model.bin"] = 404
    managed.want(W, "ep", spec=spec(server))
    host = rig()
    wait_until(lambda: (host.agent.turn(), "HTTP 404" in managed.get(W).reason)[1], 20)
    assert managed.get(W).phase is Phase.WANTED
    assert managed.get(W).refused_by == ("h",)
    del server.refuses["/model.bin"]
    other = rig("i")
    # The other one first, because this host may try again after a second.
    assert wait_until(lambda: other.started() or (host.agent.turn(), None)[1], 20)


def test_a_host_that_fetches_none_says_so(server, managed, rig):
    managed.want(W, "ep", spec=spec(server))
    rig(allowed=False).agent.turn()
    assert "OWNPOD_FETCH_MODELS is false" in managed.get(W).reason


def test_a_volume_at_the_path_of_the_model_is_refused_in_words(server, managed, rig, tmp_path):
    host = rig()
    mount = VolumeMount("v", "/models/x")
    template = spec(server, volumes=(mount,)).template
    Models(host.models._stored._redis).order("h", FETCH, template.model)
    wait_until(lambda: (host.agent.turn(), host.models.store.find(template.model))[1], 20)
    with pytest.raises(Exception, match="/models is the path of the model"):
        host.models.mount(W, template)


def test_a_host_does_what_it_is_asked_to(server, managed, client, rig):
    stored, host, source = Models(client), rig(), spec(server).template.model
    stored.order("h", FETCH, source)
    wait_until(lambda: (host.agent.turn(), stored.read("h")[0] == {})[1], 20)
    assert host.models.store.find(source) is not None
    assert stored.fetches(["h", "i"]) == {"h": {State.READY: 1}}
    managed.want(W, "ep", spec=spec(server))
    wait_until(host.started, 20)
    stored.order("h", REMOVE, source)
    host.agent.turn()
    host.agent.turn()
    assert "in use by worker" in stored.news(["h"])["h"][0].error
    host.engine.ended.add(W)
    managed.stopped(W, "h", exit_code=0, reason="", failed=False)
    stored.order("h", REMOVE, source)
    wait_until(lambda: (host.agent.turn(), host.models.store.find(source) is None)[1], 20)


def test_an_order_that_fails_is_told_once_and_forgotten(server, client, rig):
    stored, host = Models(client), rig()
    stored.order("h", FETCH, ModelSource("gone", f"{server.url}/gone"))
    wait_until(lambda: (host.agent.turn(), stored.read("h")[0] == {})[1], 20)
    news = stored.news(["h"])["h"][0]
    assert (news.state, news.tries) == (State.FAILED, 1)
    assert stored.fetches(["h"]) == {"h": {State.FAILED: 1}}
    assert "HTTP 404" in news.error


class Broken:
    """A process whose lines cannot be understood."""

    def __init__(self, *_args):
        self.killed = False

    def steps(self):
        yield State.FETCHING, 1, 2
        raise ValueError("no state")

    def kill(self):
        self.killed = True

    def end(self):
        assert self.killed


def no_process(*_args):
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (Broken, Broken, "it failed unexpectedly: ValueError"),
        (Broken, no_process, "no process can be started: "),
        (no_process, no_process, "no process can be started: "),
    ],
)
def test_a_fetch_that_breaks_is_begun_again_later(
    server, client, rig, monkeypatch, first, then, words
):
    processes, source = iter([first, then]), spec(server).template.model

    def process(*args):
        return next(processes)(*args)

    monkeypatch.setattr(models, "FetchProcess", process)
    monkeypatch.setattr(models, "start_pause_s", lambda _tries: 0.0)
    host = rig(tries=2)
    host.models.coming(W, source, may_fetch=True)
    found = wait_until(
        lambda: (news := host.models._of(source)) and news.state is State.FAILED and news, 20
    )
    assert found.error.startswith(words)
    assert host.models._running == {}
    monkeypatch.undo()
    wait_until(lambda: host.models.coming(W, source, may_fetch=True) is None, 20)


def test_the_next_agent_continues_a_fetch_that_was_cut(server, managed, rig):
    server.files["/model.bin"] = DATA * 20
    server.hold_at = 2_000_000
    managed.want(W, "ep", spec=spec(server))
    first = rig()
    first.agent.turn()
    assert server.held.wait(60)
    part = first.models.store.partial(spec(server).template.model.key) / "model.bin.part"
    wait_until(lambda: part.exists() and part.stat().st_size >= 1_000_000)
    first.agent.leave()
    server.hold_at = None
    server.go.set()
    second = rig()
    assert wait_until(second.started, 20)
    assert server.gets("/model.bin")[0] == 0
    assert server.gets("/model.bin")[1] >= 1_000_000


def test_a_removal_that_failed_is_forgotten_when_the_model_has_given_way(server, client, rig):
    server.files["/other.bin"] = DATA
    stored, host = Models(client), rig(quota=len(DATA))
    source, other = (ModelSource(name, f"{server.url}/{name}.bin") for name in ("model", "other"))

    def news():
        return {found.id: found for found in stored.news(["h"]).get("h", ())}

    def fetched(wanted):
        stored.order("h", FETCH, wanted)
        host.agent.turn()
        return wanted.id in news() and news()[wanted.id].state is State.READY

    wait_until(lambda: fetched(source), 20)
    host.models.store.hold(W, source)
    stored.order("h", REMOVE, source)
    host.models.turn({W})
    assert "in use by worker" in news()["model"].error
    wait_until(lambda: fetched(other), 20)
    assert news().keys() == {"other"}


def test_a_model_that_only_the_agents_container_has_is_not_fetched_and_the_reason_says_what_to_do(
    server, managed, rig
):
    host = rig(outside=Outside(mounts=()))
    managed.want(W, "ep", spec=spec(server))
    host.agent.turn()
    assert (
        f"{host.models.store.root} is in no mount of the agent's container" in managed.get(W).reason
    )
    assert "set OWNPOD_MODELS_HOST_DIR" in managed.get(W).reason
    assert server.sent == []
