"""Lists of jobs on a real Redis: their content, and the bytes that they transfer."""

import pytest
from helpers import job_store, load_settings, new_job, now_ms

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.errors import JobNotFound
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.listing import Listing

# They take a tenth of the time of all fast tests.
pytestmark = pytest.mark.slow

LARGE = f'"{"x" * 200_000}"'


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def listing(client):
    return Listing(client)


@pytest.fixture
def api(client, redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}}")
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    yield app.test_client()
    services_of(app).notices.stop()


def sent(client, call):
    """Bytes that Redis sends during a call, without those of an INFO."""

    def total():
        return client.info("stats")["total_net_output_bytes"]

    first, second = total(), total()
    call()
    return total() - second - (second - first)


@pytest.fixture
def large_jobs(store):
    """50 jobs with 200 KB each of input and of output or progress; the last five run."""
    for number in range(50):
        store.jobs.create(new_job(f"j{number:02}", input=LARGE))
        attempt = store.jobs.claim(f"j{number:02}", worker_id="w", claim="t", lease_s=60)
        if number < 45:
            store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output=LARGE))
        else:
            store.chunks.progress(attempt.job_id, attempt.number, LARGE)


def test_a_list_transfers_no_payload_and_little_for_a_short_one(client, api, listing, large_jobs):
    def get(path):
        answer = api.get(f"/v2/ep{path}")
        assert answer.status_code == 200
        return answer.json

    assert sent(client, lambda: get("/requests?limit=1")) < 10_000
    assert sent(client, lambda: get("/requests?limit=50")) < 50_000
    assert sent(client, lambda: get("/requests?status=IN_PROGRESS")) < 20_000
    assert [job["id"] for job in get("/requests?limit=50")["requests"]] == [
        f"j{number:02}" for number in reversed(range(50))
    ]
    options = {"before": None, "limit": 100_000, "logs": False}
    assert sent(client, lambda: listing.recent("ep", status=JobStatus.FAILED, **options)) < 10_000
    # The read of the commands and the nodes.
    assert sent(client, lambda: listing.get("j00")) < 1_000


def test_a_cancel_and_an_event_stream_that_has_ended_transfer_no_payload(client, api, large_jobs):
    assert sent(client, lambda: api.post("/v2/ep/cancel/j01")) < 10_000
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1-end"}

    def stream():
        assert api.get("/v2/ep/stream/j01", headers=headers).status_code == 204

    assert sent(client, stream) < 10_000


def test_details_have_the_payload(store, listing, large_jobs):
    details = listing.details("j00")
    assert (details["input"], details["output"]) == (LARGE[1:-1], LARGE[1:-1])
    with pytest.raises(JobNotFound):
        listing.details("none")


def test_details_contain_no_token(store, listing, client):
    store.jobs.create(new_job(webhook="http://h/"), channel="somewhere")
    store.jobs.subscribe("job-1", "elsewhere", end_only=False)
    store.jobs.claim("job-1", worker_id="w", claim="secret", lease_s=60)
    client.hset(keys.job("job-1"), "webhook_try", "{}")
    shown = listing.details("job-1")
    assert not {"claim", "callback", "watched", "followed", "webhook_try"} & shown.keys()
    assert "secret" not in str(shown)


def test_an_outline_is_the_job_without_its_payload(store, listing):
    store.jobs.create(new_job())
    attempt = store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=60)
    store.jobs.finish(attempt, Outcome(JobStatus.FAILED, output="1", error="boom", execution_ms=7))
    whole, outline = store.jobs.get("job-1", "ep"), listing.get("job-1", "ep")
    assert whole.output == "1"
    assert outline.output is None
    assert [getattr(outline, name) for name in Job.FIELDS if name != "output"] == [
        getattr(whole, name) for name in Job.FIELDS if name != "output"
    ]
    assert listing.find("none") is None
    for wrong in (("none",), ("none", "ep"), ("job-1", "other")):
        with pytest.raises(JobNotFound):
            listing.get(*wrong)


def write(client, ids, *, endpoint="ep", ms_each=1):
    """Records of waiting jobs, in the order of their creation."""
    began = now_ms() - len(ids)
    with client.pipeline(transaction=False) as pipe:
        for number, job_id in enumerate(ids):
            created = began + number // ms_each
            record = new_job(job_id, endpoint=endpoint, created_ms=created).record()
            pipe.hset(keys.job(job_id), mapping=record)
            pipe.zadd(keys.recent(endpoint), {job_id: created})
        pipe.execute()


def walk(listing, *, limit, status=None):
    """The ids of all pages, in order."""
    before = None
    while True:
        page, before = listing.recent("ep", status=status, before=before, limit=limit)
        yield from (found.job.id for found in page)
        if before is None:
            return


@pytest.mark.parametrize("ms_each", [1, 7, 2000])
@pytest.mark.parametrize("limit", [3000, 100, 7])
@pytest.mark.parametrize("status", [None, JobStatus.IN_QUEUE])
def test_living_jobs_are_listed_where_every_second_record_is_gone(
    client, listing, ms_each, limit, status
):
    ids = [f"j{number:04}" for number in range(1200)]
    write(client, ids, ms_each=ms_each)
    client.delete(*(keys.job(job_id) for job_id in ids[::2]))
    living = ids[1::2][::-1]
    for _ in range(2):
        assert list(walk(listing, limit=limit, status=status)) == living
    assert client.zcard(keys.recent("ep")) == 600


def test_a_list_is_whole_while_other_readers_remove_what_is_gone_and_jobs_come(client, listing):
    ids = [f"j{number:04}" for number in range(1500)]
    write(client, ids)
    client.delete(*(keys.job(job_id) for job_id in ids[::2]))
    found = []
    for number, job_id in enumerate(walk(listing, limit=10)):
        found.append(job_id)
        if number % 100 == 0:
            write(client, [f"new{number}"])
            list(walk(listing, limit=1000))
    assert found == ids[1::2][::-1]


def test_a_status_that_few_jobs_have_is_found_in_pages(client, listing):
    ids = [f"j{number:04}" for number in range(1200)]
    write(client, ids)
    wanted = ids[::100]
    for job_id in wanted:
        client.hset(keys.job(job_id), "status", "FAILED")
    assert list(walk(listing, limit=5, status=JobStatus.FAILED)) == wanted[::-1]
    (found,), _ = listing.recent("ep", status=JobStatus.FAILED, before=None, limit=1)
    assert found.job.id == wanted[-1]


def test_logs_are_read_unless_they_are_not_wanted(store, listing):
    store.jobs.create(new_job())
    store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=60)
    store.jobs.requeue("job-1", 1, lost=True, reason="gone")
    options = {"status": None, "before": None, "limit": 1}
    for logs, number in ((True, 1), (False, 0)):
        (found,), _ = listing.recent("ep", logs=logs, **options)
        assert len(found.attempts) == number


def test_a_stream_from_its_end_transfers_no_earlier_chunk(client, api, store):
    store.jobs.create(new_job("s"))
    attempt = store.jobs.claim("s", worker_id="w", claim="t", lease_s=60)
    for _ in range(10):
        store.chunks.add("s", attempt.number, [LARGE])
    store.chunks.add("s", attempt.number, ["1"])

    def read():
        assert api.get("/v2/ep/stream/s?from=10").json["stream"] == [{"output": 1}]

    assert sent(client, read) < 50_000
