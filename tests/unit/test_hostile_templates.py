"""Values in `workers.yaml`, and in entries of run time, that no template can have: one line each, and no process ends."""

import json

import pytest
from helpers import load_settings

from ownpod.configuration import load_endpoints, make_endpoint
from ownpod.errors import ConfigurationError
from ownpod.rules.fleet import Entries, merge

# They take a tenth of the time of all fast tests.
pytestmark = pytest.mark.slow

HUGE = 10**400
BEGIN = b"endpoints: {e: {template: {command: [x]"


@pytest.fixture
def load(tmp_path):
    def call(content):
        path = tmp_path / "workers.yaml"
        path.write_bytes(content)
        return load_endpoints(load_settings(OWNPOD_WORKERS_FILE=path))

    return call


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\0x",
        b"[" * 20_000,
        b"endpoints: 2001-99-99",
        b"a\0b",
        BEGIN + b", env: {A: 0x" + b"f" * 6000 + b"}}}}",
        BEGIN + b", env: {0x" + b"f" * 1000 + b": 1}}}}",
        BEGIN + b"}, workersMax: " + b"9" * 5000 + b"}}",
        BEGIN + b"}, scalerValue: " + b"9" * 400 + b"}}",
        BEGIN + b"}, scalerValue: .nan}}",
        b"endpoints: {../..: {}}",
        b"endpoints: {e: &a {template: *a}}",
    ],
)
def test_a_file_that_cannot_be_is_one_line(load, content):
    with pytest.raises(ConfigurationError) as error:
        load(content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_an_error_of_the_file_quotes_nothing_of_it(load):
    with pytest.raises(ConfigurationError, match=r"not YAML: .* in line 1, column \d+") as error:
        load(BEGIN + b", env: {TOKEN: hunter2}, }}]")
    assert "hunter2" not in str(error.value)


def test_variables_that_no_program_can_get_are_refused(load):
    env = ", ".join(f"A{n}: {'x' * 100_000}" for n in range(11))
    with pytest.raises(ConfigurationError, match=r"template\.env: must have at most 1000000 bytes"):
        load(BEGIN + f", env: {{{env}}}".encode() + b"}}}")
    many = ", ".join(f"A{n}: x" for n in range(1000))
    found = load(BEGIN + f", env: {{{many}}}".encode() + b"}}}")
    assert len(found["e"].managed.template.env) == 1000


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"template": {"command": ["x"]}, "scalerValue": HUGE}, "scalerValue"),
        ({"template": {"command": ["x"], "limits": {"cpus": HUGE}}}, "template.limits.cpus"),
        ({"template": {"command": ["x"], "limits": {"memory": HUGE}}}, "template.limits.memory"),
    ],
)
def test_a_huge_number_in_an_entry_leaves_out_its_endpoint_only(values, field):
    # Each process reads the entries, so an error of one of them must not pass.
    good = {"template": {"command": ["x"]}}
    entries = Entries(endpoints={"bad": json.dumps(values), "good": json.dumps(good)})
    merged = merge({}, entries, make_endpoint, lambda _: None)
    assert list(merged.endpoints) == ["good"]
    assert [(e.id, e.reason.partition(":")[0]) for e in merged.endpoints_left_out] == [
        ("bad", field)
    ]
