"""Handlers of the real SDK, from a client's point of view."""

import json

import pytest
import requests
from helpers import wait_until


def run(shared, endpoint, **job_input):
    answer = requests.post(
        f"{shared.base}/{endpoint}/runsync?wait=90000", json={"input": job_input}, timeout=100
    )
    assert answer.status_code == 200
    return answer.json()


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep"])
def test_a_result_comes_back(shared, endpoint):
    done = run(shared, endpoint, text="héllo")
    assert done["status"] == "COMPLETED"
    assert done["output"]["echo"] == "héllo"
    assert done["workerId"]


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep"])
@pytest.mark.parametrize(
    ("do", "expected"), [("list", [1, "two", None]), ("big", {"data": "x" * 5_000_000})]
)
def test_any_output_comes_back(shared, endpoint, do, expected):
    done = run(shared, endpoint, do=do)
    assert (done["status"], done["output"]) == ("COMPLETED", expected)


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep"])
def test_a_handler_that_returns_none_completes_without_output(shared, endpoint):
    done = run(shared, endpoint, do="none")
    assert done["status"] == "COMPLETED"
    assert done.get("output") is None


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep"])
def test_a_handler_that_raises_fails_with_its_error_as_a_string(shared, endpoint):
    done = run(shared, endpoint, do="raise")
    assert done["status"] == "FAILED"
    assert json.loads(done["error"])["error_message"] == "boom"


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep"])
def test_a_handler_that_returns_an_error_fails_with_it(shared, endpoint):
    done = run(shared, endpoint, do="error")
    assert (done["status"], done["error"]) == ("FAILED", "it says no")


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep"])
def test_a_handler_that_returns_an_empty_object_fails_with_a_plain_reason(shared, endpoint):
    done = run(shared, endpoint, do="empty")
    assert done["status"] == "FAILED"
    assert done["error"].startswith("the worker's /status answered HTTP 500")


def test_a_generator_gives_the_list_of_what_it_made(shared):
    done = run(shared, "generator-ep", count=3)
    assert done["status"] == "COMPLETED"
    assert done["output"] == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_generator_that_raises_fails_with_all_that_the_sdk_reports_and_ran_once(shared, tmp_path):
    note = tmp_path / "note"
    done = run(shared, "generator-ep", do="raise", count=2, note=str(note))
    assert done["status"] == "FAILED"
    # The SDK's local API breaks where it reads the exception: neither chunks nor the reason leave the worker.
    assert done["error"] == "the worker's /stream answered HTTP 500: Internal Server Error"
    assert len(note.read_text().splitlines()) == 1
    # The worker takes the next one.
    assert run(shared, "generator-ep", count=1)["output"] == [{"number": 0}]


def test_an_input_that_the_sdk_refuses_fails_at_once(shared):
    done = requests.post(
        f"{shared.endpoint}/runsync?wait=90000", json={"input": "text"}, timeout=100
    ).json()
    assert done["status"] == "FAILED"
    assert "HTTP 422" in done["error"]


@pytest.mark.parametrize("endpoint", ["local-ep", "async-ep", "generator-ep"])
def test_a_job_longer_than_every_time_out_completes_and_ran_once(shared, endpoint, tmp_path):
    note = tmp_path / "note"
    done = run(shared, endpoint, seconds=4, count=1, note=str(note))
    assert done["status"] == "COMPLETED"
    assert done["executionTime"] >= 4000
    assert len(note.read_text().splitlines()) == 1


def test_jobs_of_20_and_60_seconds_complete_and_ran_once(shared, tmp_path):
    # Two workers: they run beside each other.
    jobs = {s: shared.submit(seconds=s, note=str(tmp_path / str(s))) for s in (20, 60)}
    for seconds, job_id in jobs.items():
        done = shared.ended(job_id, seconds + 60)
        assert done["status"] == "COMPLETED"
        assert done["executionTime"] >= seconds * 1000
        assert len((tmp_path / str(seconds)).read_text().splitlines()) == 1


def test_a_timeout_is_reported_on_time_and_the_slot_stays_occupied(shared, tmp_path):
    base, end = f"{shared.base}/async-ep", tmp_path / "end"

    def post(path, body):
        return requests.post(f"{base}{path}", json=body, timeout=100).json()

    slow = {"input": {"until": str(end)}, "policy": {"executionTimeout": 5000}}
    slow_id = post("/run", slow)["id"]
    wait_until(lambda: requests.get(f"{base}/status/{slow_id}", timeout=60).json().get("workerId"))
    next_id = post("/run", {"input": {"note": str(tmp_path / "note")}})["id"]
    # Its handler ends only below.
    timed_out = post(f"/status-sync/{slow_id}?wait=90000", None)
    assert timed_out["status"] == "TIMED_OUT"
    assert timed_out["executionTime"] >= 5000
    assert "ran longer than 5000 ms" in timed_out["error"]
    # The worker still runs the handler: the next job waits for the slot, and the worker counts as running.
    health = requests.get(f"{base}/health", timeout=60).json()
    assert health["jobs"]["inQueue"] == 1
    assert not (tmp_path / "note").exists()
    end.touch()
    assert post(f"/status-sync/{next_id}?wait=90000", None)["status"] == "COMPLETED"


def test_several_endpoints_keep_to_themselves(shared):
    pids = {
        endpoint: {run(shared, endpoint)["output"]["pid"] for _ in range(6)}
        for endpoint in ("local-ep", "async-ep")
    }
    assert len(pids["async-ep"]) == 1
    assert not pids["local-ep"] & pids["async-ep"]
