"""Lists of models: what counts as one, and those that are made."""

import json

import pytest

from ownpod.rules.openai_models import is_model_list, list_of


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ('{"object": "list", "data": [{"id": "m"}]}', True),
        ('{"data": []}', True),
        ('{"data": [{"id": 1}]}', False),
        ('{"data": ["m"]}', False),
        ('{"data": {}}', False),
        ("[]", False),
        ("x", False),
        ("[" * 100_000, False),
    ],
)
def test_a_list_has_models_with_ids(body, good):
    assert is_model_list(body) is good


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"MODEL_NAME": "a"}, "a"),
        ({"MODEL_NAME": "a", "SERVED_MODEL_NAME": "b"}, "b"),
        ({"SERVED_MODEL_NAME": "b", "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "c"}, "c"),
        ({"MODEL_NAME": "a", "SERVED_MODEL_NAME": ""}, "a"),
    ],
)
def test_a_list_is_made_of_the_name_under_which_the_model_is_served(env, name):
    made = list_of(env)
    assert is_model_list(made)
    assert [model["id"] for model in json.loads(made)["data"]] == [name]


@pytest.mark.parametrize("env", [{}, {"OTHER": "x"}, {"MODEL_NAME": "{{ RUNPOD_SECRET_x }}"}])
def test_without_a_name_there_is_no_list(env):
    assert list_of(env) is None
