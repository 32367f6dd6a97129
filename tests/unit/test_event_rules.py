"""Typed events of a job: their order, and that a client which is cut off at any event gets exactly the rest."""

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ownpod.rules.event_data import Ending, end_code, final_output, finish_data, log_data
from ownpod.rules.events import (
    START,
    Connection,
    Cursor,
    Section,
    events_of,
    needs_connection,
    parse,
    parse_entry,
    resumes_at,
)
from ownpod.rules.jobs import Job, JobStatus

WAITING = Job("j", "ep", JobStatus.IN_QUEUE, created_ms=1000, attempt=0, retries=0)
SESSION = Connection("s23456789abcde", position=1, data={"gpu_id": 0})


@dataclass
class World:
    """A job with its chunks and its journal, as Redis has them."""

    job: Job = WAITING
    chunks: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    dropped: int = 0
    deleted: int = 0
    connection: Connection = SESSION
    most: int = 1000
    found: bool = False
    one_off: bool = False

    def read(self, cursor: Cursor | None, *, chunks: int = 100) -> Section:
        """As ``Journal.read``: ``chunks`` is the number of them that it brings at most."""
        at = resumes_at(self.job, cursor or START)
        if at == START:
            at = Cursor(entries=self.deleted)
        index = at.chunks if at.attempt == self.job.attempt else 0
        found = self.chunks[index : index + chunks]
        return Section(
            job=self.job,
            start=at,
            chunks=found,
            whole=index + len(found) == len(self.chunks),
            first=max(at.entries, self.dropped),
            entries=self.entries[max(0, at.entries - self.dropped) :],
            found=self.found,
            one_off=self.one_off,
        )

    def events(self, cursor: Cursor | None = None, *, chunks: int = 100) -> list:
        """All events until the stream waits, or ends."""
        found = []
        while True:
            section = self.read(cursor, chunks=chunks)
            connection = self.connection
            if not needs_connection(section, section.start):
                connection = Connection("unused", 99, placed=True, ready=True)
            new = list(events_of(section, connection))
            found += new
            cursor = parse(new[-1].id) if new else cursor
            if not section.more or cursor.ended:
                return found
            assert new, "a part without an event is read again for ever"

    # What happens to the job.

    def entry(self, name: str = "logs") -> None:
        if self.job.status.terminal:
            return
        value = {"log": f"line {self.dropped + len(self.entries)}"}
        entry = [self.job.attempt, len(self.chunks), 5, name, value]
        self.entries.append(json.dumps(entry))
        if len(self.entries) > self.most:
            del self.entries[0]
            self.dropped += 1

    def chunk(self, text: str = '"x"') -> None:
        if self.job.status is JobStatus.IN_PROGRESS:
            self.chunks.append(text)

    def claim(self) -> None:
        if self.job.status is JobStatus.IN_QUEUE:
            self.chunks.clear()
            self.job = replace(
                self.job,
                status=JobStatus.IN_PROGRESS,
                attempt=self.job.attempt + 1,
                worker_id="w",
                started_ms=2000,
            )

    def requeue(self) -> None:
        if self.job.status is JobStatus.IN_PROGRESS:
            self.job = replace(self.job, status=JobStatus.IN_QUEUE, worker_id=None, started_ms=None)

    def finish(self, status: JobStatus = JobStatus.COMPLETED, output: str | None = '"out"') -> None:
        if not self.job.status.terminal:
            self.job = replace(self.job, status=status, output=output, finished_ms=4500)

    def retry(self) -> None:
        """As a retry with the same id."""
        if self.job.status.terminal:
            self.deleted = self.dropped = self.dropped + len(self.entries)
            self.entries.clear()
            self.chunks.clear()
            self.job = replace(
                self.job, status=JobStatus.IN_QUEUE, worker_id=None, started_ms=None, output=None
            )

    def place(self) -> None:
        self.connection = replace(
            self.connection, placed=not self.connection.placed, ready=not self.connection.ready
        )

    def placed(self) -> None:
        """Its worker gets its place on a host."""
        if self.job.attempt == 0:
            self.entry("connection")

    def move(self) -> None:
        self.connection = replace(self.connection, position=self.connection.position % 3 + 1)


STEPS = ("entry", "chunk", "claim", "requeue", "finish", "retry", "place", "placed", "move")


def run(steps: str) -> World:
    world = World()
    for step in steps.split():
        getattr(world, step)()
    return world


def shown(found) -> list[str]:
    """Ids and what the events are."""
    return [f"{e.id} {e.event} {json.loads(e.data).get('status', '')}".strip() for e in found]


def test_the_events_of_a_job_come_in_the_order_of_the_rules():
    world = run("entry place entry claim entry chunk chunk entry")
    world.chunk("7")
    world.finish()
    assert shown(world.events()) == [
        "0-0.0c connection session_ready",
        "0-0.1c logs",
        "0-0.2c logs",
        "1-0.2 worker working",
        "1-0.3 logs",
        "1-1.3 text_delta",
        "1-2.3 text_delta",
        "1-2.4 logs",
        "1-3.4 output_delta",
        "1-3.4t text",
        "1-3.4i worker waiting",
        "1-end task_finish completed",
    ]
    assert json.loads(world.events()[-1].data) == {
        "status": "completed",
        "task_id": "j",
        "session_id": SESSION.session_id,
        "elapsed_seconds": 2,
        "queue_seconds": 1,
        "execution_ms": 2500,
        "attempts": 1,
        "status_url": "/v2/ep/status/j",
    }


def test_a_waiting_job_shows_each_position_once():
    world = World(connection=Connection(position=3, data={"reason": "busy"}))
    (first,) = world.events()
    assert (first.id, json.loads(first.data)) == (
        "0-0.0q3",
        {
            "status": "queued",
            "task_id": "j",
            "session_id": None,
            "endpoint": "ep",
            "position": 3,
            "reason": "busy",
        },
    )
    assert world.events(parse(first.id)) == []
    world.connection = Connection(position=2)
    (second,) = world.events(parse(first.id))
    assert (second.id, json.loads(second.data)["position"]) == ("0-0.0q2", 2)
    world.claim()
    assert shown(world.events(parse(second.id))) == [
        "1-0.0c connection allocated",
        "1-0.0 worker working",
    ]


def test_the_connection_stands_where_the_worker_got_its_place_for_a_client_that_was_cut_off_too():
    world, seen = World(), []
    for step in ("move", "entry", "placed", "entry", "claim", "chunk", "finish"):
        getattr(world, step)()
        seen += world.events(parse(seen[-1].id) if seen else None)
    assert shown(seen)[1:6] == [
        "0-0.1q2 logs",
        "0-0.2c connection session_ready",
        "0-0.3c logs",
        "1-0.3 worker working",
        "1-1.3 text_delta",
    ]
    for place, event in enumerate(seen[:-1], 1):
        assert world.events(parse(event.id)) == seen[place:], event.id
    # A stream from the beginning has it as its first event, and not again.
    assert [e.event for e in world.events()].count("connection") == 1


def test_a_job_that_waits_for_a_session_which_was_there_says_so_once():
    world = World(found=True, connection=replace(SESSION, position=2))
    (first,) = world.events()
    assert shown([first]) == ["0-0.0q2 connection session_found"]
    assert json.loads(first.data)["position"] == 2
    assert shown(world.events()) == shown([first])
    world.move()
    (second,) = world.events(parse(first.id))
    assert shown([second]) == ["0-0.0q3 connection queued"]
    world.place()
    assert shown(world.events(parse(second.id))) == ["0-0.0c connection session_ready"]
    # One that is the next of a session, or has begun or waits again, does not.
    assert shown(world.events()) == ["0-0.0c connection session_ready"]
    world.place()
    for step, status in (("claim", "session_ready"), ("requeue", "queued")):
        getattr(world, step)()
        assert json.loads(world.events()[0].data)["status"] == status


def test_a_client_of_an_older_attempt_gets_the_last_one_from_its_beginning():
    world = run("claim entry chunk requeue entry claim chunk entry")
    expected = [
        "2-0.2r worker restarted",
        "2-0.2c connection session_ready",
        "2-0.2 worker working",
        "2-1.2 text_delta",
        "2-1.3 logs",
    ]
    assert shown(world.events(Cursor(1, 1, 1))) == expected
    assert shown(world.events()) == ["0-0.0c connection session_ready", *expected]


def test_a_lost_attempt_shows_the_queue_again_and_then_the_restart():
    world = run("claim chunk requeue")
    seen = world.events(Cursor(1, 0, 0))
    assert shown(seen) == ["1-1.0 text_delta", "1-1.0q1 connection queued"]
    world.entry()
    seen = world.events(parse(seen[-1].id))
    assert shown(seen) == ["1-1.1q1 logs"]
    world.claim()
    assert shown(world.events(parse(seen[-1].id)))[0] == "2-0.1r worker restarted"


def test_a_job_that_moves_to_another_session_shows_the_new_one():
    world = run("place")
    (seen,) = world.events()
    section = world.read(parse(seen.id))
    assert list(events_of(section, world.connection)) == []
    moved = replace(section, moves=1)
    assert needs_connection(moved, moved.start)
    (event,) = events_of(moved, replace(world.connection, session_id="other000000000"))
    assert (event.id, json.loads(event.data)["session_id"]) == ("0-0.0c1", "other000000000")


@pytest.mark.parametrize(
    ("status", "error", "ending", "finish"),
    [
        (JobStatus.FAILED, "boom", Ending(), ("failed", "handler")),
        (JobStatus.FAILED, "x", Ending(all_lost=True), ("failed", "worker_lost")),
        (JobStatus.FAILED, "x", Ending("oom", 137), ("failed", "oom")),
        (JobStatus.TIMED_OUT, "ttl: the job waited", Ending(), ("timeout", "ttl")),
        (JobStatus.TIMED_OUT, "executionTimeout: x", Ending(), ("timeout", "executionTimeout")),
        (JobStatus.CANCELLED, "by a client", Ending(), ("cancelled", None)),
    ],
)
def test_the_end_has_the_word_of_its_state_and_a_code(status, error, ending, finish):
    job = replace(WAITING, status=status, error=error, finished_ms=9000)
    data = finish_data(job, ending, None)
    assert (data["status"], data.get("code")) == finish
    assert (data["error"], data["queue_seconds"], data["elapsed_seconds"]) == (error, 8, 0)
    assert data.get("exit_code") == ending.exit_code
    assert end_code(replace(job, status=JobStatus.COMPLETED), Ending()) is None


def test_a_session_that_has_ended_does_not_wait_for_tasks():
    world = run("claim")
    world.finish(JobStatus.FAILED, None)
    section = world.read(Cursor(1))
    assert [e.event for e in events_of(section, SESSION)] == ["worker", "task_finish"]
    for ending in (Ending("session_ended"), Ending("oom", 137), Ending(all_lost=True)):
        ended = replace(section, ending=ending)
        assert [e.event for e in events_of(ended, SESSION)] == ["task_finish"]


@pytest.mark.parametrize(
    ("output", "event"),
    [
        (None, None),
        ('"a"', ("text", {"content": "a"})),
        ('["a", "b"]', ("text", {"content": "ab"})),
        ("[]", ("output", {"output": []})),
        ('["a", 1]', ("output", {"output": ["a", 1]})),
        ('{"a": 1}', ("output", {"output": {"a": 1}})),
        ("null", ("output", {"output": None})),
        (f'"{"x" * 2_000_000}"', ("output", {"output_url": "/v2/ep/status/j"})),
    ],
)
def test_the_final_output_is_text_if_it_is_a_string_or_several(output, event):
    found = final_output(replace(WAITING, output=output))
    assert found is None if event is None else (found[0], json.loads(found[1])) == event


@pytest.mark.parametrize(
    ("line", "stream", "data"),
    [
        ("INFO   | Started.", None, {"log": "Started.", "level": "info", "stream": "sdk"}),
        ("WARN   | x | y", None, {"log": "x | y", "level": "warning", "stream": "sdk"}),
        ("ERROR: disk", "stderr", {"log": "ERROR: disk", "level": "error", "stream": "stderr"}),
        ("DEBUG:root:x", "stdout", {"log": "DEBUG:root:x", "level": "debug", "stream": "stdout"}),
        ("INFORMATION", None, {"log": "INFORMATION", "level": "info"}),
        ("", None, {"log": "", "level": "info"}),
    ],
)
def test_a_log_line_has_a_level(line, stream, data):
    assert log_data(line, stream) == data


def test_log_lines_have_the_time_of_the_entry_unless_they_have_their_own():
    entry = parse_entry('[1, 0, 1700000000123, "logs", {"log": "x"}]')
    assert json.loads(entry.data)["timestamp"] == "2023-11-14T22:13:20.123Z"
    own = parse_entry('[1, 0, 5, "logs", {"log": "x", "timestamp": "t"}]')
    assert json.loads(own.data)["timestamp"] == "t"


@pytest.mark.parametrize(
    "text", ["", "null", "[1, 2]", '["a", 0, 0, "logs", {}]', '[1, 0, 1, "logs", 7]', "[" * 9000]
)
def test_an_entry_that_cannot_be_read_is_passed_over(text):
    assert parse_entry(text) is None
    world = run("claim entry")
    world.entries.insert(0, text)
    assert shown(world.events())[-1] == "1-0.2 logs"


@pytest.mark.parametrize("text", ["1-0.2", "0-0.0q3", "2-17.4000t", "1-end", "0-0.0c12"])
def test_an_id_is_a_cursor(text):
    assert str(parse(text)) == text


def test_a_one_off_task_works_when_its_container_runs_as_its_journal_says():
    world = World(one_off=True, connection=Connection(position=1, data={"gpu_id": 0}))

    def says(status):
        world.entries.append(
            json.dumps([world.job.attempt, len(world.chunks), 5, "worker", {"status": status}])
        )

    def runs():
        world.claim()
        says("created")
        says("working")

    seen = world.events()
    world.claim()
    # It has a worker, whose container is not created yet.
    seen += world.events(parse(seen[-1].id))
    assert shown(seen) == ["0-0.0q1 connection queued", "1-0.0c connection allocated"]
    says("created")
    says("working")
    world.chunk()
    world.requeue()
    runs()
    world.chunk()
    says("stopped")
    world.finish()
    second = [
        "2-0.2r worker restarted",
        "2-0.2c connection allocated",
        "2-0.3 worker created",
        "2-0.4 worker working",
        "2-1.4 text_delta",
        "2-1.5 worker stopped",
        "2-1.5t text",
        "2-end task_finish completed",
    ]
    assert shown(world.events(parse(seen[-1].id))) == second
    assert shown(world.events())[1:] == second


@pytest.mark.parametrize(
    "text",
    ["", "1-2", "1-end ", "1-1.1tt", "1-1.1Q", "-1-0.0", "1-1.1\n", "१-0.0", "9" * 10 + "-0.0"],
)
def test_any_other_text_is_no_cursor(text):
    assert parse(text) is None


def test_entries_that_were_dropped_are_counted_once():
    world = World(most=3)
    for _ in range(8):
        world.entry()
    found = world.events()
    assert json.loads(found[1].data)["log"] == "5 earlier lines dropped"
    assert [json.loads(e.data)["log"] for e in found[2:]] == ["line 5", "line 6", "line 7"]
    assert shown(world.events(parse(found[1].id))) == shown(found[2:])
    assert (
        json.loads(world.events(Cursor(0, 0, 4, "q1"))[0].data)["log"] == "1 earlier line dropped"
    )


def test_a_cursor_of_no_attempt_or_of_an_earlier_submission_begins_again():
    world = run("claim entry finish")
    assert shown(world.events(Cursor(7, 3, 2))) == shown(world.events())
    world.retry()
    assert shown(world.events(parse("1-end"))) == ["0-0.1q1 connection queued"]
    world.entry()
    assert shown(world.events()) == ["0-0.1q1 connection queued"]
    world.claim()
    assert shown(world.events())[1:] == [
        "2-0.2r worker restarted",
        "2-0.2c connection session_ready",
        "2-0.2 worker working",
    ]


STORIES = st.lists(st.sampled_from(STEPS), max_size=40)


@example(
    ["claim", "chunk", "entry", "requeue", "entry", "claim", "entry", "chunk", "finish"],
    1,
    False,
    False,
)
@example(["claim", "chunk", "chunk", "requeue"], 1, False, False)
@example(["entry", "entry", "move"], 1, True, False)
@example(["place", "claim", "requeue", "claim", "entry", "finish"], 1, False, True)
@given(STORIES, st.integers(1, 3), st.booleans(), st.booleans())
def test_a_stream_that_is_cut_at_any_event_goes_on_with_exactly_the_rest(
    steps, chunks, found, one_off
):
    world = World(most=5, found=found, one_off=one_off)
    for step in steps:
        getattr(world, step)()
    whole = world.events()
    assert shown(world.events(chunks=chunks)) == shown(whole)
    assert len({event.id for event in whole}) == len(whole)
    for place, event in enumerate(whole[:-1], 1):
        assert world.events(parse(event.id), chunks=chunks) == whole[place:], event.id
    finishes = [place for place, event in enumerate(whole) if event.event == "task_finish"]
    assert finishes == ([len(whole) - 1] if world.job.status.terminal else [])
    assert whole[0].event == "connection"


def lasting(events) -> list:
    """Without what depends on the moment of a read: the place in the queue, and when the worker had its place on a host."""
    found = []
    for event in events:
        at = parse(event.id)
        if event.event != "connection":
            place = replace(at, mark="") if at.attempt == 0 or at.mark[:1] == "q" else at
            # A requeue removes the worker from the record.
            data = {k: v for k, v in json.loads(event.data).items() if k != "worker_id"}
            found.append((str(place), event.event, data))
    return found


@given(
    st.lists(st.sampled_from([s for s in STEPS if s != "retry"]), max_size=40),
    st.booleans(),
    st.randoms(),
)
def test_a_client_that_was_there_all_the_time_has_what_one_that_was_cut_off_gets(
    steps, one_off, random
):
    world, seen, cursor = World(one_off=one_off), [], None
    for step in [*steps, "claim", "chunk", "entry", "finish"]:
        getattr(world, step)()
        if random.random() < 0.7:
            new = world.events(cursor)
            seen += new
            cursor = parse(new[-1].id) if new else cursor
            if new and cursor.ended:
                break
    if not cursor or not cursor.ended:
        seen += world.events(cursor)
    assert [e.event for e in seen].count("task_finish") == 1
    assert seen[-1].event == "task_finish"
    last = parse(seen[-1].id).attempt
    for place, event in enumerate(seen[:-1], 1):
        at, rest = parse(event.id), world.events(parse(event.id))
        if at.attempt == last or (at.attempt == 0 and last == 1):
            assert lasting(rest) == lasting(seen[place:]), event.id
        else:
            begin = [e for e in seen if parse(e.id).attempt == last]
            assert lasting(rest)[-len(lasting(begin)) :] == lasting(begin), event.id


def test_that_a_job_has_gone_to_a_cloud_worker_is_an_event():
    world = World()
    world.claim()
    data = {"status": "overflow", "worker_id": "runpod"}
    world.entries.append(json.dumps([1, 0, 5, "connection", data]))
    seen = world.events(None)
    assert [json.loads(event.data) for event in seen if "overflow" in event.data] == [data]
    assert [event.event for event in seen][-1] == "connection"
    assert world.events(parse(seen[-1].id)) == []
