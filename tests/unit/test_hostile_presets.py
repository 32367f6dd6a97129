"""Presets that cannot be: one short line each, without values that may be secrets, and no other error."""

import pytest
import yaml
from helpers import load_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ownpod.configuration import load_endpoints
from ownpod.configuration.presets import (
    DifficultySchema,
    LimitsSchema,
    ModelSchema,
    PresetSchema,
    SessionSchema,
    WorkersSchema,
)
from ownpod.errors import ConfigurationError

pytestmark = pytest.mark.slow

HUGE = 10**400

SCHEMAS = (
    PresetSchema,
    ModelSchema,
    SessionSchema,
    WorkersSchema,
    LimitsSchema,
    DifficultySchema,
)
KEYS = sorted({f.data_key or name for s in SCHEMAS for name, f in s().fields.items()})

# Texts of any characters are for the keys of files that people write; these are what YAML makes of a slip.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 100_000),
    st.floats(),
    st.sampled_from(
        ["", "low", "x y", "x\ny", "16g", "-x", "hf://a/b", "a" * 300, HUGE, "\N{SNOWMAN}"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), scalars), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.fixture
def load(tmp_path):
    def load(content):
        path = tmp_path / "workers.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_endpoints(load_settings(OWNPOD_WORKERS_FILE=path))

    return load


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(models=values, difficulties=values, preset=values)
def test_any_presets_are_endpoints_or_one_line(load, models, difficulties, preset):
    for content in (
        {"models": models},
        {"models": {"m": {"p": preset}}, "difficulties": difficulties},
        {"models": {"m": {"presets": {"p": {"image": "i", **preset}}}}}
        if isinstance(preset, dict)
        else {"models": {"m": {"presets": preset}}},
    ):
        problem = ""
        try:
            assert all(endpoint.id for endpoint in load(content).values())
        except ConfigurationError as error:
            problem = str(error)
        assert "\n" not in problem
        assert len(problem) < 1000


def test_no_error_and_no_repr_has_the_value_of_a_variable_or_a_key(load):
    secret = {"env": {"TOKEN": "hunter2"}, "apiKeys": ["hunter2"]}
    (endpoint,) = load({"models": {"m": {"p": {"image": "i", **secret}}}}).values()
    assert "hunter2" not in repr(endpoint)
    for wrong in ({"protocol": "x"}, {"limits": 1}, {"env_vars": {"TOKEN": "hunter2"}}):
        with pytest.raises(ConfigurationError) as caught:
            load({"models": {"m": {"p": {"image": "i", **secret, **wrong}}}})
        assert "hunter2" not in str(caught.value)
