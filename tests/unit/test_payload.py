import json

import pytest

from ownpod.rules import payload
from ownpod.rules.payload import LONG, readable, split

PAD = "é" * LONG


def both(text):
    """As it is, and long."""
    return [text.encode(), f'{{"pad": "{PAD}", {text[1:]}'.encode()]


@pytest.mark.parametrize(
    ("text", "others", "kept"),
    [
        ('{"output": {"b": [1, null]}, "id": "x"}', {"id": "x"}, {"b": [1, None]}),
        ('{"output": null}', {}, None),
        ('{"output": "\\ud800"}', {}, "\ud800"),
        ('{"output": {"a":\n1}}', {}, {"a": 1}),
        ('{"output": [1, NaN]}', {}, [1, None]),
        ('{"output": "two\\nlines\\r"}', {}, "two\nlines\r"),
    ],
)
def test_a_member_is_kept_as_text_in_one_line_whatever_the_length(text, others, kept):
    for body in both(text):
        said, output = split(body, "output", payload.loads)
        said.pop("pad", None)
        assert said == others
        assert json.loads(output) == kept
        assert not {"\n", "\r"} & set(output)


def test_without_the_member_there_is_no_text():
    for body in both('{"id": 1}'):
        said, output = split(body, "output", payload.loads)
        assert (said["id"], output) == (1, None)
    assert split(b"[1]", "output", payload.loads) == ([1], None)


def test_a_long_one_is_not_parsed():
    body = f'{{"output": [1.0, "{PAD}"],"id": 1}}'.encode()
    parsed = []
    said, output = split(body, "output", lambda part: parsed.append(part) or json.loads(part))
    assert (said, output) == ({"id": 1}, f'[1.0, "{PAD}"]')
    assert parsed == [b"1"]


@pytest.mark.parametrize("body", [b"{", b"x" * LONG, b'{"output": "\xff"}', b'{"a": "\xff' * LONG])
def test_what_is_no_json_is_an_error(body):
    with pytest.raises(ValueError, match=r".*"):
        split(body, "output", payload.loads)


def test_what_python_cannot_read_stays_text():
    assert readable('{"a": 1}') == {"a": 1}
    assert readable("1" * 5000) == "1" * 5000


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", []),
        (' [ {"a":  1.50} ,"x"] ', ['{"a":  1.50}', '"x"']),
        ('["\\ud800"]', ['"\\ud800"']),
        ("[1e999]", ["1e999"]),
        ("[" + "9" * 5000 + "]", ["9" * 5000]),
        ("{}", None),
        ("1", None),
        ("", None),
        ("[x", None),
        ("[" * 100_000 + "]" * 100_000, None),
    ],
)
def test_the_elements_of_a_list_are_its_texts(text, parts):
    found = payload.elements(text)
    # A deep element may be kept as text, or be too deep.
    assert found in (parts, [text[1:-1]])


def test_members_are_read_without_the_others():
    body = b'{"stream": false, "big": [1e999, {}], "str\\u0065am": true}'
    assert payload.members(body, ("stream", "missing")) == {"stream": True}
    for other in (b"[]", b"{", b'{"a": NaN}', b'{"a": 1}x', b"\xff", b'{"a": "\xff"}'):
        assert payload.members(other, ("stream",)) in (None, {})
    assert payload.members(b'{"a": ' + b"[" * 100_000, ("a",)) is None
