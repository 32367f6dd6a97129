"""Overflow at the edges of the API: jobs that stay, jobs from another OwnPod, a cloud worker as clients see it."""

import pytest
from helpers import job_store

from ownpod.rules.credentials import digest_of
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.store.budgets import Budgets
from ownpod.store.fleet import Fleet

WORKERS = """
endpoints:
  ep:
    workers:
      - {cloud: "https://api.runpod.ai/v2/abc", key: rpa_KEY, price: 0.00034, budget: {perDay: 5}}
  other: {}
"""


@pytest.fixture
def api(new_app):
    return new_app(WORKERS).test_client()


def record(client, job_id):
    return client.hgetall(f"ownpod:job:{job_id}")


def submitted(api, client, body=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = api.post("/v2/ep/run", json={"input": {}, **(body or {})}, headers=named)
    assert answer.status_code == 200, answer.json
    return record(client, answer.json["id"])


def test_a_job_may_be_kept_here(api, client):
    assert submitted(api, client, {"policy": {"overflow": False}})["stays"] == "1"
    for policy in ({}, {"overflow": True}, {"overflow": None}, None):
        assert "stays" not in submitted(api, client, {"policy": policy})
    answer = api.post("/v2/ep/run", json={"input": {}, "policy": {"overflow": "no"}})
    assert (answer.status_code, answer.json["error"]) == (
        *(400,),
        "policy.overflow: must be true or false",
    )


def test_the_jobs_of_a_key_may_be_kept_here(new_app, client):
    api = new_app(
        WORKERS,
        OWNPOD_API_KEYS="mine,open",
        OWNPOD_OVERFLOW_NEVER_KEYS=f"mine,sha256:{digest_of('closed')}",
    ).test_client()
    keep = {"policy": {"overflow": True}}
    assert submitted(api, client, keep, Authorization="Bearer mine")["stays"] == "1"
    assert "stays" not in submitted(api, client, keep, Authorization="Bearer open")
    # The list opens nothing.
    refused = api.post("/v2/ep/run", json={"input": {}}, headers={"Authorization": "closed"})
    assert refused.status_code == 401
    path, key = "/v2/ep/runsync?wait=1000", {"Authorization": "mine"}
    answer = api.post(path, json={"input": {}}, headers=key)
    assert record(client, answer.json["id"])["stays"] == "1"


def test_a_body_under_an_idempotency_key_is_the_same_as_before(api, client):
    headers = {"Idempotency-Key": "one"}
    first = api.post("/v2/ep/run", json={"input": {}, "policy": {}}, headers=headers)
    again = api.post("/v2/ep/run", json={"input": {}, "policy": {}}, headers=headers)
    assert first.json["id"] == again.json["id"]
    other = {"input": {}, "policy": {"overflow": False}}
    assert api.post("/v2/ep/run", json=other, headers=headers).status_code == 409


def test_the_hops_of_a_job_are_kept_and_limited(api, client):
    assert "hops" not in submitted(api, client)
    assert "hops" not in submitted(api, client, X_OwnPod_Hops="0")
    assert submitted(api, client, X_OwnPod_Hops="1")["hops"] == "1"
    for hops, problem in (
        ("2", "1 is the most"),
        ("9", "1 is the most"),
        ("10", "0 to 9"),
        ("x", "0 to 9"),
        ("", "0 to 9"),
    ):
        for operation in ("run", "runsync"):
            answer = api.post(
                f"/v2/ep/{operation}", json={"input": {}}, headers={"X-OwnPod-Hops": hops}
            )
            assert answer.status_code == 400
            assert problem in answer.json["error"]


def test_no_client_can_name_a_cloud_worker(api):
    headers = {"X-Runpod-Worker-Id": "strict runpod"}
    answer = api.post("/v2/ep/run", json={"input": {}}, headers=headers)
    assert answer.status_code == 404


def test_a_worker_on_standby_is_shown_and_is_no_capacity(api, client):
    status = WorkerStatus(WorkerState.STANDBY, "not needed")
    Fleet(client).publish_status("runpod", status, node="runpod@h", ttl_s=60)
    health = api.get("/v2/ep/health").json
    assert set(health["workers"].values()) == {0}
    (worker,) = health["ownpod"]["workers"]
    assert (worker["state"], worker["reason"]) == ("standby", "not needed")
    assert "rpa_KEY" not in str(health)
    job = api.post("/v2/ep/run", json={"input": {}}).json["id"]
    reason = api.get(f"/v2/ep/status/{job}").json["waitingReason"]
    assert reason == "its cloud worker gets no jobs now: not needed"
    store = job_store(client)
    store.jobs.claim(job, worker_id="runpod", claim="c", lease_s=10)
    workers = api.get("/v2/ep/health").json["workers"]
    assert (workers["running"], workers["ready"], workers["idle"]) == (1, 0, 0)


def test_metrics_have_its_money(api, client):
    budgets = Budgets(client)
    budgets.reserve("runpod", "a:1", 250_000, limit=None)
    budgets.reserve("runpod", "b:1", 100, limit=None)
    budgets.settle("runpod", "a:1", 125_000, limit=None)
    text = api.get("/metrics").text
    labels = '{endpoint="ep",worker="runpod"}'
    assert f"ownpod_overflow_spent{labels} 0.125" in text
    assert f"ownpod_overflow_reserved{labels} 0.0001" in text
    assert f"ownpod_overflow_budget{labels} 5.0" in text
    assert 'ownpod_workers{endpoint="ep",state="standby"}' in text
