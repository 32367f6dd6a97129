"""Frozen dataclasses as JSON, and strictly back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod.errors import WorkerRecordBroken
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.records import from_text, to_text
from ownpod.rules.templates import (
    GpuNeed,
    Limits,
    ManagedSpec,
    Protocol,
    ScalerType,
    Scaling,
    Template,
    spec_in,
    spec_text,
)

NAMES = st.tuples(st.text(max_size=5), st.text(max_size=5)) | st.just(())
WHOLE = st.integers(0, 2**40)
TEMPLATES = st.builds(
    Template,
    image=st.none() | st.text(max_size=9),
    entrypoint=NAMES,
    command=NAMES,
    env=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
    limits=st.builds(
        Limits,
        memory_bytes=st.none() | WHOLE,
        cpus=st.none() | st.floats(0, 99),
        shm_bytes=st.none() | WHOLE,
        pids=st.none() | WHOLE,
    ),
    protocol=st.sampled_from(Protocol),
    init_timeout_s=WHOLE,
)
SPECS = st.builds(
    ManagedSpec,
    template=TEMPLATES,
    scaling=st.builds(
        Scaling,
        workers_min=WHOLE,
        workers_max=WHOLE,
        idle_timeout_s=WHOLE,
        scaler=st.sampled_from(ScalerType),
        scaler_value=st.floats(0, 1e9),
    ),
    gpu=st.none() | st.builds(GpuNeed, pools=NAMES, count=st.integers(1, 64)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["template", "gpu", "count", "pools", "env", "limits", "cpus", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(SPECS)
def test_a_spec_is_read_as_it_was_written_with_the_same_release(spec):
    found = spec_in(spec_text(spec))
    assert found == spec
    assert found.release == spec.release


@given(JSON)
def test_any_json_is_a_spec_or_a_broken_record(values):
    try:
        found = spec_in(json.dumps(values))
    except WorkerRecordBroken:
        return
    assert isinstance(found, ManagedSpec)
    assert len(found.release) == 12


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"template": {"image": 5}}, "ManagedSpec.template.image in Redis has a value of another"),
        ({"template": {"later": "top-secret"}}, "has the unknown field 'later'"),
        ({"template": {"env": {"A": ["top-secret"]}}}, "template.env in Redis"),
        ({"gpu": None}, "ManagedSpec in Redis lacks a field"),
        ([], "ManagedSpec in Redis is no JSON object"),
    ],
)
def test_a_broken_spec_is_named_without_its_values(values, words):
    with pytest.raises(WorkerRecordBroken, match="(?s)" + words) as error:
        spec_in(json.dumps(values))
    assert "top-secret" not in str(error.value)


def test_a_host_of_a_later_version_is_read_without_its_new_fields():
    info = AgentInfo("h", "docker", (Device("d", 0, "x", metrics={"power_w": 1}),), {"a": "b"})
    values = json.loads(to_text(info, without=("silent_s",)))
    values["more"] = values["devices"][0]["more"] = 1
    assert from_text(AgentInfo, json.dumps(values), others=True) == info
    with pytest.raises(WorkerRecordBroken):
        from_text(AgentInfo, json.dumps(values))
