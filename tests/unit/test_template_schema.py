"""The keys of an endpoint with a template, and secrets in its variables."""

import json
import math

import pytest
import yaml
from helpers import load_settings
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from ownpod.configuration import load_endpoints, make_endpoint
from ownpod.configuration.templates import TemplateSchema
from ownpod.errors import ConfigurationError
from ownpod.rules.secrets import SecretMissing, missing_secrets, of_environment, resolve
from ownpod.rules.templates import (
    GpuNeed,
    Limits,
    ManagedSpec,
    Protocol,
    ScalerType,
    Scaling,
    Sharing,
    Template,
    VolumeMount,
)

pytestmark = pytest.mark.slow

FULL = {
    "template": {
        "image": "registry.example.com:5000/team/worker-x:1.0",
        "command": "python -u 'my handler.py'",
        "entrypoint": ["/bin/tini", "--", 1],
        "env": {"MODEL": "small", "STEPS": 20, "RATIO": 0.5, "FAST": True, "EMPTY": ""},
        "limits": {"memory": "16g", "cpus": 2.5, "shm": "512m", "pids": 500},
        "protocol": "push",
        "initTimeout": 60,
        "volumes": {"models": "/models"},
    },
    "workersMin": 1,
    "workersMax": 4,
    "idleTimeout": 30,
    "scalerType": "REQUEST_COUNT",
    "scalerValue": 2,
    "gpu": {"pools": "ADA_24, NVIDIA L4,ADA_24", "count": 2},
}


def load(tmp_path, endpoint):
    path = tmp_path / "workers.yaml"
    path.write_text(yaml.safe_dump({"endpoints": {"a": endpoint}}))
    return load_endpoints(load_settings(OWNPOD_WORKERS_FILE=path))["a"]


def test_all_keys_of_a_template_are_read_from_the_file(tmp_path):
    endpoint = load(tmp_path, FULL)
    assert endpoint.managed == ManagedSpec(
        Template(
            image="registry.example.com:5000/team/worker-x:1.0",
            command=("python", "-u", "my handler.py"),
            entrypoint=("/bin/tini", "--", "1"),
            env={"MODEL": "small", "STEPS": "20", "RATIO": "0.5", "FAST": "true", "EMPTY": ""},
            limits=Limits(16 * 1024**3, 2.5, 512 * 1024**2, 500),
            protocol=Protocol.PUSH,
            init_timeout_s=60,
            volumes=(VolumeMount("models", "/models"),),
        ),
        Scaling(1, 4, 30, ScalerType.REQUEST_COUNT, 2),
        GpuNeed(("ADA_24", "NVIDIA L4"), 2),
    )
    assert endpoint.pause_at(0) is None


def test_an_endpoint_of_run_time_has_the_same_keys_as_one_of_the_file(tmp_path):
    added = make_endpoint("a", json.loads(json.dumps(FULL)))
    assert added.managed == load(tmp_path, FULL).managed


def test_an_endpoint_without_a_template_is_not_managed(tmp_path):
    endpoint = load(tmp_path, {"workers": [{"url": "http://h:1"}]})
    assert endpoint.managed is None
    assert endpoint.pause_at(0) is None


def test_an_endpoint_may_have_workers_and_a_template_whose_defaults_are_runpods(tmp_path):
    given = {"workers": [{"url": "http://h:1"}], "template": {"image": "x"}, "gpu": {}}
    endpoint = load(tmp_path, given)
    assert len(endpoint.workers) == 1
    spec = endpoint.managed
    assert spec.scaling == Scaling(0, 3, 5, ScalerType.QUEUE_DELAY, 4)
    assert (spec.gpu, spec.template.limits) == (GpuNeed((), 1), Limits())
    assert (spec.template.protocol, spec.template.init_timeout_s) == (Protocol.PULL, 420)


def test_an_endpoint_with_no_workers_at_most_is_paused(tmp_path):
    assert load(tmp_path, {"template": {"command": "x"}, "workersMax": 0}).pause_at(0)


def test_the_time_to_the_first_request_comes_from_runpods_variable_unless_it_is_given():
    template = {"command": "x", "env": {"RUNPOD_INIT_TIMEOUT": 900}}
    assert make_endpoint("a", {"template": template}).managed.template.init_timeout_s == 900
    template["initTimeout"] = 10
    assert make_endpoint("a", {"template": template}).managed.template.init_timeout_s == 10


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (6 * 1024**2, 6 * 1024**2),
        ("8388608", 8 * 1024**2),
        ("512m", 512 * 1024**2),
        ("512 MiB", 512 * 1024**2),
        ("1.5G", 3 * 512 * 1024**2),
        ("16gb", 16 * 1024**3),
        ("1t", 1024**4),
    ],
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit_of_1024(size, expected):
    template = {"command": "x", "limits": {"memory": size}}
    assert make_endpoint("a", {"template": template}).managed.template.limits.memory_bytes == (
        expected
    )


@pytest.mark.parametrize(
    "pool",
    [
        "GPU-7c1f6d0e-1111-2222-3333-444455556666",
        "NVIDIA A100-SXM4-80GB",
        "-NVIDIA A30",
        "cpu-0",
        "24GB",
        "A100*",
    ],
)
def test_a_pool_may_be_an_id_a_name_or_an_exclusion(pool):
    values = {"template": {"command": "x"}, "gpu": {"pools": ["ADA_24", pool]}}
    assert make_endpoint("a", values).managed.gpu.pools == ("ADA_24", pool)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("workersMin", 5, "workersMin: must be at most workersMax, which is 4"),
        ("workersMin", -1, "workersMin: must be a whole number from 0 to 10000"),
        ("workersMax", True, "workersMax: must be a whole number from 0 to 10000"),
        ("workersMax", None, "workersMax: must be a whole number from 0 to 10000"),
        ("idleTimeout", 0, "idleTimeout: must be a whole number of seconds from 1 to 3600"),
        ("idleTimeout", 3601, "idleTimeout: must be a whole number of seconds from 1 to 3600"),
        ("idleTimeout", 1.5, "idleTimeout: must be a whole number of seconds from 1 to 3600"),
        ("scalerType", "queue", "scalerType: must be one of QUEUE_DELAY, REQUEST_COUNT"),
        ("scalerValue", 0.5, "scalerValue: must be a number from 1 to 100000"),
        ("scalerValue", math.nan, "scalerValue: must be a number from 1 to 100000"),
        ("scalerValue", "4", "scalerValue: must be a number from 1 to 100000"),
        ("gpu", "ADA_24", "gpu: must be an object with the keys pools, count"),
        ("gpu", None, "gpu: must be an object with the keys pools, count"),
        ("gpu.count", 0, "gpu.count: must be a whole number from 1 to 64"),
        ("gpu.pools", [], "gpu.pools: must be a list of pools"),
        ("gpu.pools", ["a\nb"], "gpu.pools: must be a list of pools"),
        ("gpu.pool", "x", "gpu.pool: is not a key here; the keys are pools, count"),
        ("template", None, "template: must be an object with the keys image, command"),
        ("template", "x", "template: must be an object with the keys image, command"),
        ("template", {}, "template: needs an `image`, for the engine docker, or a `command`"),
        ("template.img", "x", "template.img: is not a key here; the keys are image, command"),
        ("template.image", "--privileged", "template.image: must be the reference of an image"),
        ("template.image", "a b", "template.image: must be the reference of an image"),
        ("template.image", "x" * 513, "template.image: must be the reference of an image"),
        ("template.command", "python 'x", "template.command: must be a list of texts, or one"),
        ("template.command", 5, "template.command: must be a list of texts, or one"),
        ("template.command", ["a\0"], "template.command: must be a list of texts, or one"),
        ("template.entrypoint", [None], "template.entrypoint: must be a list of texts, or one"),
        ("template.env", ["A=1"], "template.env: must be an object with a value"),
        ("template.env", None, "template.env: must be an object with a value for each variable"),
        ("template.env", {"A-B": "1"}, "template.env: a variable's name has letters, digits"),
        ("template.env", {1: "1"}, "template.env: a variable's name has letters, digits"),
        ("template.env.A", None, "template.env.A: must be a text, a number, true or false"),
        ("template.env.A", "x\0", "template.env.A: must be at most 131071 bytes of UTF-8"),
        ("template.env.A", "x" * 131072, "template.env.A: must be at most 131071 bytes"),
        ("template.env.A", "{{ RUNPOD_SECRET_a-b }}", "template.env.A: a secret is {{ RUNPOD_S"),
        (
            "template.env.RUNPOD_INIT_TIMEOUT",
            "soon",
            "template.env.RUNPOD_INIT_TIMEOUT: must be a whole number of seconds from 1 to 86400",
        ),
        ("template.limits.memory", "16 GiBs", "template.limits.memory: must be a size such as"),
        ("template.limits.memory", "5m", "template.limits.memory: must be a size such as 512m"),
        ("template.limits.memory", "9999999999t", "template.limits.memory: must be a size"),
        ("template.limits.shm", 1.5, "template.limits.shm: must be a size such as 512m or 16g"),
        ("template.limits.cpus", 0, "template.limits.cpus: must be a number from 0.01 to 1024"),
        ("template.limits.pids", 0, "template.limits.pids: must be a whole number from 1"),
        ("template.limits.disk", 1, "template.limits.disk: is not a key here; the keys are mem"),
        ("template.protocol", "smtp", "template.protocol: must be one of pull, push, http"),
        ("template.initTimeout", 0, "template.initTimeout: must be a whole number of seconds"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_endpoint_field_and_what_is_allowed(
    tmp_path, key, value, says
):
    changed = json.loads(json.dumps(FULL))
    if key.startswith("template.env.RUNPOD"):
        del changed["template"]["initTimeout"]
    *path, last = key.split(".")
    target = changed
    for part in path:
        target = target[part]
    target[last] = value
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, changed)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'workers.yaml'}: endpoints.a.{says}")
    assert "\n" not in message


@pytest.mark.parametrize(
    "key", ["workersMin", "workersMax", "idleTimeout", "scalerType", "scalerValue", "gpu"]
)
def test_scaling_without_a_template_is_refused(tmp_path, key):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, {key: FULL[key]})
    assert f"endpoints.a.{key}: has no effect without a `template`" in str(caught.value)


def test_a_value_of_a_variable_is_in_no_error_and_in_no_text_of_the_endpoint():
    template = {"command": "x", "env": {"A": "hidden-value"}}
    assert "hidden-value" not in repr(make_endpoint("a", {"template": template}))
    for wrong in ("hidden-value\0", "{{ RUNPOD_SECRET_hidden-value }}", ["hidden-value"]):
        with pytest.raises(ValidationError) as caught:
            make_endpoint("a", {"template": {"command": "x", "env": {"A": wrong}}})
        assert "hidden-value" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys([*FULL, "maxWorkers"], JSON),
            "template": JSON
            | st.fixed_dictionaries({}, optional=dict.fromkeys(FULL["template"], JSON)),
        },
    )
)
def test_any_values_make_an_endpoint_or_one_kind_of_error(values):
    try:
        endpoint = make_endpoint("a", values)
    except ValidationError:
        return
    assert (endpoint.managed is not None) == ("template" in values)


def spec(**env):
    return ManagedSpec(Template(command=("x",), env=env))


def test_a_secret_is_resolved_from_the_agents_own_variable_only():
    env = {"A": "Bearer {{ RUNPOD_SECRET_key }}{{RUNPOD_SECRET_two}}", "B": "{{ other }}"}
    environ = {"OWNPOD_SECRET_key": "{{ RUNPOD_SECRET_two }}", "OWNPOD_SECRET_two": "\\1"}
    values = of_environment(environ | {"key": "x"})
    assert missing_secrets(spec(**env), values) == ()
    assert resolve(env, values) == {"A": "Bearer {{ RUNPOD_SECRET_two }}\\1", "B": "{{ other }}"}


def test_a_secret_that_is_not_there_is_named_in_one_line():
    env = {"A": "{{ RUNPOD_SECRET_z }}{{ RUNPOD_SECRET_a }}", "B": "{{ RUNPOD_SECRET_a }}"}
    assert missing_secrets(spec(**env), {"b": "x"}) == ("a", "z")
    with pytest.raises(SecretMissing) as caught:
        resolve(env, {"z": "hidden"})
    assert str(caught.value) == (
        "secret 'a' of the template's variable A is not there: "
        "use `ownpod secrets set a`, or set OWNPOD_SECRET_a where the agent runs"
    )


# Sharing of devices.


def test_the_keys_of_sharing_are_part_of_a_template():
    keys = {"evictable": False, "pinned": True, "weight": 2, "residency": 0.5}
    template = TemplateSchema().load({"command": ["w"]} | keys)
    assert template.sharing == Sharing(False, True, 2.0, 0.5)
    assert TemplateSchema().load({"command": ["w"]}).sharing == Sharing()


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("evictable", "yes", "must be true or false"),
        ("pinned", 1, "must be true or false"),
        ("weight", 0, "must be a number from 0.01 to 1000"),
        ("weight", True, "must be a number from 0.01 to 1000"),
        ("residency", -1, "must be a number from 0 to 86400"),
        ("residency", float("nan"), "must be a number from 0 to 86400"),
    ],
)
def test_a_wrong_key_of_sharing_is_refused_with_what_is_allowed(key, value, allowed):
    with pytest.raises(ValidationError) as raised:
        TemplateSchema().load({"command": ["w"], key: value})
    assert raised.value.messages == {key: [allowed]}
