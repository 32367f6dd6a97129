"""Presets: their keys in both spellings, the endpoints that they make, and the one line of each wrong value."""

import pytest
import yaml
from helpers import load_settings

from ownpod.configuration import (
    custom_images,
    device_difficulties,
    keep_endpoints,
    kept_endpoints,
    load_endpoints,
)
from ownpod.errors import ConfigurationError
from ownpod.preset_errors import UnknownDifficulty, UnknownModel, UnknownPreset
from ownpod.registry import Registry
from ownpod.rules.endpoints import OnDisconnect
from ownpod.rules.fleet import Entries
from ownpod.rules.models import ModelSource
from ownpod.rules.presets import OutputMode, SessionLimits
from ownpod.rules.templates import (
    GpuNeed,
    Limits,
    Protocol,
    ScalerType,
    Scaling,
    Sharing,
    VolumeMount,
    spec_in,
    spec_text,
)

SERVICE_FILE = """
models:
  llama-7b:
    inference:
      docker_image: "llm-runner:latest"
      command: ["python", "inference.py"]
      env_vars:
        MODEL_NAME: "llama-7b"
        BATCH_SIZE: 8
    training:
      docker_image: "llm-trainer:latest"
      command: ["python", "train.py"]
  stable-diffusion-v2.1:
    inference: {docker_image: "sd-runner", command: "python 'my script.py'"}
"""
"""In the form of the GPU service's ``model_presets.yaml``."""

FULL = {
    "source": "hf://meta-llama/Llama-2-7b-hf@0123abc",
    "layout": "flat",
    "offline": False,
    "presets": {
        "inference": {
            "image": "llm-runner:2",
            "command": ["python", "inference.py"],
            "entrypoint": "/bin/tini --",
            "env": {"MODEL_NAME": "llama-7b", "FAST": True},
            "difficulty": "high",
            "limits": {"memory": "8g", "cpus": 2, "shm": "1g", "pids": 100, "gpus": 2},
            "output": "events",
            "session": {
                "idleTimeout": 60,
                "maxLifetime": 0,
                "queue": 2,
                "startTimeout": 900,
                "hardLifetime": True,
                "lifetimeFrom": "created",
                "evictable": True,
            },
            "oneOff": {"command": "python once.py"},
            "workers": {"min": 1, "max": 2, "idleTimeout": 30, "scalerType": "REQUEST_COUNT"},
            "residency": {"min": 20, "weight": 2, "pinned": True, "evictable": False},
            "volumes": [{"name": "data", "path": "/data", "readOnly": True}],
            "registry": "mine",
            "egress": False,
            "timeout": 1200,
            "ttl": 20_000,
            "maxAttempts": 2,
            "maxQueueDepth": 9,
            "onDisconnect": "keep",
            "apiKeys": ["secret"],
        }
    },
}


@pytest.fixture
def load(tmp_path):
    """Loads models of ``workers.yaml``, with more keys of the file, and settings."""

    def load(models, *, service=None, more=None, **environ):
        path = tmp_path / "workers.yaml"
        content = {**({} if models is None else {"models": models}), **(more or {})}
        if content:
            path.write_text(yaml.safe_dump(content, sort_keys=False))
            environ["OWNPOD_WORKERS_FILE"] = path
        else:
            environ["OWNPOD_WORKERS_FILE"] = ""
        if service is not None:
            file = tmp_path / "presets.yaml"
            file.write_text(service)
            environ["OWNPOD_PRESETS_FILE"] = file
        return load_endpoints(load_settings(**environ))

    return load


def one(**values):
    """A model with one preset."""
    return {"m": {"presets": {"p": {"image": "i", **values}}}}


# What a preset becomes.


def test_the_file_of_the_gpu_service_is_taken_as_it_is(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load(None, service=SERVICE_FILE)
    assert [*found] == [
        "llama-7b-inference",
        "llama-7b-training",
        "stable-diffusion-v2-1-inference",
    ]
    endpoint = found["llama-7b-inference"]
    spec, preset = endpoint.managed, endpoint.preset
    assert (preset.model_id, preset.name, preset.difficulty) == ("llama-7b", "inference", "low")
    assert spec.template.image == "llm-runner:latest"
    assert spec.template.command == ("python", "inference.py")
    assert spec.template.env == {"MODEL_NAME": "llama-7b", "BATCH_SIZE": "8"}
    assert spec.template.protocol is Protocol.PULL
    assert spec.gpu == GpuNeed(("low",), 1)
    assert spec.scaling.workers_max == 0
    assert preset.session == SessionLimits(300, 3600, 5)
    assert preset.output is OutputMode.AUTO
    assert preset.one_off.template.protocol is Protocol.CONTAINER
    assert preset.one_off.template.command == ("python", "inference.py")
    assert endpoint.execution_timeout_ms == 300_000
    assert endpoint.max_attempts == 1
    assert spec.template.model is None
    other = found["stable-diffusion-v2-1-inference"].managed.template
    assert (other.image, other.command) == ("sd-runner", ("python", "my script.py"))


def test_all_keys_of_a_preset_are_read(load):
    endpoint = load({"llama-7b": FULL})["llama-7b-inference"]
    spec, preset = endpoint.managed, endpoint.preset
    template = spec.template
    assert template.env == {"MODEL_NAME": "llama-7b", "FAST": "true"}
    assert template.entrypoint == ("/bin/tini", "--")
    assert template.limits == Limits(8 * 1024**3, 2.0, 1024**3, 100)
    assert template.init_timeout_s == 900
    assert template.volumes == (VolumeMount("data", "/data", read_only=True),)
    assert template.registry == "mine"
    assert (template.egress, preset.one_off.template.egress) == (False, False)
    assert preset.one_off.template.volumes == template.volumes
    assert template.sharing == Sharing(evictable=False, pinned=True, weight=2.0, residency_s=20.0)
    assert template.model == ModelSource(
        "llama-7b", "hf://meta-llama/Llama-2-7b-hf", "0123abc", flat=True, offline=False
    )
    assert spec.gpu == GpuNeed(("high",), 2)
    assert spec.scaling == Scaling(1, 2, 30, ScalerType.REQUEST_COUNT)
    assert preset.session == SessionLimits(
        60, 0, 2, hard_lifetime=True, from_created=True, evictable=True
    )
    assert preset.output is OutputMode.EVENTS
    assert preset.one_off.template.command == ("python", "once.py")
    assert preset.one_off.template.entrypoint == ("/bin/tini", "--")
    assert preset.one_off.gpu == spec.gpu
    assert (endpoint.execution_timeout_ms, endpoint.ttl_ms) == (1_200_000, 20_000)
    assert (endpoint.max_attempts, endpoint.max_queue_depth) == (2, 9)
    assert endpoint.on_disconnect is OnDisconnect.KEEP
    assert len(endpoint.api_keys) == 1


def test_a_preset_without_egress_is_known_to_agents_of_earlier_versions_by_its_field_only(load):
    plain, apart = (
        load(one(**more))["m-p"].managed for more in ({}, {"egress": False, "oneOff": False})
    )
    assert plain.template.egress
    assert '"egress"' not in spec_text(plain)
    assert spec_in(spec_text(plain)) == plain
    assert '"egress": false' in spec_text(apart)
    assert spec_in(spec_text(apart)) == apart
    assert plain.release != apart.release


@pytest.mark.parametrize(
    ("values", "protocol", "kinds"),
    [
        ({}, Protocol.PULL, (True, True)),
        ({"protocol": "runpod"}, Protocol.PULL, (True, False)),
        ({"protocol": "pull", "oneOff": {"command": "once"}}, Protocol.PULL, (True, True)),
        ({"protocol": "runpod-push"}, Protocol.PUSH, (True, False)),
        ({"protocol": "stdout"}, Protocol.PULL, (False, True)),
        ({"session": False}, Protocol.PULL, (False, True)),
        ({"oneOff": False}, Protocol.PULL, (True, False)),
    ],
)
def test_the_protocol_decides_which_tasks_a_preset_has(load, values, protocol, kinds):
    endpoint = load(one(**values))["m-p"]
    assert endpoint.managed.template.protocol is protocol
    assert (endpoint.preset.session is not None, endpoint.preset.one_off is not None) == kinds


def test_settings_are_the_defaults_of_presets_under_both_names(load):
    own = load(
        one(),
        OWNPOD_SESSION_IDLE_S=7,
        OWNPOD_SESSION_LIFETIME_S=8,
        OWNPOD_SESSION_QUEUE=9,
        OWNPOD_TASK_TIMEOUT_S=10,
        OWNPOD_TASK_MEMORY="2g",
        OWNPOD_TASK_CPUS="1.5",
        OWNPOD_MODELS_DIR="/data/models",
        OWNPOD_FILE_SERVICE_URL="http://files:1",
    )
    alias = load(
        one(),
        SESSION_IDLE_TIMEOUT_SECONDS=7,
        SESSION_MAX_LIFETIME_SECONDS=8,
        SESSION_QUEUE_MAX_SIZE=9,
        DEFAULT_TASK_TIMEOUT=10,
        TASK_MEMORY_LIMIT="2g",
        TASK_CPU_QUOTA=150_000,
        MODEL_CACHE_DIR="/data/models",
        FILE_SERVICE_URL="http://files:1",
    )
    assert own == alias
    endpoint = own["m-p"]
    assert endpoint.preset.session == SessionLimits(7, 8, 9)
    assert endpoint.execution_timeout_ms == 10_000
    assert endpoint.managed.template.limits == Limits(2 * 1024**3, 1.5)
    assert endpoint.managed.template.model == ModelSource("m", "file-service:")


def test_a_model_without_a_source_is_what_the_directory_of_models_has(load):
    template = load(one(), MODEL_CACHE_DIR="/data/models")["m-p"].managed.template
    assert template.model == ModelSource("m", "")


def test_a_preset_without_gpus_needs_no_device(load):
    endpoint = load(one(limits={"gpus": 0}))["m-p"]
    assert endpoint.managed.gpu is None
    assert endpoint.preset.for_difficulty(endpoint.managed, "high").gpu is None


def test_presets_stand_beside_endpoints_and_replace_the_default_worker_only(load):
    assert [*load(one())] == ["m-p"]
    both = load(one(), more={"endpoints": {"a": {"workers": [{"url": "http://h"}]}}})
    assert [*both] == ["a", "m-p"]
    assert both["a"].preset is None


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("hf://gpt2", ""),
        ("hf://a/b@v1.0", "v1.0"),
        ("s3://bucket/path/of/it", ""),
        ("https://user@h/m.bin?signature=1", ""),
        ("file:///data/m", ""),
        ("file-service:", ""),
    ],
)
def test_sources_of_models(load, source, revision):
    template = load({"m": {"source": source, "presets": {"p": {"image": "i"}}}})["m-p"].managed
    assert template.template.model == ModelSource("m", source.partition("@v")[0], revision)


@pytest.mark.parametrize(
    "source", ["hf://a/b/c", "hf://a b", "hf://../x", "file://data", "data", "ssh://h", 5, ""]
)
def test_a_wrong_source_stops_the_start(load, source):
    with pytest.raises(ConfigurationError, match=r"models\.m\.source: must be hf://owner/name"):
        load({"m": {"source": source, "presets": {"p": {"image": "i"}}}})


# Difficulties.


def test_a_difficulty_is_a_pool_and_never_spills_by_default(load):
    preset = load(one())["m-p"].preset
    assert preset.pools() == preset.pools("low") == ("low",)
    assert preset.pools("high") == ("high",)
    with pytest.raises(UnknownDifficulty, match="known difficulties: high, low") as caught:
        preset.pools("huge")
    assert caught.value.http_status == 400


def test_difficulties_have_pools_and_spill_in_order(load):
    more = {
        "difficulties": {
            "low": {"spill": ["huge", "high"]},
            "huge": {"pools": ["ADA_80_PRO", "80GB"]},
            "ADA_24": None,
        }
    }
    endpoint = load(one(**{"class": "ADA_24"}), more=more)["m-p"]
    preset = endpoint.preset
    assert endpoint.managed.gpu == GpuNeed(("ADA_24",), 1)
    assert preset.pools("low") == ("low", "ADA_80_PRO", "80GB", "high")
    assert preset.pools("huge") == ("ADA_80_PRO", "80GB")
    assert preset.for_difficulty(endpoint.managed, "low").gpu.pools == preset.pools("low")


def test_a_difficulty_may_spill_after_some_time(load):
    more = {"difficulties": {"low": {"spill": ["high"], "spillAfter": 30}}}
    endpoint = load(one(), more=more)["m-p"]
    preset = endpoint.preset
    assert preset.pools("low") == ("low", "high")
    assert preset.pools("low", at_once=True) == ("low",)
    assert preset.for_difficulty(endpoint.managed, at_once=True).gpu.pools == ("low",)
    assert preset.later() == {"spill": ["low", "high"], "spill_after_s": 30}
    assert preset.later("high") == {}
    at_once = load(one(), more={"difficulties": {"low": {"spill": ["high"]}}})["m-p"].preset
    assert at_once.pools(at_once=True) == ("low", "high")
    assert at_once.later() == {}


def test_devices_of_a_host_with_presets_have_a_difficulty(load):
    more = {"difficulties": {"huge": {"pools": ["80GB"]}}}
    endpoints = load(one(), more=more).values()
    found = device_difficulties(load_settings(GPU_DEVICE_DIFFICULTY="0:low,1:high"), endpoints)
    assert found.has_presets
    assert found.by_device == {"0": "low", "1": "high"}
    assert found.claimed == ("80GB",)
    assert not device_difficulties(load_settings(), []).has_presets


# Images.


def test_clients_may_name_the_images_of_presets_and_of_a_list_that_is_set(load):
    endpoints = load(None, service=SERVICE_FILE).values()
    presets = (
        "docker.io/library/llm-runner:latest",
        "docker.io/library/llm-trainer:latest",
        "docker.io/library/sd-runner:latest",
    )
    assert custom_images(load_settings(), endpoints) == presets
    listed = load_settings(ALLOWED_DOCKER_IMAGES="pytorch/pytorch:*,nvcr.io/nvidia/*")
    assert custom_images(listed, endpoints) == ("pytorch/pytorch:*", "nvcr.io/nvidia/*", *presets)
    assert custom_images(load_settings(OWNPOD_IMAGES="**"), endpoints)[0] == "**"


# Lookups.


class NoEntries:
    def entries(self):
        return Entries()


def test_the_registry_finds_presets_and_lists_those_that_there_are(load):
    endpoints = load(None, service=SERVICE_FILE)
    registry = Registry(endpoints, NoEntries(), load_settings())
    assert registry.preset("llama-7b", "training").id == "llama-7b-training"
    assert all(e.preset for e in registry.presets())
    assert len(registry.presets()) == 3
    with pytest.raises(UnknownModel):
        registry.preset("stable-diffusion-v2-1", "inference")
    with pytest.raises(UnknownModel) as no_model:
        registry.preset("llama", "7b-training")
    assert str(no_model.value) == (
        "model 'llama' has no presets; known models: llama-7b, stable-diffusion-v2.1"
    )
    with pytest.raises(UnknownPreset) as no_preset:
        registry.preset("llama-7b", "train")
    assert str(no_preset.value) == (
        "model 'llama-7b' has no preset 'train'; known presets: inference, training"
    )
    assert no_model.value.http_status == no_preset.value.http_status == 400


def test_presets_follow_a_reload_of_the_file_and_stay_while_it_is_broken(tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(yaml.safe_dump({"models": one()}))
    settings = load_settings(OWNPOD_WORKERS_FILE=file)
    registry = Registry(keep_endpoints(settings), NoEntries(), settings)
    file.write_text(yaml.safe_dump({"models": {**one(), "n": one()["m"]}}))
    registry.reload(keep_endpoints(settings))
    assert registry.preset("n", "p").id == "n-p"
    file.write_text("models: {m: {presets: {p: {}}}}")
    with pytest.raises(ConfigurationError):
        keep_endpoints(settings)
    assert [*kept_endpoints(settings)] == ["m-p", "n-p"]


# What stops the start.


@pytest.mark.parametrize(
    ("models", "place", "allowed"),
    [
        ([], "models", "must be an object of models by id"),
        ({"": {}}, "models.", "a model's id must be"),
        ({7: {"p": {"image": "i"}}}, "models.7", "a model's id must be a text"),
        ({"m": {}}, "models.m", "an object with presets"),
        ({"m": {"presets": {}}}, "models.m.presets", "an object of presets by name"),
        ({"m": {"source": "x://y", "presets": {"p": {}}}}, "models.m.source", "hf://owner/name"),
        ({"m": {"source": "hf://a/b"}}, "models.m.presets", "Missing data"),
        (
            {"m": {"source": "s3://b/k", "revision": "r", "presets": {"p": {}}}},
            "models.m.revision",
            "belongs to a source hf://",
        ),
        ({"m": {"a b": {"image": "i"}}}, "models.m.a b", "a preset's name must be"),
        ({"m": {"p": {}}}, "models.m.p.image", "needs an `image`"),
        ({"m": {"p": None}}, "models.m.p", "must be an object with the keys image"),
        ({"m": {"p": {"image": "-x"}}}, "models.m.p.image", "the reference of an image"),
        ({"m": {"p": {"docker_image": 5}}}, "models.m.p.docker_image", "the reference of an image"),
        (
            {"m": {"p": {"image": "i", "docker_image": "i"}}},
            "models.m.p.docker_image",
            "another word for image",
        ),
        (one(env={}, env_vars={}), "models.m.presets.p.env_vars", "another word for env"),
        (
            one(difficulty="low", **{"class": "low"}),
            "models.m.presets.p.class",
            "another word for difficulty",
        ),
        (one(volume_mounts={}), "models.m.presets.p.volume_mounts", "the keys are image, command"),
        (one(protocol="jsonl"), "models.m.presets.p.protocol", "one of runpod, pull, runpod-push"),
        (one(output="html"), "models.m.presets.p.output", "one of auto, text, events"),
        (one(difficulty="hard"), "models.m.presets.p.difficulty", "must be one of high, low"),
        (one(**{"class": "hard"}), "models.m.presets.p.class", "must be one of high, low"),
        (one(limits={"gpus": 65}), "models.m.presets.p.limits.gpus", "from 0 to 64"),
        (one(limits={"memory": "1"}), "models.m.presets.p.limits.memory", "a size such as 512m"),
        (one(session=True), "models.m.presets.p.session", "must be false, or an object with the"),
        (one(session={"idle": 1}), "models.m.presets.p.session.idle", "the keys are idleTimeout"),
        (one(session={"queue": -1}), "models.m.presets.p.session.queue", "from 0 to 10000"),
        (
            one(session={"lifetimeFrom": "x"}),
            "models.m.presets.p.session.lifetimeFrom",
            "one of ready, created",
        ),
        (one(session=False, oneOff=False), "models.m.presets.p.session", "one of them is needed"),
        (
            one(session={"queue": 1}, protocol="stdout"),
            "models.m.presets.p.session",
            "needs the protocol runpod",
        ),
        (one(oneOff={"env": {}}), "models.m.presets.p.oneOff.env", "the keys are image, command"),
        (
            one(workers={"min": 1}),
            "models.m.presets.p.workers.min",
            "must be at most max, which is 0",
        ),
        (one(timeout=4), "models.m.presets.p.timeout", "from 5 to 604800"),
        (one(apiKeys=[1]), "models.m.presets.p.apiKeys.0", "must be a text"),
        (one(env={"A B": 1}), "models.m.presets.p.env", "a variable's name"),
    ],
)
def test_a_wrong_preset_is_one_line_with_its_place_and_what_is_allowed(
    load, models, place, allowed
):
    with pytest.raises(ConfigurationError) as caught:
        load(models)
    message = str(caught.value)
    assert f"workers.yaml: {place}" in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("difficulties", "place", "allowed"),
    [
        ([], "difficulties", "must be an object of difficulties by name"),
        ({"a b": {}}, "difficulties.a b", "letters, digits, dots"),
        ({"low": {"to": []}}, "difficulties.low.to", "the keys are pools, spill"),
        ({"low": {"spill": ["hard"]}}, "difficulties.low.spill", "must be some of high"),
        ({"low": {"spill": ["low"]}}, "difficulties.low.spill", "no other difficulty"),
        ({"low": {"spillAfter": 30}}, "difficulties.low.spillAfter", "a difficulty with spill"),
        ({"low": {"spillAfter": "x"}}, "difficulties.low.spillAfter", "whole number of seconds"),
        ({"low": {"pools": []}}, "difficulties.low.pools", "a list of pools"),
    ],
)
def test_a_wrong_difficulty_is_one_line(load, difficulties, place, allowed):
    with pytest.raises(ConfigurationError) as caught:
        load(one(), more={"difficulties": difficulties})
    assert f"workers.yaml: {place}" in str(caught.value)
    assert allowed in str(caught.value)


def test_two_presets_with_one_endpoint_id_stop_the_start_with_both_places(load):
    with pytest.raises(ConfigurationError) as caught:
        load({"a.b": {"p": {"image": "i"}}, "a-b": {"p": {"image": "i"}}})
    message = str(caught.value)
    assert "models.a-b.p: its endpoint 'a-b-p' is also that of" in message
    assert "models.a.b.p: rename one of them" in message


def test_a_preset_of_both_files_or_of_an_endpoint_stops_the_start(load):
    with pytest.raises(ConfigurationError, match=r"presets.yaml: models.m.p: .*workers.yaml"):
        load(one(), service="models: {m: {p: {image: i}}}")
    with pytest.raises(ConfigurationError, match="defined under `endpoints`, too"):
        load(one(), more={"endpoints": {"m-p": {}}})
    with pytest.raises(ConfigurationError, match="leave them out in one file"):
        load(
            one(),
            more={"difficulties": {}},
            service="{difficulties: {}, models: {n: {p: {image: i}}}}",
        )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"OWNPOD_PRESETS_FILE": "/no/such/file"},
            "OWNPOD_PRESETS_FILE=/no/such/file: there is no",
        ),
        (
            {"GPU_DEVICE_DIFFICULTY": "0:hard"},
            "the difficulty 'hard' is unknown: must be one of high",
        ),
        (
            {"GPU_DEVICE_DIFFICULTY": "GPU0:low"},
            "GPU_DEVICE_DIFFICULTY='GPU0:low': .* must be <index",
        ),
        ({"GPU_DEVICE_DIFFICULTY": "0:low,0:high"}, "the device must be there once"),
        (
            {"GPU_DEVICE_IDS": "first"},
            "GPU_DEVICE_IDS='first': must be a comma-separated list of GPU",
        ),
        ({"SESSION_IDLE_TIMEOUT_SECONDS": "soon"}, "SECONDS='soon': must be a whole number from 0"),
        ({"SESSION_QUEUE_MAX_SIZE": "-1"}, "SESSION_QUEUE_MAX_SIZE='-1': must be a whole number"),
        ({"DEFAULT_TASK_TIMEOUT": "2000"}, "must be at most OWNPOD_MAX_TASK_TIMEOUT_S"),
        ({"MAX_TASK_TIMEOUT": "1"}, "MAX_TASK_TIMEOUT='1': must be a whole number from 5"),
        ({"TASK_MEMORY_LIMIT": "much"}, "TASK_MEMORY_LIMIT='much': must be a size such as 512m"),
        ({"TASK_CPU_QUOTA": "1.5"}, "TASK_CPU_QUOTA='1.5': must be a whole number of microseconds"),
        ({"ALLOWED_DOCKER_IMAGES": "a b"}, "ALLOWED_DOCKER_IMAGES='a b': 'a b' must be an image"),
        ({"FILE_SERVICE_URL": "files"}, "FILE_SERVICE_URL='files': must be an http"),
        ({"AUTO_FETCH_MODELS": "perhaps"}, "AUTO_FETCH_MODELS='perhaps': must be true or false"),
        ({"INTERNAL_API_KEY": "a b"}, r"INTERNAL_API_KEY=\.\.\.: "),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_name_that_was_used(load, settings, problem):
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load(one(), **settings)
    assert "\n" not in str(caught.value)


def test_a_presets_file_has_models_only(load):
    with pytest.raises(ConfigurationError, match="presets.yaml: models: Missing data"):
        load(None, service="{}")
    with pytest.raises(ConfigurationError, match="presets.yaml: endpoints: Unknown field"):
        load(None, service="{endpoints: {}, models: {}}")
