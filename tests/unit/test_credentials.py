"""Configured keys: accepted forms, forms that prevent the start, and the check of a request's key."""

import hashlib

import pytest
from helpers import load_settings

from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError
from ownpod.rules.credentials import _BINDING, matches, parse, parse_file, parse_list
from ownpod.validation import NAME

SECRET = "hunter2-hunter2"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


@pytest.mark.parametrize(
    "text", [SECRET, f"sha256:{DIGEST}", f"SHA256:{DIGEST.upper()}"], ids=["plain", "hex", "upper"]
)
def test_a_key_fits_however_it_is_configured(text):
    known = [parse("another"), parse(text)]
    assert matches(SECRET, known) == [known[1]]
    for wrong in ("", "hunter2", f"{SECRET} ", text.upper(), DIGEST, f"sha256:{DIGEST}"):
        assert matches(wrong, known) == []


@pytest.mark.parametrize(
    ("binding", "endpoint", "worker"),
    [("", None, None), ("@ep", "ep", None), ("@ep/w-1", "ep", "w-1")],
)
def test_a_digest_of_a_worker_key_may_be_bound(binding, endpoint, worker):
    known = parse(f"sha256:{DIGEST}{binding}", bound=True)
    assert (known.endpoint, known.worker) == (endpoint, worker)
    for asked in (("ep", "w-1"), ("ep", "w-2"), ("other", "w-1")):
        expected = endpoint in {None, asked[0]} and worker in {None, asked[1]}
        assert known.permits(*asked) is expected


def test_one_key_may_have_several_bindings():
    known = parse_list(f"sha256:{DIGEST}@a,sha256:{DIGEST}@b/w", bound=True)
    assert matches(SECRET, known) == list(known)


def test_a_plain_key_with_an_at_is_the_whole_key():
    (known,) = parse_list("user@host/x", bound=True)
    assert (known.plain, known.endpoint) == ("user@host/x", None)
    assert matches("user@host/x", [known])


def test_ids_in_bindings_are_those_of_urls():
    pattern = NAME.pattern
    assert _BINDING.pattern == f"({pattern})(?:/({pattern}))?"


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "two words",
        "ü",
        "tab\tbed",
        "sha256:",
        f"sha256:{DIGEST[:-1]}",
        f"sha256:{DIGEST}0",
        f"sha256:{DIGEST[:-1]}g",
        f"sha256: {DIGEST}",
        f"sha256:{DIGEST}\n",
        f"sha256:{DIGEST}@",
        f"sha256:{DIGEST}@a b",
        f"sha256:{DIGEST}@ep/",
        f"sha256:{DIGEST}@/w",
        f"sha256:{DIGEST}@ep/w/x",
        f"sha256:{DIGEST}/ep",
        f"sha256:{SECRET}",
    ],
)
def test_a_wrong_form_names_what_is_allowed_and_not_the_key(text, bound):
    with pytest.raises(ValueError, match="sha256:<64 hex digits>") as caught:
        parse(text, bound=bound)
    for secret in (SECRET, DIGEST[:20]):
        assert secret not in str(caught.value)


def test_only_worker_keys_are_bound():
    with pytest.raises(ValueError, match="only worker keys"):
        parse(f"sha256:{DIGEST}@ep")


def test_a_file_has_a_key_a_line_and_comments():
    text = f"# of the team\none\n\n  two # Ann's\nwith#sign\n\tsha256:{DIGEST} # old\n#three\n"
    found = parse_file(text)
    assert [known.plain for known in found] == ["one", "two", "with#sign", None]
    with pytest.raises(ValueError, match="line 2: a key is visible ASCII"):
        parse_file("one\ntwo words\n")


@pytest.mark.parametrize("name", ["API", "ADMIN", "WORKER"])
@pytest.mark.parametrize("empty", [" , ", ","])
def test_a_list_without_a_key_stops_the_start_instead_of_opening_the_api(name, empty, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n\n")
    for variable, value in ((f"OWNPOD_{name}_KEYS", empty), (f"OWNPOD_{name}_KEYS_FILE", file)):
        with pytest.raises(ConfigurationError, match=f"^{variable}=.*: has no key"):
            load_settings(**{variable: value})


@pytest.mark.parametrize("name", ["API", "ADMIN", "WORKER"])
def test_a_wrong_key_stops_the_start_with_one_line_without_it(name, tmp_path):
    wrong = f"sha256:{SECRET}"
    file = tmp_path / "keys"
    file.write_text(f"good\n{wrong}\n")
    for variable, value in ((f"OWNPOD_{name}_KEYS", wrong), (f"OWNPOD_{name}_KEYS_FILE", file)):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(**{variable: value})
        line = str(caught.value)
        assert line.startswith(f"{variable}=")
        assert "sha256:<64 hex digits>" in line
        assert SECRET not in line
        assert "\n" not in line


def test_a_key_file_that_cannot_be_read_stops_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match="OWNPOD_ADMIN_KEYS_FILE=.*cannot be read"):
        load_settings(OWNPOD_ADMIN_KEYS_FILE=tmp_path)
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="must be a text file"):
        load_settings(OWNPOD_ADMIN_KEYS_FILE=file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("['']", "a key is visible ASCII"),
        ("[5]", "must be a text"),
        (f"['sha256:{SECRET}']", "sha256:<64 hex digits>"),
        (f"['sha256:{DIGEST}@ep']", "only worker keys"),
    ],
)
def test_a_wrong_key_of_an_endpoint_stops_the_start(text, says, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(f"endpoints: {{a: {{apiKeys: {text}}}}}")
    with pytest.raises(ConfigurationError) as caught:
        load_endpoints(load_settings(OWNPOD_WORKERS_FILE=file))
    assert "a.apiKeys.0: " in str(caught.value)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


def test_no_key_and_no_digest_is_in_the_repr(tmp_path):
    keys = f"{SECRET},sha256:{DIGEST}"
    found = load_settings(OWNPOD_API_KEYS=keys, OWNPOD_ADMIN_KEYS=keys, OWNPOD_WORKER_KEYS=keys)
    shown = repr(found) + repr(found.api_keys)
    assert SECRET not in shown
    assert DIGEST not in shown
