"""Submitting and awaiting jobs without Flask."""

import threading
from dataclasses import replace

import pytest
from helpers import job_store

from ownpod import settings
from ownpod.api.jobs.submissions import Submission, Submissions
from ownpod.api.schemas import RunSchema
from ownpod.configuration import load_endpoints
from ownpod.errors import EndpointNotFound, IdempotencyConflict
from ownpod.registry import Registry
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.notices import Notices


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def submissions(client, store):
    config = settings.load({"OWNPOD_WORKERS": "http://127.0.0.1:9", "REDIS_URL": "redis://unused"})
    notices = Notices(client)
    yield Submissions(
        Registry(load_endpoints(config), Fleet(client), config),
        store,
        notices,
        config,
        wanted=Managed(client).notice,
        now_ms=Managed(client).now_ms,
    )
    notices.stop()


def submission(prompt="hello", **changes):
    body = RunSchema().load({"input": f'{{"prompt": "{prompt}"}}'})
    return replace(Submission(endpoint="local-ep", body=body), **changes)


def test_a_submitted_job_waits_in_its_endpoints_queue(submissions, store, client):
    submitted = submissions.submit(submission(request_id="r-1"))
    job = store.jobs.get(submitted.job_id, "local-ep")
    assert (job.status, submitted.earlier) == (JobStatus.IN_QUEUE, False)
    assert client.llen("ownpod.local-ep") == 1
    with pytest.raises(EndpointNotFound):
        submissions.submit(submission(endpoint="other"))


def test_a_repeated_key_names_the_earlier_job_for_the_same_caller_only(submissions):
    first = submissions.submit(submission(idempotency_key="k", caller="a"))
    again = submissions.submit(submission(idempotency_key="k", caller="a"))
    assert (again.job_id, again.earlier) == (first.job_id, True)
    assert not submissions.submit(submission(idempotency_key="k", caller="b")).earlier
    with pytest.raises(IdempotencyConflict):
        submissions.submit(submission("other", idempotency_key="k", caller="a"))


def test_a_wait_ends_with_the_job(submissions, store, client):
    def work():
        client.brpop("ownpod.local-ep", 20)
        (job_id,) = client.zrange(keys.queued("local-ep"), 0, -1)
        attempt = store.jobs.claim(job_id, worker_id="w", claim="t", lease_s=9)
        store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="42"))

    worker = threading.Thread(target=work)
    worker.start()
    job = submissions.submit_and_wait(submission(), 20)
    worker.join()
    assert (job.status, job.output) == (JobStatus.COMPLETED, "42")


def test_a_wait_ends_when_its_time_is_over(submissions):
    job = submissions.submit_and_wait(submission(), 0.05)
    assert job.status is JobStatus.IN_QUEUE
