"""Secrets: their names, their references in templates, and what is hidden of them in output."""

import json

import pytest

from ownpod.errors import BadRequest
from ownpod.rules.secrets import (
    LONGEST_SECRET,
    SecretMissing,
    check_name,
    check_value,
    given_in,
    has_wrong_reference,
    mask,
    missing_secrets,
    of_environment,
    resolve,
    secrets_in,
    used_by,
    why_missing,
)
from ownpod.rules.templates import ManagedSpec, Template


def spec(**env):
    return ManagedSpec(Template(command=("x",), env=env))


def test_both_forms_of_a_reference_name_a_secret():
    env = {"A": "{{ SECRET_b }}:{{RUNPOD_SECRET_a}}", "B": "{{  SECRET_b  }}", "C": "{{ OTHER_x }}"}
    assert secrets_in(env) == ("a", "b")
    assert resolve(env, {"a": "1", "b": "{{ SECRET_a }}"}) == {
        "A": "{{ SECRET_a }}:1",
        "B": "{{ SECRET_a }}",
        "C": "{{ OTHER_x }}",
    }


def test_the_variables_of_a_worker_show_the_secrets_that_it_was_started_with():
    template = {"A": "Bearer {{ SECRET_a }}!", "B": "{{ RUNPOD_SECRET_b }}", "C": "x"}
    values = {"a": "one!", "b": "two lines\nof it"}
    assert given_in(template, resolve(template, values)) == values
    # What is not as the template has it shows nothing.
    assert given_in(template, {"A": "Bearer !", "B": ""}) == {}
    assert given_in({"A": "ab{{ SECRET_a }}ba"}, {"A": "aba"}) == {}
    assert given_in(template, {"A": "Token one!"}) == {}
    assert given_in({"A": "{{ SECRET_a }}:{{ SECRET_b }}"}, {"A": "1:2:3"}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{{ SECRET_ }}",
        "{{ SECRET_a-b }}",
        "{{ SECRET_a }",
        "{{ RUNPOD_SECRET_a.b }}",
        "x {{SECRET_ä}}",
        f"{{{{ SECRET_{'n' * 129} }}}}",
    ],
)
def test_a_reference_that_would_be_passed_as_it_is_is_wrong(text):
    assert has_wrong_reference(text)


@pytest.mark.parametrize("text", ["", "{{ x }}", "{{ SECRET_a }}", "{ SECRET_ }", "SECRET_a-b"])
def test_other_texts_are_no_wrong_references(text):
    assert not has_wrong_reference(text)


@pytest.mark.parametrize("name", ["", "a-b", "a b", "ä", "a\n", "a/../b", "n" * 129, "{{"])
def test_a_wrong_name_is_one_line_with_what_is_allowed(name):
    with pytest.raises(BadRequest, match="letters, digits and _ only, at most 128") as caught:
        check_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "A_1", "_", "0", "n" * 128])
def test_a_name_has_letters_digits_and_underscores(name):
    check_name(name)


@pytest.mark.parametrize(
    "value", ["", "hunter2\0", "hunter2" * LONGEST_SECRET, "hunter2\udc80"], ids=repr
)
def test_a_wrong_value_is_not_in_the_error(value):
    with pytest.raises(BadRequest) as caught:
        check_value(value)
    assert "hunter2" not in str(caught.value)


def test_a_value_may_have_several_lines():
    check_value("-----BEGIN KEY-----\nabc\n")
    check_value("x" * LONGEST_SECRET)


def test_secrets_that_are_missing_are_named_with_what_to_do():
    assert missing_secrets(spec(A="{{ SECRET_z }}{{ SECRET_a }}"), {"z": "1"}) == ("a",)
    assert why_missing(["a", "b"]) == (
        "secrets 'a' and 'b' are not there: use `ownpod secrets set a` and `ownpod secrets set b`, "
        "or set OWNPOD_SECRET_a and OWNPOD_SECRET_b where the agent runs"
    )
    with pytest.raises(SecretMissing, match="secret 'a' of the template's variable A") as caught:
        resolve({"A": "{{ SECRET_z }}{{ SECRET_a }}"}, {"z": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_the_agents_own_secrets_are_variables_with_a_prefix():
    environ = {"OWNPOD_SECRET_hub": "1", "OWNPOD_SECRETS_KEY_FILE": "/x", "HUB": "2"}
    assert of_environment(environ) == {"hub": "1"}


def test_the_endpoints_that_use_a_secret_are_listed_by_name():
    specs = {
        "b": spec(A="{{ SECRET_x }}"),
        "a": spec(A="{{ SECRET_x }}{{ SECRET_y }}"),
        "c": spec(),
    }
    assert used_by(specs) == {"x": ["a", "b"], "y": ["a"]}


def test_output_has_stars_in_place_of_secrets():
    output = "token=hunter22\nhunter22-and-more x hunter22-and-more"
    assert mask(output, ["hunter22", "hunter22-and-more"]) == "token=***\n*** x ***"


def test_a_secret_of_several_lines_is_hidden_line_by_line():
    key = "-----BEGIN-----\nabcdef123456\nshort\n-----END-----\n"
    assert mask("0 abcdef123456 1\nshort", [key]) == "0 *** 1\nshort"
    assert mask(f"<{key}>", [key]) == "<***\n>"


def test_a_secret_is_hidden_as_json_has_it():
    secret = 'pass"wörd\\x'
    for output in (json.dumps({"a": secret}), json.dumps({"a": secret}, ensure_ascii=False)):
        assert mask(output, [secret]) == '{"a": "***"}'


def test_a_short_secret_would_hide_ordinary_words_and_stays():
    assert mask("the cat sat", ["cat", "", " ", "the  "]) == "the cat sat"
