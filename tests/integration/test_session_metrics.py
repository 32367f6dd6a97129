"""The metrics of presets: their sessions, tasks and models."""

import pytest
from helpers import job_store
from prometheus_client.parser import text_string_to_metric_families

from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.model_news import News, State
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed
from ownpod.store.models import FETCHES_S, Models

FILE = """
endpoints: {plain: {}}
models:
  llama-7b:
    chat: {docker_image: "llm:latest", oneOff: false}
    print: {docker_image: "llm:latest", protocol: stdout}
"""


@pytest.fixture
def api(new_app):
    return new_app(FILE).test_client()


@pytest.fixture
def store(client):
    return job_store(client)


def samples(api, *names):
    text = api.get("/metrics").get_data(as_text=True)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name in names
    }


def submit(api, preset, kind, **changes):
    body = {
        "task_type": kind,
        "task_difficulty": "low",
        "model_id": "llama-7b",
        "task_preset": preset,
        **changes,
    }
    answer = api.post("/api/tasks/submit", json=body, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json


def end(store, task_id, worker_id, outcome):
    attempt = store.jobs.claim(task_id, worker_id=worker_id, claim=task_id, lease_s=60)
    assert store.jobs.finish(attempt, outcome)


def test_sessions_are_counted_by_preset_and_status(api, client):
    by = ("ownpod_sessions",)
    assert samples(api, *by) == {
        ("ownpod_sessions", f"llama-7b-{preset}", status): 0
        for preset in ("chat", "print")
        for status in ("initializing", "waiting", "working")
    }
    host = AgentInfo("box", "docker", (Device("GPU-0", 0, "RTX", pools=("low",)),))
    Agents(client).heartbeat(host, "token")
    first = submit(api, "chat", "session", create_session=True)["session_id"]
    submit(api, "chat", "session", create_session=True)
    managed = Managed(client)
    assert managed.place(first, "box", "token", ["GPU-0"])
    managed.started(first, "box")
    assert managed.ready(first)
    found = samples(api, *by)
    # Its task waits in its queue, so it does not idle.
    assert found["ownpod_sessions", "llama-7b-chat", "working"] == 1
    assert found["ownpod_sessions", "llama-7b-chat", "initializing"] == 1
    assert samples(api, "ownpod_preset_info") == {
        ("ownpod_preset_info", "llama-7b-chat", "llama-7b", "chat"): 1,
        ("ownpod_preset_info", "llama-7b-print", "llama-7b", "print"): 1,
    }


def test_tasks_are_counted_by_type_and_how_they_ended(api, client, store):
    session = submit(api, "chat", "session")
    end(store, session["task_id"], session["session_id"], Outcome(JobStatus.COMPLETED, "1"))
    for outcome in (
        Outcome(JobStatus.FAILED, error="it broke"),
        Outcome(JobStatus.TIMED_OUT, error="executionTimeout: 5 s"),
    ):
        task = submit(api, "chat", "session", session_id=session["session_id"])["task_id"]
        end(store, task, session["session_id"], outcome)
    cancelled = submit(api, "chat", "session", session_id=session["session_id"])["task_id"]
    api.delete(f"/api/tasks/{cancelled}")
    task = submit(api, "print", "oneoff")["task_id"]
    worker = client.hget(keys.job(task), "private")
    client.hset(keys.job(task), "code", "oom")
    end(store, task, worker, Outcome(JobStatus.FAILED, error="out of memory"))
    name = "ownpod_tasks_ended_total"
    assert samples(api, "ownpod_tasks_ended") == {
        (name, "", "llama-7b-chat", "completed", "session"): 1,
        (name, "handler", "llama-7b-chat", "failed", "session"): 1,
        (name, "executionTimeout", "llama-7b-chat", "timeout", "session"): 1,
        (name, "", "llama-7b-chat", "cancelled", "session"): 1,
        (name, "oom", "llama-7b-print", "failed", "oneoff"): 1,
    }


def test_a_job_without_a_session_is_no_task(api, store):
    job = api.post("/v2/plain/run", json={"input": {}}).json["id"]
    end(store, job, "w", Outcome(JobStatus.COMPLETED, "1"))
    assert samples(api, "ownpod_tasks_ended") == {}


def test_models_are_counted_by_host_and_state_with_their_bytes_and_fetches(api, client):
    Agents(client).heartbeat(AgentInfo("box", "docker", ()), "token")
    stored = Models(client)
    stored.publish(
        "box",
        [
            News("a", "a", "hf://o/a", State.READY, 10, 10),
            News("b", "b", "hf://o/b", State.READY, 5, 5),
            News("c", "c", "hf://o/c", State.FETCHING, 1, 100),
        ],
    )
    stored.count("box", {State.READY: 2})
    stored.count("box", {State.READY: 1, State.FAILED: 4})
    found = samples(api, "ownpod_models", "ownpod_model_bytes", "ownpod_model_fetches")
    assert {name: value for name, value in found.items() if value} == {
        ("ownpod_models", "box", "ready"): 2,
        ("ownpod_models", "box", "fetching"): 1,
        ("ownpod_model_bytes", "box"): 15,
        ("ownpod_model_fetches_total", "box", "ready"): 3,
        ("ownpod_model_fetches_total", "box", "failed"): 4,
    }
    assert 0 < client.ttl(f"{keys.MODELS_FETCHES}box") <= FETCHES_S
