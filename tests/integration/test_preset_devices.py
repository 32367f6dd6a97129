"""An agent publishes the difficulties of its devices, and workers of a difficulty are placed on its devices only."""

import time
from dataclasses import replace

import pytest
import yaml
from fake_engine import FakeEngine
from helpers import load_settings, wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.configured import Configured
from ownpod.agent.devices import Devices
from ownpod.agent.steps import Host
from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError
from ownpod.rules.managed import Phase
from ownpod.rules.placement import pools_of
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

pytestmark = pytest.mark.slow

PRESET = {"image": "i", "command": ["python"]}
MODELS = {"m": {"presets": {"p": PRESET}}}
IDS = ("aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc")


class Rig:
    """An agent with the configuration of a file and of an environment, turned by hand."""

    def __init__(self, client, file, **environ):
        self.managed, self.agents = Managed(client), Agents(client)
        self.settings = load_settings(OWNPOD_WORKERS_FILE=file, **environ)
        self.configured = Configured(self.settings)
        self.agent = Agent(
            Host("h", "http://127.0.0.1:8000", {}, self.configured.images),
            FakeEngine(self.managed.instance().id),
            Devices(
                self.settings.devices,
                self.settings.labels,
                pools_of=pools_of,
                difficulties=self.configured.difficulties,
            ),
            managed=self.managed,
            agents=self.agents,
            outputs=Outputs(client),
            wakeups=Wakeups(client),
            environ={},
            clock=time.monotonic,
        )

    def published(self):
        """The pools of each device, and the images, as other processes read them."""
        self.agent.turn()
        (info,) = self.agents.agents()
        return {device.id: device.pools for device in info.devices}, info.images


@pytest.fixture
def rig(client, tmp_path):
    made = []

    def make(content, **environ):
        file = tmp_path / "workers.yaml"
        file.write_text(yaml.safe_dump(content))
        made.append(Rig(client, file, **environ))
        return made[-1], file

    yield make
    for each in made:
        each.agent.leave()


def test_workers_of_a_difficulty_are_placed_on_its_devices_only(rig):
    seed = {"OWNPOD_DEVICES": "cpu:3", "GPU_DEVICE_DIFFICULTY": "0:low,1:high"}
    found, _ = rig({"models": MODELS}, **seed)
    pools, _ = found.published()
    assert pools == {"cpu-0": ("low",), "cpu-1": ("high",), "cpu-2": ("low",)}
    endpoint = load_endpoints(found.settings)["m-p"]
    spec = endpoint.preset.for_difficulty(endpoint.managed, "high")
    for worker_id in IDS:
        assert found.managed.want(worker_id, endpoint.id, spec=spec)

    def placed():
        found.agent.turn()
        workers = [found.managed.get(worker_id) for worker_id in IDS]
        return [worker for worker in workers if worker.phase is not Phase.WANTED]

    wait_until(placed, 10)
    (one,) = placed()
    assert one.devices == ("cpu-1",)
    waiting = [found.managed.get(worker_id) for worker_id in IDS if worker_id != one.id]
    assert [worker.phase for worker in waiting] == [Phase.WANTED] * 2
    assert {hold.device for hold in found.agents.holds("h")} == {"cpu-1"}


def test_a_difficulty_that_spills_takes_its_own_devices_first(rig):
    content = {"models": MODELS, "difficulties": {"low": {"spill": ["high"]}}}
    found, _ = rig(content, OWNPOD_DEVICES="cpu:2", OWNPOD_DIFFICULTIES="0:high")
    endpoint = load_endpoints(found.settings)["m-p"]
    for worker_id in IDS:
        assert found.managed.want(worker_id, endpoint.id, spec=endpoint.managed)

    def devices():
        found.agent.turn()
        return [found.managed.get(worker_id).devices for worker_id in IDS]

    wait_until(lambda: sum(map(bool, devices())) == 2, 10)
    assert sorted(devices()) == [(), ("cpu-0",), ("cpu-1",)]
    first = min(IDS, key=lambda worker_id: (found.managed.get(worker_id).created_ms, worker_id))
    assert found.managed.get(first).devices == ("cpu-1",)


def test_presets_of_a_reload_give_devices_their_difficulty_and_allow_their_images(rig):
    found, file = rig({"endpoints": {}}, OWNPOD_DEVICES="cpu:1", OWNPOD_IMAGES="team/*")
    assert found.published() == ({"cpu-0": ()}, ("team/*",))
    file.write_text(yaml.safe_dump({"models": MODELS}))
    found.configured.reload()
    assert found.published() == ({"cpu-0": ("low",)}, ("team/*", "docker.io/library/i:latest"))
    file.write_text("models: [")
    found.configured.reload()
    assert found.published()[0] == {"cpu-0": ("low",)}


def test_a_broken_file_stops_an_agent_only_where_presets_are_asked_for(rig, tmp_path):
    found, file = rig({"models": {"m": {}}}, OWNPOD_DEVICES="cpu:1")
    assert found.published() == ({"cpu-0": ()}, ("**",))
    presets = tmp_path / "presets.yaml"
    presets.write_text("models: {}")
    settings = replace(found.settings, presets_file=presets)
    with pytest.raises(ConfigurationError, match=r"models.m: must be an object with presets"):
        Configured(settings)
    file.write_text("endpoints: {}")
    assert not Configured(settings).difficulties().has_presets
