"""An agent and the secrets of templates: where they come from, what waits without them, and where they must not be."""

from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from helpers import wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.steps import Host
from ownpod.agent.volumes import Volumes
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.managed import Phase
from ownpod.rules.placement import pools_of
from ownpod.rules.templates import ManagedSpec, Template
from ownpod.rules.volumes import parse_mounts, parse_sources
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs
from ownpod.store.secrets import Secrets

W, X = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"
VALUE = "hunter2-and-more"
PLAIN = ManagedSpec(Template(command=("python", "w.py")))


def spec(reference="{{ SECRET_hub }}", **values):
    template = Template(command=("python", "w.py"), env={"TOKEN": f"Bearer {reference}"}, **values)
    return replace(PLAIN, template=template)


class Rig:
    def __init__(self, client, file, volumes="", **environ):
        self.client = client
        self.managed = Managed(client)
        self.secrets = Secrets(client, file)
        self.engine = FakeEngine(self.managed.instance().id)
        self.volumes = Volumes(parse_sources(volumes), every_s=0)
        self.environ = environ
        self.agent = self.made()

    def made(self):
        return Agent(
            Host("h", "http://127.0.0.1:8000", {}),
            self.engine,
            Devices(DeviceChoice(stand_ins=1), {}, pools_of=pools_of),
            managed=self.managed,
            agents=Agents(self.client),
            outputs=Outputs(self.client),
            wakeups=Wakeups(self.client),
            environ=self.environ,
            secrets=self.secrets,
            volumes=self.volumes,
        )

    def want(self, worker_id, spec):
        assert self.managed.want(worker_id, "ep", spec=spec)

    def until(self, condition):
        def turned():
            self.agent.turn()
            return condition()

        return wait_until(turned, 10)

    def phase(self, worker_id=W):
        return self.managed.get(worker_id).phase


@pytest.fixture
def make_rig(client, tmp_path):
    made = []

    def make(**options):
        made.append(Rig(client, tmp_path / "var" / "secrets.key", **options))
        return made[-1]

    yield make
    for rig in made:
        rig.agent.leave()


@pytest.mark.parametrize("reference", ["{{ SECRET_hub }}", "{{RUNPOD_SECRET_hub}}"])
def test_the_stored_secret_has_precedence_over_the_agents_own(make_rig, reference):
    rig = make_rig(OWNPOD_SECRET_hub="own")
    rig.secrets.put("hub", VALUE)
    rig.want(W, spec(reference))
    rig.until(lambda: rig.phase() is Phase.STARTING)
    (launch,) = rig.engine.launched
    assert launch.env["TOKEN"] == f"Bearer {VALUE}"
    assert VALUE not in repr(launch)
    dumped = [rig.client.dump(name) for name in rig.client.keys("*")]
    assert VALUE.encode() not in b"".join(part.encode(errors="ignore") for part in map(str, dumped))
    assert VALUE not in str(rig.client.hgetall(keys.managed(W)))


def test_a_worker_waits_for_a_key_file_that_is_gone_and_others_start(make_rig):
    rig = make_rig(OWNPOD_SECRET_hub="own")
    rig.secrets.put("hub", VALUE)
    file = rig.secrets.file.path
    kept = file.read_text()
    file.unlink()
    rig.want(W, spec())
    rig.want(X, PLAIN)
    rig.until(lambda: rig.phase(X) is Phase.STARTING)
    rig.until(lambda: "secret 'hub' cannot be read" in rig.managed.get(W).reason)
    reason = rig.managed.get(W).reason
    assert f"the key file {file} is not there" in reason
    assert "\n" not in reason
    assert rig.phase() is Phase.WANTED
    assert rig.managed.failures("ep").count == 0
    file.write_text(kept)
    rig.until(lambda: f"run chmod 600 {file}" in rig.managed.get(W).reason)
    file.chmod(0o600)
    rig.until(lambda: rig.phase() is Phase.STARTING)


def test_a_secret_of_another_key_is_a_reason_to_wait(make_rig):
    rig = make_rig()
    rig.secrets.put("hub", VALUE)
    rig.want(W, spec())
    file = rig.secrets.file
    with file.locked():
        file.make()
    rig.until(lambda: "encrypted with another key" in rig.managed.get(W).reason)
    assert rig.phase() is Phase.WANTED
    rig.secrets.put("hub", "again")
    rig.until(lambda: rig.phase() is Phase.STARTING)
    assert rig.engine.launched[0].env["TOKEN"] == "Bearer again"


def test_secrets_in_redis_that_are_broken_keep_only_those_waiting_that_need_them(make_rig):
    rig = make_rig()
    rig.client.set(keys.SECRETS, "x")
    rig.want(W, spec())
    rig.want(X, PLAIN)
    rig.until(lambda: rig.phase(X) is Phase.STARTING)
    rig.until(lambda: f"the secrets in {keys.SECRETS} of Redis" in rig.managed.get(W).reason)
    rig.client.delete(keys.SECRETS)
    rig.secrets.put("hub", VALUE)
    rig.until(lambda: rig.phase() is Phase.STARTING)


def test_a_secret_that_is_set_later_starts_the_worker(make_rig):
    rig = make_rig()
    rig.want(W, spec())
    rig.until(lambda: "`ownpod secrets set hub`" in rig.managed.get(W).reason)
    rig.secrets.put("hub", VALUE)
    rig.until(lambda: rig.phase() is Phase.STARTING)


@pytest.mark.parametrize("restart", [False, True])
def test_the_last_output_of_a_worker_is_kept_without_its_secrets(make_rig, restart):
    rig = make_rig()
    rig.secrets.put("hub", VALUE)
    rig.want(W, spec())
    rig.until(lambda: rig.phase() is Phase.STARTING)
    if restart:
        rig.agent.leave()
        rig.agent = rig.made()
    else:
        # It is the old value that the worker has.
        rig.secrets.put("hub", "another-value")
    rig.engine.log = lambda _worker, _lines=0: f"token {VALUE}\nbye"
    rig.engine.change(W, running=False, exit_code=1)
    rig.until(lambda: rig.phase() is Phase.STOPPED)
    assert rig.managed.get(W).log == "token ***\nbye"
    assert rig.managed.failures("ep").log == "token ***\nbye"


def test_output_whose_secrets_are_not_known_any_more_is_not_kept(make_rig):
    rig = make_rig()
    rig.secrets.put("hub", VALUE)
    rig.want(W, spec())
    rig.until(lambda: rig.phase() is Phase.STARTING)
    rig.agent.leave()
    rig.secrets.remove("hub")
    rig.agent = rig.made()
    rig.engine.log = lambda _worker, _lines=0: f"token {VALUE}\nbye"
    rig.engine.change(W, running=False, exit_code=1)
    rig.until(lambda: rig.phase() is Phase.STOPPED)
    assert (
        rig.managed.get(W).log
        == "(not kept, because the secret 'hub' cannot be read now to hide it)"
    )


def test_the_reason_of_a_start_that_failed_has_no_secret(make_rig, caplog):
    rig = make_rig()
    rig.secrets.put("hub", VALUE)
    rig.engine.start_error = f"ended at once: {VALUE}"
    rig.want(W, spec())
    rig.until(lambda: rig.phase() is Phase.STOPPED)
    assert rig.managed.get(W).reason == "ended at once: ***"
    assert VALUE not in caplog.text


# Volumes


def test_a_worker_starts_only_on_a_host_with_its_volume(make_rig, tmp_path):
    folder = tmp_path / "models"
    rig = make_rig(volumes=f"models={folder}")
    (volume,) = rig.volumes.read("process")
    assert volume.problem == f"{folder} does not exist"
    rig.want(W, replace(PLAIN, template=replace(PLAIN.template, volumes=parse_mounts("models"))))
    rig.want(X, PLAIN)
    rig.until(lambda: rig.phase(X) is Phase.STARTING)
    assert rig.phase() is Phase.WANTED
    assert rig.managed.get(W).volumes == ("models",)
    (host,) = Agents(rig.client).agents()
    assert host.volumes[0].problem == f"{folder} does not exist"
    folder.mkdir()
    rig.until(lambda: rig.phase() is Phase.STARTING)
    (host,) = Agents(rig.client).agents()
    assert host.volumes[0].problem == ""
    assert host.volumes[0].total_mb >= host.volumes[0].free_mb > 0
    launch = rig.engine.launched[-1]
    assert launch.env["OWNPOD_VOLUME_MODELS"] == "/runpod-volume"
