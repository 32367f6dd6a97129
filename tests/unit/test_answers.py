"""What a worker's answers mean."""

import json

import pytest

from ownpod.errors import AttemptLost
from ownpod.rules.jobs import JobStatus
from ownpod.workers.answers import (
    POLL_FAILURES,
    Answer,
    PollFailures,
    WorkerNotReached,
    outcome_in,
    yielded_in,
)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_the_answer_of_a_proxy_is_not_the_end_of_a_run(status):
    with pytest.raises(WorkerNotReached, match=f"/status was answered HTTP {status}: busy, by a"):
        outcome_in(Answer(status, b"busy"), "r")


@pytest.mark.parametrize("status", [302, 401, 403, 500, 501])
def test_any_other_error_of_http_is_failed_and_names_the_route(status):
    outcome = outcome_in(Answer(status, b"oh"), "r", route="/stream")
    assert outcome.status is JobStatus.FAILED
    assert outcome.error == f"the worker's /stream answered HTTP {status}: oh"


def test_a_run_that_the_worker_does_not_know_is_lost_and_was_reached():
    with pytest.raises(AttemptLost) as caught:
        outcome_in(Answer(404, b""), "r")
    assert not isinstance(caught.value, WorkerNotReached)


def test_the_reason_of_a_stream_is_used_where_status_has_none():
    failed = Answer(200, b'{"status": "FAILED"}')
    assert outcome_in(failed, "r", reason="boom").error == "boom"
    body = Answer(200, b'{"status": "FAILED", "error": "its own"}')
    assert outcome_in(body, "r", reason="boom").error == "its own"
    assert outcome_in(Answer(200, b'{"status": "COMPLETED"}'), "r", reason="boom").error is None


def test_three_cut_polls_in_a_row_lose_a_run():
    failures = PollFailures()
    assert [failures.cut(now) for now in range(POLL_FAILURES)] == [False, False, True]
    failures.answered()
    assert not failures.cut(100.0)


def test_a_proxy_that_refuses_polls_for_20_s_loses_nothing_and_one_that_goes_on_does():
    failures = PollFailures(longest_s=60)
    assert not any(failures.refused(float(now)) for now in range(20))
    failures.answered()
    refused = [now for now in range(100, 200) if failures.refused(float(now))]
    assert refused[0] == 160


def test_polls_that_are_cut_and_refused_by_turns_lose_the_run_too():
    failures = PollFailures(longest_s=60)
    lost = [
        failures.cut(float(now)) if now % 2 else failures.refused(float(now)) for now in range(70)
    ]
    assert lost.index(True) == 60


def lines(*body):
    return yielded_in(
        [part if isinstance(part, bytes) else json.dumps(part).encode() for part in body]
    )


@pytest.mark.parametrize(
    ("body", "chunks", "error"),
    [
        ([{"output": 1}, {"error": "boom"}], ["1"], "boom"),
        ([{"stream": [{"output": 1}, {"error": {"a": 1}}]}], ["1"], '{"a": 1}'),
        ([{"output": {"error": "mine"}}], ['{"error": "mine"}'], None),
        ([{"error": "mine", "more": 1}], ['{"error": "mine", "more": 1}'], None),
        ([b'data: {"error": "boom"}'], [], "boom"),
        ([b"event: x", b'data: {"status": "FAILED", "error": "boom"}'], [], "boom"),
        ([{"status": "IN_PROGRESS", "error": "not yet"}], [], None),
        ([{"status": "COMPLETED"}, b"[DONE]", b": hello", b"", b"data:"], [], None),
        ([b"text", b"1", b"[2]"], ['"text"', "1", "[2]"], None),
        ([{"status": [], "stream": 5}, {"stream": None}], [], None),
    ],
)
def test_a_stream_has_chunks_and_the_handlers_reason(body, chunks, error):
    found = lines(*body)
    assert (found.chunks, found.error) == (chunks, error)
