"""A worker's output as lines, and the messages of a container's output."""

import json
import random
import struct

import pytest

from ownpod.agent.container_output import Messages, Position
from ownpod.rules import output
from ownpod.rules.output import LONGEST_LINE, Line, Lines, is_of_job


def texts(lines):
    return [line.text for line in lines]


def sdk(run, message, level="INFO"):
    """A line as RunPod's SDK writes it."""
    return json.dumps({"requestId": run, "message": message, "level": level}).encode() + b"\n"


def in_parts(data, sizes, **options):
    """The lines of an output that comes in parts of these sizes, at a time when nothing is left out."""
    lines, found, now_s = Lines(**options), [], 0.0
    while data:
        size = sizes()
        found += lines.feed(data[:size], now_s)
        data = data[size:]
        now_s += 10
    return found + lines.finish()


def test_parts_of_any_size_give_the_same_lines():
    chance = random.Random(7)
    data = b"one\r\ntwo\n\nthree \xc3\xa9\r10 % of the weights\nlast"
    expected = ["one", "two", "", "three é", "10 % of the weights", "last"]
    for _ in range(200):
        assert texts(in_parts(data, lambda: chance.randint(1, 9))) == expected


def test_a_long_line_is_cut_and_the_next_one_is_whole():
    for sizes in (10_000, 65_536, 10):
        found = texts(in_parts(b"x" * 65_536 + b"\nnext\n", lambda size=sizes: size))
        assert [text[:4] for text in found] == ["xxxx", "next"]
        assert found[0].endswith("(cut)")
        assert len(found[0].encode()) <= LONGEST_LINE


def test_a_line_without_an_end_takes_no_memory():
    lines = Lines()
    found = [line for n in range(100) for line in lines.feed(b"x" * 100_000, float(n))]
    assert len(found) == 1
    assert len(lines.state()) < 1000


def test_of_a_progress_bar_four_lines_a_second_are_kept_and_its_last():
    lines, found = Lines(), []
    for n in range(1000):
        found += lines.feed(f"\r{n / 10} %".encode(), n / 100)
    found += lines.feed(b"\r100 %\n", 10.0)
    assert 30 <= len(found) <= 42
    assert found[-1].text == "100 %"
    assert not any("left out" in text for text in texts(found))


def test_lines_of_a_worker_that_writes_too_fast_are_left_out_with_their_number():
    lines, found = Lines(), []
    for n in range(40):
        data = b"".join(b"line %d\n" % (n * 1000 + i) for i in range(1000))
        found += lines.feed(data, n / 10)
    found += lines.finish()
    # Four seconds at 200 a second, and 1000 at once.
    assert 1000 < len(found) < 2200
    left = sum(int(text.split()[1]) for text in texts(found) if "left out" in text)
    kept = [text for text in texts(found) if text.startswith("line ")]
    assert left + len(kept) == 40_000
    assert kept[-output.LOG_LINES :] == [f"line {n}" for n in range(39_950, 40_000)]
    assert sorted(set(kept), key=lambda text: int(text[5:])) == kept


def test_the_bytes_of_a_worker_are_bounded_too():
    lines, found = Lines(), []
    for n in range(100):
        found += lines.feed((b"y" * 8000 + b"\n") * 50, n / 10)
    assert sum(len(text) for text in texts(found)) < 262_144 + 10 * (100_000 + 65_536) + 8192


def test_the_last_lines_before_a_silence_are_shown_without_more_output():
    lines = Lines()
    lines.feed(b"".join(b"%d\n" % n for n in range(5000)), 0.0)
    assert lines.leaves_out
    found = texts(lines.feed(b"", 1.5))
    assert found[0] == "… 3950 lines left out"
    assert found[-1] == "4999"
    assert not lines.leaves_out


def test_what_an_engine_has_skipped_is_shown():
    lines = Lines()
    assert texts(lines.feed(b"a\nhalf of", 0.0)) == ["a"]
    lines.skip(310_000_000, 0.0)
    lines.feed(b"half\nb\n", 0.0)
    assert texts(lines.feed(b"", 2.0)) == ["… 310 MB left out", "b"]
    lines.skip(0, 2.0)
    assert texts(lines.finish()) == ["… more left out"]


def test_the_next_agent_continues_within_a_line_and_a_job():
    whole = sdk("job-1", "Started.") + b"half" + b"way\n" + b"x" * 20_000 + b"yyy\nend\n"
    for at in range(0, len(whole), 777):
        first = Lines()
        found = first.feed(whole[:at], 0.0)
        found += Lines(first.state()).feed(whole[at:], 0.0)
        assert [text[:7] for text in texts(found)] == ["INFO   ", "halfway", "xxxxxxx", "end"]
        assert {line.run for line in found} == {"job-1"}


@pytest.mark.parametrize("state", ["", "no JSON", "[]", '{"open": 3}', '{"partial": null}'])
def test_a_state_that_cannot_be_read_is_a_beginning(state):
    assert texts(Lines(state).feed(b"a\n", 0.0)) == ["a"]


def test_lines_belong_to_the_job_that_runs_alone():
    data = (
        b"loading\n"
        + sdk("job-1", "Started.")
        + b"plain\n"
        + sdk(None, "Traceback\n  line 1", "ERROR")
        + sdk("job-2", "Started.")
        + b"of whom?\n"
        + sdk("job-2", "Handler output: {}", "DEBUG")
        + sdk("job-1", "Finished.")
        + b"of two\n"
        + sdk("job-2", "Job stopped.")
        + b"idle\n"
    )
    found = Lines().feed(data, 0.0)
    assert [(line.run, line.text) for line in found] == [
        (None, "loading"),
        ("job-1", "INFO   | Started."),
        ("job-1", "plain"),
        ("job-1", "ERROR  | Traceback"),
        ("job-1", "  line 1"),
        ("job-2", "INFO   | Started."),
        (None, "of whom?"),
        ("job-2", "DEBUG  | Handler output: {}"),
        ("job-1", "INFO   | Finished."),
        ("job-2", "of two"),
        ("job-2", "INFO   | Job stopped."),
        (None, "idle"),
    ]


def test_lines_of_a_generator_handler_belong_to_its_job_too():
    # As the SDK 1.12 writes them.
    data = (
        sdk("job-1", "Job Queued", "DEBUG")
        + b"idle\n"
        + sdk("job-1", "Handling Job", "DEBUG")
        + sdk("job-1", "Using Standard Generator", "DEBUG")
        + b"plain\n"
        + sdk("job-1", "Finished running generator.")
        + b"still\n"
        + sdk("job-1", "Finished.")
        + sdk("job-1", "Finished Job", "DEBUG")
        + b"idle\n"
    )
    found = Lines().feed(data, 0.0)
    plain = [(line.run, line.text) for line in found if "|" not in line.text]
    assert plain == [(None, "idle"), ("job-1", "plain"), ("job-1", "still"), (None, "idle")]


def test_lines_that_are_left_out_still_begin_and_end_jobs():
    lines = Lines()
    noise = b"noise\n" * 100_000
    lines.feed(noise + sdk("job-1", "Started.") + noise, 0.0)
    found = lines.feed(b"mine\n", 5.0)
    assert found[-1] == Line("mine", "job-1")
    more = sdk("job-1", "Finished.") + sdk("job-2", "Handling Job", "DEBUG")
    lines.feed(noise + more + noise, 10.0)
    assert lines.feed(b"of the next\n", 15.0)[-1] == Line("of the next", "job-2")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"requestId": "a b", "message": "m", "level": "INFO"}',
        b'{"requestId": 3, "message": "m", "level": "INFO"}',
        b'{"requestId": "job-1", "message": "m"}',
        b'{"requestId": "job-1", "message": 3, "level": "INFO"}',
        b'{"requestId": "job-1"',
        b'{"requestId": ' + b"[" * 9000,
    ],
)
def test_what_only_resembles_a_line_of_the_sdk_has_no_job(raw):
    (line,) = Lines().feed(raw + b"\n", 0.0)
    assert line.run is None


def test_a_long_message_of_the_sdk_keeps_its_job():
    (line,) = in_parts(sdk("job-1", "é" * 4096), lambda: 1000)
    assert line.run == "job-1"
    assert line.text.startswith("INFO   | éé")


def test_secrets_are_hidden_also_in_json_and_where_a_line_is_cut():
    def mask(text):
        return text.replace('se"cret', "***")

    data = sdk("job-1", 'a se"cret') + b'b se"cret\n' + b"x" * 8150 + b'se"cret' + b"x" * 9000
    found = texts(in_parts(data, lambda: 500, mask=mask))
    assert found[:2] == ["INFO   | a ***", "b ***"]
    assert "se" not in found[2]


def test_a_line_is_text_without_sequences_of_a_terminal():
    raw = b"\x1b[31mred\x1b[0m \x1b]0;title\x07a\x00b\tc \xff\x9b \x1b[2J\n" + sdk("j", "\ud800")
    assert texts(Lines().feed(raw, 0.0)) == ["red ab\tc \ufffd\ufffd ", "INFO   | ?"]


@pytest.mark.parametrize(
    ("run", "job", "same"),
    [
        ("job", "job", True),
        ("job-2", "job", True),
        ("job-20", "job", True),
        ("job-02", "job", False),
        ("job-x", "job", False),
        ("jobs", "job", False),
        (None, "job", False),
        ("job", "job-2", False),
    ],
)
def test_a_run_is_of_a_job_with_the_number_of_its_attempt(run, job, same):
    assert is_of_job(run, job) is same


# --- messages of a container


def frame(second, text, stream=1, ns=0):
    message = f"2026-11-29T09:00:{second:02}.{ns:09}Z {text}".encode()
    return struct.pack(">BxxxL", stream, len(message)) + message


FRAMES = [
    frame(1, "a\n"),
    frame(1, "b\n"),
    frame(1, "c\n", stream=2),
    frame(2, "d\n", ns=5),
    frame(1, "e\n", stream=2, ns=9),
    frame(2, "f\n", ns=5),
]
ALL = b"a\nb\nc\nd\ne\nf\n"


def test_an_answer_in_parts_of_any_size_has_all_messages():
    chance, answer = random.Random(3), b"".join(FRAMES)
    for _ in range(100):
        messages, data, found = Messages(Position()), answer, b""
        messages.begin()
        while data:
            size = chance.randint(1, 60)
            found += messages.feed(data[:size])
            data = data[size:]
        assert found == ALL


@pytest.mark.parametrize("known", range(len(FRAMES) + 1))
def test_the_next_answer_repeats_and_loses_no_message(known):
    first = Messages(Position())
    first.begin()
    before = first.feed(b"".join(FRAMES[:known]))
    again = Messages(Position.read(str(first.position)))
    again.begin()
    after = again.feed(b"".join(FRAMES))
    assert before + after == ALL
    assert again.overlaps is (known > 0)
    assert again.position == Messages(again.position).position
    # And within one source, after a connection was lost.
    first.begin()
    assert before + first.feed(b"".join(FRAMES)) == ALL


def test_a_time_with_a_zone_is_the_same_time():
    messages = Messages(Position())
    messages.begin()
    message = b"2026-11-29T11:00:01.5+02:00 x\n"
    assert messages.feed(struct.pack(">BxxxL", 1, len(message)) + message) == b"x\n"
    (found,) = messages.position.last.values()
    assert found == (1_795_942_801_500_000_000, 1)
    assert messages.position.since_s == "1795942791.500000000"


@pytest.mark.parametrize("text", ["", "x", "1#", "1#2#3,4", "99999999999999999999999#1"])
def test_a_position_that_cannot_be_read_is_the_beginning(text):
    assert Position.read(text).since_s is None
