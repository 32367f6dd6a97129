"""The output of a one-off task: structured and plain lines, parts that end anywhere, and continuing from a state."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod.rules.presets import OutputMode
from ownpod.rules.task_lines import Chunk, Entry, Final, Finish
from ownpod.rules.task_output import (
    LONGEST_LOG,
    LONGEST_STRUCTURED,
    PIECE_BYTES,
    STDERR,
    STDOUT,
    TAIL_LINES,
    TaskOutput,
)


def read(data, *, mode=OutputMode.AUTO, stream=STDOUT):
    output = TaskOutput(mode)
    return [*output.feed(data, 0.0, stream=stream), *output.finish()]


def text_of(items):
    found = (json.loads(item.text) for item in items if isinstance(item, Chunk))
    return "".join(part for part in found if isinstance(part, str))


def logs_of(items):
    return [item.data["log"] for item in items if isinstance(item, Entry) and item.event == "logs"]


def line(**values):
    return json.dumps(values).encode() + b"\n"


# Plain lines.


def test_plain_lines_are_text_with_their_ends():
    assert read(b"a\nb\r\n\nc") == [
        Chunk('"a\\n"'),
        Chunk('"b\\r\\n"'),
        Chunk('"\\n"'),
        Chunk('"c"'),
    ]


def test_plain_lines_are_log_lines_from_the_first_structured_line_on():
    items = read(b"a\n" + line(type="text_delta", data={"delta": "b"}) + b"c\n")
    assert (text_of(items), logs_of(items)) == ("a\nb", ["c"])


def test_plain_lines_are_always_text_in_the_mode_text_and_never_in_the_mode_events():
    data = line(event="text_delta", delta="x") + b"y\n"
    assert text_of(read(data, mode=OutputMode.TEXT)) == "xy\n"
    items = read(b"y\n" + data, mode=OutputMode.EVENTS)
    assert (text_of(items), logs_of(items)) == ("x", ["y", "y"])


def test_standard_error_is_log_lines_with_the_level_of_their_prefix():
    data = b'ERROR: a\n WARNING: b\nDEBUG: c\nINFO: d\nTraceback\n{"type": "text", "data": {"content": "x"}}\n'
    items = read(data, stream=STDERR)
    assert [item.data["level"] for item in items] == [
        "error",
        "warning",
        "debug",
        "info",
        "info",
        "info",
    ]
    assert {item.data["stream"] for item in items} == {"stderr"}


def test_the_last_lines_of_standard_error_are_kept():
    output = TaskOutput()
    output.feed(b"".join(b"%d\n" % n for n in range(50)), 0.0, stream=STDERR)
    assert output.tail == [str(n) for n in range(50 - TAIL_LINES, 50)]


def test_a_progress_bar_shows_some_of_its_states_and_the_last_one():
    output, items = TaskOutput(OutputMode.EVENTS), []
    for number in range(101):
        items += output.feed(b"%d%%\r" % number, number / 100)
    items += output.feed(b"done\n", 1.01)
    logs = logs_of(items)
    assert (logs[0], logs[-1]) == ("0%", "done")
    assert len(logs) == 6


def test_the_two_halves_of_a_line_end_are_one_end():
    output = TaskOutput()
    items = [*output.feed(b"a\r", 0.0), *output.feed(b"\nb\n", 0.0)]
    assert text_of(items) == "a\r\nb\n"


def test_what_is_no_utf8_is_replaced_and_characters_are_never_divided():
    assert text_of(read(b"\xff\xfea\n")) == "��a\n"
    long = ("ä€😀" * 20_000).encode()
    items = read(long)
    assert text_of(items) == long.decode()
    assert max(len(json.loads(item.text).encode()) for item in items) <= PIECE_BYTES


def test_escape_sequences_are_not_in_log_lines():
    assert logs_of(read(b"\x1b[31mred\x1b[0m\x07\n", stream=STDERR)) == ["red"]


def test_a_line_of_64_kb_is_whole():
    wide = b"x" * 65_536
    assert text_of(read(wide + b"\n")) == wide.decode() + "\n"
    assert logs_of(read(wide + b"\n", stream=STDERR)) == [wide.decode()]


def test_a_log_line_that_is_too_long_is_cut_and_says_so():
    output = TaskOutput()
    items = [
        *output.feed(b"x" * 3 * LONGEST_LOG, 0.0, stream=STDERR),
        *output.feed(b"y\nz\n", 0.0, stream=STDERR),
    ]
    assert [(len(i.data["log"]), i.data.get("truncated")) for i in items] == [
        (LONGEST_LOG, True),
        (1, None),
    ]


def test_secrets_are_hidden_in_log_lines_only():
    output = TaskOutput(mask=lambda text: text.replace("secret", "***"))
    assert logs_of(output.feed(b"my secret\n", 0.0, stream=STDERR)) == ["my ***"]
    assert text_of(output.feed(b"my secret\n", 0.0)) == "my secret\n"
    assert logs_of(output.feed(line(event="log", log="a secret"), 0.0)) == ["a ***"]


# Structured lines.


@pytest.mark.parametrize(
    ("kind", "data", "item"),
    [
        ("text_delta", {"delta": "ä"}, Chunk('"ä"')),
        ("output_delta", {"output": [1]}, Chunk("[1]")),
        ("text", {"content": "all"}, Final('"all"')),
        ("output", {"output": {"a": 1}}, Final('{"a": 1}')),
        (
            "log",
            {"log": "l", "level": "WARN"},
            Entry("logs", {"log": "l", "level": "warning", "stream": "stdout"}),
        ),
        (
            "logs",
            {"message": "l"},
            Entry("logs", {"log": "l", "level": "info", "stream": "stdout"}),
        ),
        ("worker", {"status": "warming"}, Entry("worker", {"status": "warming"})),
        ("connection", {"status": "up"}, Entry("worker", {"status": "up"})),
        ("progress", {"progress": 0.5}, Entry("worker", {"status": "working", "progress": 0.5})),
        ("finish", {"status": "completed"}, Finish(failed=False)),
        ("task_finish", {"status": "failed", "error": "e"}, Finish(failed=True, error="e")),
    ],
)
def test_both_spellings_of_a_structured_line_mean_the_same(kind, data, item):
    assert read(line(type=kind, data=data)) == [item]
    assert read(line(event=kind, **data)) == [item]


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"{",
        b'{"type": "text_delta"}',
        b'{"type": "text_delta", "data": {"delta": 1}}',
        b'{"type": "text_delta", "data": 1}',
        b'{"type": "other", "data": {}}',
        b'{"type": 1, "data": {}}',
        b'{"type": "output", "data": {"output": NaN}}',
        b'{"type": "worker", "data": {"status": ""}}',
        b'{"type": "worker", "data": {"status": "x", "y": "' + b"z" * 70_000 + b'"}}',
        b'["type"]',
        b'{"a": ' + b"[" * 100_000,
    ],
)
def test_a_malformed_structured_line_is_a_plain_line(raw):
    assert text_of(read(raw + b"\n")) == raw.decode() + "\n"
    assert logs_of(read(raw + b"\n", mode=OutputMode.EVENTS)) == [raw.decode()]


def test_half_a_surrogate_pair_is_replaced_because_redis_cannot_have_it():
    assert read(b'{"event": "text_delta", "delta": "a\\ud800b"}\n') == [Chunk('"a?b"')]


def test_a_structured_line_may_have_a_megabyte_and_no_more():
    fits = line(event="text_delta", delta="x" * (LONGEST_STRUCTURED - 100))
    assert len(text_of(read(fits))) == LONGEST_STRUCTURED - 100
    too_long = line(event="text_delta", delta="x" * LONGEST_STRUCTURED)
    assert text_of(read(too_long)) == too_long.decode()
    items = read(too_long, mode=OutputMode.EVENTS)
    assert [item.data["truncated"] for item in items] == [True]


# Parts of lines.


def test_a_token_without_an_end_is_returned_by_a_flush_but_not_what_may_become_structured():
    output = TaskOutput()
    assert output.feed(b"tok", 0.0) == []
    assert output.waits
    assert output.flush() == [Chunk('"tok"')]
    assert output.feed(b'{"a": 1}\n', 0.0) == [Chunk('"{\\"a\\": 1}\\n"')]
    output.feed(b'{"event": ', 0.0)
    assert not output.waits
    assert output.flush() == []


def test_a_flush_divides_no_character():
    output = TaskOutput()
    output.feed("a€".encode()[:-1], 0.0)
    assert output.flush() == [Chunk('"a"')]
    assert output.feed("€\n".encode()[2:], 0.0) == [Chunk('"€\\n"')]


def test_missing_output_is_a_warning():
    output = TaskOutput()
    output.feed(b"abc", 0.0)
    items = output.skip(10)
    assert text_of(items) == "abc\n"
    assert items[-1].data["level"] == "warning"
    assert "10 bytes" in items[-1].data["log"]


def _task_lines():
    plain = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=40).map(
        str.encode
    )
    structured = st.builds(
        lambda delta, flat: (
            line(event="text_delta", delta=delta)[:-1]
            if flat
            else line(type="text_delta", data={"delta": delta})[:-1]
        ),
        st.text(max_size=30),
        st.booleans(),
    )
    rubbish = st.binary(max_size=40).map(lambda raw: raw.replace(b"\r", b""))
    return st.lists(st.one_of(plain, structured, rubbish, st.just(b"x" * 20_000)), max_size=12)


def _merged(items):
    """The items with texts in a row as one, because a text may come in any pieces."""
    found = []
    for item in items:
        text = json.loads(item.text) if isinstance(item, Chunk) else None
        if text is not None and found and isinstance(found[-1], str):
            found[-1] += text
        else:
            found.append(item if text is None else text)
    return [item for item in found if item != ""]


@pytest.mark.slow
@given(_task_lines(), st.sampled_from(OutputMode), st.integers(0, 2**32), st.booleans())
def test_parts_of_any_size_and_a_new_object_at_any_place_change_nothing(lines, mode, seed, ends):
    data = b"\n".join(lines) + b"\n" * ends
    chance, output, items, at = random.Random(seed), TaskOutput(mode), [], 0
    while at < len(data):
        size = chance.choice([1, 2, 7, 100, 5000, 30_000])
        items += output.feed(data[at : at + size], 0.0)
        at += size
        if chance.random() < 0.3:
            output = TaskOutput.resumed(mode, output.state())
    items += output.finish()
    assert _merged(items) == _merged(read(data, mode=mode))


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=200)), max_size=20))
def test_any_rubbish_is_read_without_an_error_and_within_bounds(parts):
    output = TaskOutput()
    for number, (stream, data) in enumerate(parts):
        for item in [*output.feed(data, float(number), stream=stream), *output.flush()]:
            if isinstance(item, Chunk):
                json.loads(item.text).encode()
        json.loads(output.state())
    output.finish()


@given(st.text())
def test_a_state_that_is_none_begins_at_the_beginning(state):
    assert TaskOutput.resumed(OutputMode.AUTO, state).feed(b"a\n", 0.0) == [Chunk('"a\\n"')]


def test_what_a_task_reports_of_its_end_is_in_the_state():
    output = TaskOutput()
    output.feed(line(event="finish", status="failed", error="no\x1b[1m way"), 0.0)
    output.feed(b"last\n", 0.0, stream=STDERR)
    again = TaskOutput.resumed(OutputMode.AUTO, output.state())
    assert (again.finish_said, again.tail) == (Finish(failed=True, error="no way"), ["last"])
