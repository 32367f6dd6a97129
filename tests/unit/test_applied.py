"""Endpoints of a file: what applying it would change, and what an export of the catalog has."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ownpod.configuration import make_endpoint
from ownpod.errors import BadRequest
from ownpod.management.applied_file import read, wanted_of, write
from ownpod.rules.applied import (
    FILE_KEYS,
    Action,
    VariableUnknown,
    as_row,
    file_entry,
    left_over,
    step_of,
)
from ownpod.rules.balancing import Balancing
from ownpod.rules.catalog import Container, Cpu, EndpointRow, EndpointType, FlashBoot, Gpu
from ownpod.rules.catalog_changes import entry_of, released
from ownpod.rules.gpu_types import GPU_TYPES, POOLS
from ownpod.rules.templates import ScalerType

TEXT = """
project: shop
endpoints:
  chat:
    name: Chat
    template:
      image: you/chat:1
      env: {MODEL: small, PORT: 8000, TOKEN: null}
      limits: {memory: 16g}
      protocol: pull
    gpu: {pools: [NVIDIA L4, ADA_24, -NVIDIA A30], count: 2}
    workersMax: 5
    ttl: 60000
    maxAttempts: 3
    expires: 2030-01-02
  embed: {template: {image: "you/embed:1"}}
"""


def wanted(**values):
    return wanted_of("e", {"template": {"image": "img:1"}, **values})


def changed(row, step):
    return {d.field for d in step.differences}, step.restarts


def test_a_file_has_endpoints_with_the_defaults_of_workers_yaml():
    found = read(TEXT, "f")
    chat, embed = found.endpoints
    assert (found.project, chat.id, chat.name, embed.name) == ("shop", "chat", "Chat", "embed")
    assert chat.env == {"MODEL": "small", "PORT": "8000", "TOKEN": None}
    assert chat.gpu == (("NVIDIA L4", "ADA_24", "-NVIDIA A30"), 2)
    assert (chat.workers_max, embed.workers_max, embed.timeout_ms) == (5, 3, 600_000)
    assert chat.expires_ms == 1_893_542_400_000
    # `protocol` and `maxAttempts` are at their defaults.
    assert chat.own == {"ttl": "60000", "template.limits": '{"memory": "16g"}'}
    assert embed.own == {}


def test_a_load_balanced_endpoint_has_its_keys_and_the_processing_limit_of_its_type():
    one = wanted(type="LB", capacity=1, holdTimeout=120)
    # `holdTimeout` is at its default.
    assert (one.type, one.own) == (EndpointType.LOAD_BALANCER, {"capacity": "1"})
    row = as_row(None, one)
    assert (row.timeout_ms, row.scaler) == (0, ScalerType.REQUEST_COUNT)
    assert make_endpoint("e", entry_of(row)).balancing == Balancing(capacity=1)
    # RunPod's GraphQL accepts a delay for an endpoint without a queue.
    by_delay = replace(row, scaler=ScalerType.QUEUE_DELAY)
    assert entry_of(by_delay)["scalerType"] == "REQUEST_COUNT"
    assert step_of(by_delay, one) is None


def test_the_example_has_a_load_balanced_endpoint():
    text = (Path(__file__).parents[2] / "examples" / "deploy" / "endpoints.yaml").read_text()
    (one,) = read(text, "f").endpoints
    assert one.type is EndpointType.LOAD_BALANCER


def test_a_new_endpoint_runs_with_all_its_keys_and_has_the_mark_of_its_file():
    step = step_of(None, replace(read(TEXT, "f").endpoints[0], env={"A": "1"}), "shop")
    assert (step.action, step.row.applied, step.restarts) == (Action.CREATE, "shop", False)
    endpoint = make_endpoint("chat", entry_of(step.row))
    spec = endpoint.managed
    assert (endpoint.ttl_ms, spec.template.limits.memory_bytes) == (60_000, 16 * 1024**3)
    assert spec.gpu.pools == ("NVIDIA L4", "ADA_24", "-NVIDIA A30")
    assert step.row.gpu == Gpu(("ADA_24",), ("NVIDIA L4",), ("NVIDIA A30",), 2)


@pytest.mark.parametrize(
    ("values", "fields", "restarts"),
    [
        ({"template": {"image": "img:2"}}, {"template.imageName"}, True),
        ({"template": {"image": "img:1", "limits": {"cpus": 2}}}, {"template.limits"}, True),
        ({"template": {"image": "img:1", "initTimeout": 9}}, {"template.initTimeout"}, False),
        ({"ttl": 10_000, "maxQueueDepth": 7}, {"ttl", "maxQueueDepth"}, False),
        ({"apiKeys": ["sha256:" + "0" * 64]}, {"apiKeys"}, False),
        ({"workersMax": 9, "name": "n"}, {"workersMax", "name"}, False),
    ],
)
def test_a_step_names_what_changes_and_whether_workers_are_replaced(values, fields, restarts):
    old = released(None, as_row(None, wanted()), 1)
    step = step_of(old, wanted(**values))
    assert changed(old, step) == (fields, restarts)
    assert released(old, step.row, 2).version == (2 if restarts else 1)
    # And back.
    assert changed(step.row, step_of(step.row, wanted())) == (fields, restarts)
    assert step_of(step.row, wanted(**values)) is None


def test_variables_without_a_value_keep_theirs_and_others_go():
    old = as_row(None, wanted(template={"image": "img:1", "env": {"A": "secret", "B": "b"}}))
    step = step_of(old, wanted(template={"image": "img:1", "env": {"A": None, "C": 1}}))
    assert step.row.container.env == {"A": "secret", "C": "1"}
    assert "secret" not in repr(step)
    with pytest.raises(VariableUnknown, match=r"template\.env\.X"):
        step_of(old, wanted(template={"image": "img:1", "env": {"X": None}}))
    with pytest.raises(VariableUnknown, match=r"template\.env\.A"):
        step_of(None, wanted(template={"image": "img:1", "env": {"A": None}}))


def test_fields_that_the_file_cannot_have_stay():
    old = replace(
        as_row(None, wanted()),
        flashboot=FlashBoot.FLASHBOOT,
        cuda_allowed=("12.4",),
        container=Container(image="img:1", ports=("80/http",), disk_gb=7),
        sent={"v1": "{}"},
        cpus=(Cpu("cpu3g"),),
    )
    assert step_of(old, wanted()) is None
    assert step_of(old, wanted(idleTimeout=9)).row == replace(old, idle_s=9)
    assert step_of(old, wanted(gpu={"count": 1})).row.cpus == ()


def test_an_endpoint_leaves_its_template_only_if_its_container_changes():
    bound = replace(as_row(None, wanted()), template_id="t")
    assert step_of(bound, wanted(workersMax=1)).row.template_id == "t"
    left = step_of(bound, wanted(template={"image": "img:2"}))
    assert left.row.template_id is None
    assert "templateId" in changed(bound, left)[0]
    own = replace(bound, own_template=True)
    assert step_of(own, wanted(template={"image": "img:2"})).row.template_id == "t"


def test_only_endpoints_of_the_same_file_are_left_over():
    rows = {
        name: replace(as_row(None, wanted()), id=name, applied=applied)
        for name, applied in (("a", "shop"), ("e", "shop"), ("b", "other"), ("c", ""))
    }
    assert [row.id for row in left_over(rows, [wanted()], "shop")] == ["a"]
    assert left_over(rows, [wanted()], "") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "f: not YAML: "),
        ("a: 1", "f: endpoints: must be an object"),
        ("endpoints: {}\nowner: 1", "f: owner: is not a key here; the keys are endpoints, project"),
        ("endpoints: {}\nproject: 'a b'", "f: project: must be"),
        ("endpoints: {a b: {}}", "f: endpoints.a b: an endpoint's id must be"),
        ("endpoints: {e: 1}", "f: endpoints.e.template: is needed"),
        ("endpoints: {serverless: {template: {image: x}}}", "f: endpoints.serverless.id: cannot"),
        ("endpoints: {e: {template: {image: x}}, e: {}}", "f: not YAML: the key 'e' is there"),
        ("endpoints: {e: {template: {imag: x}}}", "f: endpoints.e.template.imag: is not a key"),
        ("endpoints: {e: {template: {image: x}, worker: 1}}", "f: endpoints.e.worker: is not a"),
        ("endpoints: {e: {template: {image: x}, workers: []}}", "`ownpod workers add`"),
        ("endpoints: {e: {template: {image: x}, name: 1}}", "f: endpoints.e.name: must be a text"),
        ("endpoints: {e: {template: {image: x}, expires: x}}", "f: endpoints.e.expires: must be"),
        ("endpoints: {e: {template: {image: x}, networkVolumeIds: a}}", "networkVolumeIds: must"),
        ("endpoints: {e: {template: {image: x, env: {A: [s3cret]}}}}", "template.env.A: must be"),
        ("endpoints: {e: {template: {image: x}, expires: 2026-02-31}}", "f: "),
        ("endpoints: {e: &e {template: *e}}", "f: "),
        ("{" * 700, "f: "),
        ("endpoints: {? [a] : 1}", "f: "),
        ("endpoints: {e: {template: {image: !!python/name:os.system x}}}", "f: not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_the_field(text, problem):
    with pytest.raises(BadRequest) as found:
        read(text, "f")
    assert problem in str(found.value)
    assert "\n" not in str(found.value)
    assert "s3cret" not in str(found.value)


names = st.sampled_from([*GPU_TYPES, *POOLS, "24GB"])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
variables = st.from_regex(r"\A[A-Z_][A-Z0-9_]{0,8}\Z")
values_of = texts.filter(lambda text: "{{" not in text)
containers = st.builds(
    Container,
    image=st.sampled_from(["img:1", "runpod/worker:2"]),
    args=st.none() | st.sampled_from(["", "python -u 'my handler.py'", "a  b"]),
    command=st.lists(texts, max_size=3).map(tuple),
    entrypoint=st.lists(texts, max_size=2).map(tuple),
    env=st.dictionaries(
        variables.filter(lambda name: name != "RUNPOD_INIT_TIMEOUT"), values_of, max_size=3
    ),
    ports=st.sampled_from([(), ("80/http",)]),
    disk_gb=st.none() | st.integers(1, 99),
    registry=st.sampled_from([None, "", "cred1"]),
)
gpus = st.builds(
    Gpu,
    pools=st.lists(names, max_size=2, unique=True).map(tuple),
    types=st.lists(names, max_size=2, unique=True).map(tuple),
    excluded=st.lists(st.sampled_from(["NVIDIA A40", "NVIDIA L4"]), max_size=1).map(tuple),
    count=st.integers(1, 8),
)
owned = st.fixed_dictionaries(
    {},
    optional={
        "ttl": st.just("10000"),
        "maxAttempts": st.just("7"),
        "template.protocol": st.just('"push"'),
        "template.volumes": st.just('[{"name": "models", "path": "/models", "readOnly": true}]'),
        "autoRollback": st.just("true"),
        "template.limits": st.just('{"memory": "16g"}'),
    },
)
rows = st.builds(
    EndpointRow,
    id=st.just("e"),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=9),
    container=containers,
    gpu=st.none() | gpus,
    template_id=st.none() | st.just("t"),
    volumes=st.sampled_from([(), ("abc",), ("abc", "def")]),
    flashboot=st.sampled_from(FlashBoot),
    cuda_allowed=st.sampled_from([(), ("12.4",)]),
    data_centers=st.lists(variables, max_size=2).map(tuple),
    workers_min=st.integers(0, 5),
    workers_max=st.integers(0, 5),
    idle_s=st.integers(1, 3600),
    scaler=st.sampled_from(ScalerType),
    scaler_value=st.integers(1, 99).map(float) | st.just(1.5),
    timeout_ms=st.sampled_from([0, 1, 5000, 600_000, 7 * 86_400_000]),
    expires_ms=st.none() | st.integers(1_000, 4_000_000_000_000),
    own=owned,
    applied=st.sampled_from(["", "shop"]),
)


balanced = st.fixed_dictionaries(
    {},
    optional={
        "capacity": st.just("4"),
        "port": st.just("8000"),
        "healthPath": st.just('"/healthz"'),
        "requestTimeout": st.just("0"),
        "passAuthorization": st.just("true"),
        "template.initTimeout": st.just("60"),
    },
)
rows |= st.builds(
    lambda row, own: replace(row, type=EndpointType.LOAD_BALANCER, own=own), rows, balanced
)


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, database=None, phases=[Phase.generate])
@given(row=rows, with_values=st.booleans())
def test_applying_an_export_changes_nothing(row, with_values):
    text = write([row], with_values=with_values)
    (one,) = read(text, "f").endpoints
    assert step_of(row, one) is None


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, database=None, phases=[Phase.generate])
@given(row=rows)
def test_an_export_with_values_makes_an_endpoint_that_runs_the_same(row):
    (one,) = read(write([row], with_values=True), "f").endpoints
    made = as_row(None, one)
    assert make_endpoint("e", entry_of(made)) == make_endpoint("e", entry_of(row))
    assert (made.name, made.expires_ms, made.own) == (row.name, row.expires_ms, row.own)


@pytest.mark.parametrize(
    "volumes", ["models", {"models": "/m"}, [{"name": "models", "path": "/m", "readOnly": True}]]
)
def test_volumes_of_hosts_in_each_form_are_beside_the_network_volume(volumes):
    one = wanted(template={"image": "img:1", "volumes": volumes})
    row = as_row(None, one)
    spec = make_endpoint("e", entry_of(row)).managed
    assert [mount.name for mount in spec.template.volumes] == ["models"]
    if volumes != "models":
        both = replace(row, volumes=("abc",))
        mounts = make_endpoint("e", entry_of(both)).managed.template.volumes
        assert [mount.name for mount in mounts] == ["nv-abc", "models"]
    assert step_of(row, read(write([row], with_values=True), "f").endpoints[0]) is None


def test_credentials_of_the_image_are_set_and_removed():
    old = as_row(None, wanted(template={"image": "img:1", "registry": "cred1"}))
    assert old.container.registry == "cred1"
    step = step_of(old, wanted())
    assert step.row.container.registry is None
    assert changed(old, step) == ({"template.containerRegistryAuthId"}, True)


def test_an_export_without_values_has_names_and_references_only():
    env = {"A": "s3cret", "B": "{{ RUNPOD_SECRET_b }}", "C": "x{{ RUNPOD_SECRET_b }}"}
    row = as_row(None, wanted(template={"image": "img:1", "env": env}))
    text = write([row], with_values=False)
    assert "s3cret" not in text
    found = yaml.safe_load(text)["endpoints"]["e"]["template"]["env"]
    assert found == {"A": None, "B": "{{ RUNPOD_SECRET_b }}", "C": None}
    assert file_entry(row, with_values=True)["template"]["env"] == env


def test_the_example_of_the_page_is_accepted():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "apply.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [one.id for one in read(text, "f").endpoints] == ["chat", "embed"]
    assert all(f"| `{key}` |" in page for key in FILE_KEYS)
