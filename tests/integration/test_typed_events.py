"""Journals in Redis, and the routes that show typed events."""

import json
import threading

import pytest
from helpers import job_store, new_job, wait_until
from sse import Parser, parsed, stream_of

from ownpod.api.services import services_of
from ownpod.errors import JobNotFound
from ownpod.rules.events import Connection, events_of, parse
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.output import Line
from ownpod.rules.runs import Outcome
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import journal, keys
from ownpod.store.agents import Agents
from ownpod.store.chunks import call_token
from ownpod.store.managed import Managed
from ownpod.store.outputs import Kept, Outputs, Place

W, X = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"
FILE = "endpoints: {ep: {workers: [{url: 'http://a:1'}]}, other: {}}"
DONE = Outcome(JobStatus.COMPLETED, output='"out"')


@pytest.fixture
def store(client):
    found = job_store(client)
    found.jobs.create(new_job())
    return found


def claim(store, job_id="job-1", worker="w", token="t"):
    return store.jobs.claim(job_id, worker_id=worker, claim=token, lease_s=9)


def events(store, cursor=None, job_id="job-1"):
    return list(events_of(store.journal.read(job_id, "ep", cursor), Connection(position=1)))


def logs(store, cursor=None, job_id="job-1"):
    found = events(store, cursor, job_id)
    return [json.loads(event.data)["log"] for event in found if event.event == "logs"]


def log(store, text, attempt=None, job_id="job-1", **options):
    return store.journal.add(job_id, "logs", {"log": text}, attempt=attempt, **options)


# --- in Redis


def test_entries_and_chunks_are_one_stream_in_the_order_in_which_they_came(store):
    store.journal.add("job-1", "worker", {"status": "created"})
    attempt = claim(store)
    log(store, "a", 1)
    store.chunks.add("job-1", 1, ['"one"', '{"two": 2}'])
    log(store, "b", 1)
    store.chunks.add("job-1", 1, ['"three"'])
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='["one", "three"]'))
    found = events(store)
    assert [(event.id, event.event) for event in found] == [
        ("0-0.0c", "connection"),
        ("0-0.1c", "worker"),
        ("1-0.1", "worker"),
        ("1-0.2", "logs"),
        ("1-1.2", "text_delta"),
        ("1-2.2", "output_delta"),
        ("1-2.3", "logs"),
        ("1-3.3", "text_delta"),
        ("1-3.3t", "text"),
        ("1-end", "task_finish"),
    ]
    assert json.loads(found[-2].data) == {"content": "onethree"}
    for place, event in enumerate(found, 1):
        assert events(store, parse(event.id)) == (found[place:] or found)


def test_an_entry_needs_the_attempt_and_a_job_that_has_not_ended(store):
    assert log(store, "before")
    assert not log(store, "x", 1)
    attempt = claim(store)
    assert log(store, "first", 1)
    store.jobs.requeue("job-1", 1, lost=True, reason="gone")
    assert log(store, "late", 1)
    attempt = claim(store, token="t2")
    assert not log(store, "too late", 1)
    assert log(store, "second", 2)
    assert log(store, "any")
    assert store.jobs.finish(attempt, DONE)
    assert not log(store, "after", 2)
    assert not log(store, "after")
    assert not log(store, "x", job_id="unknown")
    assert logs(store) == ["before", "second", "any"]
    assert [event.event for event in events(store, parse("1-0.1"))][:2] == ["worker", "connection"]


def test_a_call_that_is_repeated_adds_one_entry(store):
    token = call_token()
    assert log(store, "a", token=token)
    assert log(store, "b")
    assert log(store, "a", token=token)
    assert logs(store) == ["a", "b"]


def test_a_journal_is_bounded_in_entries_and_bytes(store, client):
    client.hset(keys.job("job-1"), "journal_first", 0)
    with client.pipeline(transaction=False) as pipe:
        entry = json.dumps([0, 0, 1, "logs", {"log": "old"}])
        pipe.rpush(keys.journal("job-1"), *[entry] * journal.JOURNAL_ENTRIES)
        pipe.hset(keys.job("job-1"), "journal_bytes", len(entry) * journal.JOURNAL_ENTRIES)
        pipe.execute()
    log(store, "new")
    assert client.llen(keys.journal("job-1")) == journal.JOURNAL_ENTRIES
    found = logs(store, parse("0-0.0q1"))
    assert (found[0], found[-1], len(found)) == ("1 earlier line dropped", "new", 5001)
    for _ in range(20):
        log(store, "x" * 100_000)
    assert logs(store)[1:] == ["x" * 100_000] * 10
    size = sum(map(len, client.lrange(keys.journal("job-1"), 0, -1)))
    assert int(client.hget(keys.job("job-1"), "journal_bytes")) == size
    assert size <= journal.JOURNAL_BYTES
    # An entry larger than all that is kept leaves nothing.
    log(store, "y" * 2_000_000)
    log(store, "z")
    assert logs(store)[1:] == ["z"]


def test_many_chunks_are_read_in_parts(store):
    claim(store)
    many = journal.MOST_CHUNKS
    store.chunks.add("job-1", 1, [f'"{number}"' for number in range(many + 1)])
    log(store, "after them", 1)
    first = store.journal.read("job-1", "ep")
    assert (len(first.chunks), first.whole) == (many, False)
    found = list(events_of(first, Connection()))
    assert [event.event for event in found[-2:]] == ["text_delta"] * 2
    rest = events(store, parse(found[-1].id))
    assert [event.event for event in rest] == ["text_delta", "logs"]


def test_a_journal_expires_with_its_record_and_a_retry_begins_a_new_one(store, client):
    log(store, "waits")
    assert client.pttl(keys.journal("job-1")) == -1
    attempt = claim(store)
    log(store, "old", 1)
    end = Outcome(JobStatus.FAILED, error="x")
    store.jobs.finish(attempt, end)
    assert 0 < client.pttl(keys.journal("job-1")) <= 1_800_000
    store.jobs.retry("job-1", "ep", "job-2")
    assert logs(store, job_id="job-2") == []
    store.jobs.retry("job-1", "ep", "job-1")
    assert not client.exists(keys.journal("job-1"))
    log(store, "new")
    assert logs(store) == []
    claim(store, token="t2")
    log(store, "runs", 2)
    assert logs(store) == ["runs"]
    assert logs(store, parse("1-end")) == ["runs"]
    assert client.pttl(keys.journal("job-1")) == -1
    for shown in (store.listing.details("job-1"), store.listing.details("job-2")):
        assert not [name for name in shown if name.startswith("journal")]


def test_the_jobs_that_wait_for_a_worker_or_run_on_it_are_told(store):
    own = store.messages.own_queue("ep", W)
    for job_id in ("waits", "runs", "ended"):
        store.jobs.create(new_job(job_id, queue=own))
    store.jobs.create(new_job("elsewhere", queue=store.messages.own_queue("ep", X)))
    claim(store, "runs", W)
    store.jobs.finish(claim(store, "ended", W, "t2"), DONE, slot_free=False)
    store.journal.add_to_all("ep", W, "worker", {"status": "pulling"})
    told = [
        job_id
        for job_id in ("job-1", "waits", "runs", "ended", "elsewhere")
        if '{"status": "pulling"}' in [event.data for event in events(store, job_id=job_id)]
    ]
    assert told == ["waits", "runs"]


def test_a_handlers_progress_is_an_event_unless_it_is_long(store):
    claim(store)
    store.chunks.progress("job-1", 1, '{"step": 3}')
    store.chunks.progress("job-1", 1, json.dumps("x" * 20_000))
    assert not store.chunks.progress("job-1", 2, "1")
    *_, last = events(store)
    assert json.loads(last.data) == {"status": "working", "progress": {"step": 3}}


def test_only_a_job_of_the_endpoint_is_read(store):
    for job_id, endpoint in (("job-1", "other"), ("unknown", "ep")):
        with pytest.raises(JobNotFound):
            store.journal.read(job_id, endpoint)


def test_a_followed_job_is_notified_of_its_journal_and_another_costs_nothing(store, client):
    heard = []
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(all=lambda message: heard.append(message["data"]))
        log(store, "before")
        store.jobs.subscribe("job-1", "all", end_only=False)
        log(store, "a")
        client.publish("all", "last")
        while heard[-1:] != ["last"]:
            pubsub.get_message(timeout=5)
    assert heard == ["job-1 JOURNAL", "last"]
    store.jobs.create(new_job("quiet"))
    store.jobs.finish(claim(store, "quiet"), DONE)
    assert not client.exists(keys.journal("quiet"))
    assert not [f for f in client.hkeys(keys.job("quiet")) if f.startswith("journal")]


# --- log lines of managed workers


@pytest.fixture
def managed(client):
    Agents(client).heartbeat(AgentInfo("h", "process", devices=(GPU,)), "t")
    found = Managed(client)
    for worker in (W, X):
        assert found.want(worker, "ep", spec=ManagedSpec(Template(command=("c",))))
        assert found.place(worker, "h", "t")
    return found


GPU = Device("GPU-1", 3, "RTX", pools=("low",))


@pytest.mark.usefixtures("managed")
def test_a_workers_lines_about_its_own_jobs_are_in_their_journals(store, client):
    outputs = Outputs(client)
    for job_id in ("mine", "others"):
        store.jobs.create(new_job(job_id))
    claim(store, "mine", W)
    claim(store, "others", X)
    lines = [
        Line("loading"),
        Line("INFO   | Started.", "mine"),
        Line("ERROR: hot", "mine"),
        Line("DEBUG  | Generator output: x", "mine"),
        Line("forged", "others"),
        Line("forged", "unknown"),
        Line("of no attempt", "mine-2"),
    ]
    for _ in range(2):
        assert outputs.append(W, lines, "", Place("b1")) is Kept.YES
    assert [line.text for line in outputs.of_job(W, "mine")][:2] == [lines[1].text, lines[2].text]
    found = [json.loads(e.data) for e in events(store, job_id="mine") if e.event == "logs"]
    assert all(data.pop("timestamp").endswith("Z") for data in found)
    assert found == [
        {"log": "Started.", "level": "info", "stream": "sdk"},
        {"log": "ERROR: hot", "level": "error"},
    ]
    assert logs(store, job_id="others") == []
    store.jobs.requeue("mine", 1, lost=True, reason="gone")
    claim(store, "mine", W, "t2")
    late = [Line("late", "mine"), Line("second", "mine-2")]
    assert outputs.append(W, late, "b1", Place("b2")) is Kept.YES
    assert logs(store, job_id="mine") == ["second"]


@pytest.mark.parametrize("key", [keys.job("mine"), keys.journal("mine")])
@pytest.mark.usefixtures("managed")
def test_a_broken_job_costs_a_worker_no_line(store, client, key):
    store.jobs.create(new_job("mine"))
    claim(store, "mine", W)
    client.set(key, "broken")
    outputs = Outputs(client)
    assert outputs.append(W, [Line("a", "mine"), Line("b")], "", Place("b1")) is Kept.YES
    assert [line.text for line in outputs.last(W)] == ["a", "b"]


# --- over HTTP


@pytest.fixture
def make_api(new_app):
    return lambda **environ: new_app(FILE, **environ).test_client()


@pytest.fixture
def api(make_api):
    return make_api()


def get(api, query="", job_id="job-1", **options):
    return api.get(f"/v2/ep/stream/{job_id}?events=typed{query}", **options)


class Reader(threading.Thread):
    """Reads a stream to its end, as it comes."""

    def __init__(self, api, **options):
        super().__init__(daemon=True)
        self.events, self.parser = [], Parser()
        self.response = get(api, buffered=False, **options)
        self.start()

    def run(self):
        for piece in self.response.iter_encoded():
            self.events += self.parser.feed(piece)
        self.parser.close()

    def wait(self, event, status=None):
        """Waits for an event; returns its data."""

        def found():
            for sent in self.events:
                if sent.event == event and status in {None, sent.data.get("status")}:
                    return sent.data
            return None

        return wait_until(found, 10, f"{event} {status}")


def test_events_come_as_they_happen_and_end_with_the_job(api, store):
    reader = Reader(api)
    assert reader.response.mimetype == "text/event-stream"
    headers = reader.response.headers
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-cache", "no")
    assert (headers["X-Task-Id"], "X-Session-Id" in headers) == ("job-1", False)
    queued = reader.wait("connection", "queued")
    assert (queued["position"], queued["endpoint"], queued["session_id"]) == (1, "ep", None)
    assert "no healthy worker" in queued["reason"]
    attempt = claim(store)
    assert reader.wait("connection", "allocated")
    assert reader.wait("worker", "working")["worker_id"] == "w"
    store.chunks.add("job-1", 1, ['"Hel"', '"lo"', "[1]"])
    assert reader.wait("output_delta") == {"output": [1]}
    log(store, "x", 1)
    assert reader.wait("logs")["log"] == "x"
    store.jobs.finish(attempt, DONE)
    reader.join(10)
    assert not reader.is_alive()
    assert reader.parser.retry_ms == 2000
    assert [sent.event for sent in reader.events][-2:] == ["text", "task_finish"]
    again = stream_of(get(api).data)
    assert again[1:] == reader.events[2:]
    for place, sent in enumerate(reader.events[:-1], 1):
        rest = reader.events[place:]
        for response in (
            get(api, headers={"Last-Event-ID": sent.id}),
            get(api, f"&after={sent.id}"),
        ):
            assert list(parsed([response.data])) == rest
    assert get(api, headers={"Last-Event-ID": "1-end"}).status_code == 204


def test_an_unknown_job_or_a_wrong_query_is_refused_before_the_stream(api, store):
    assert get(api, job_id="unknown").status_code == 404
    assert api.get("/v2/other/stream/job-1?events=typed").status_code == 404
    for query, name in (("events=all", "events"), ("events=typed&after=1-0", "after")):
        refused = api.get(f"/v2/ep/stream/job-1?{query}")
        assert refused.status_code == 400
        assert refused.json["error"].startswith(f"{name}: must be")
    # The id of the other stream is no place in this one.
    store.jobs.cancel("job-1", "ep", reason="x")
    found = stream_of(get(api, headers={"Last-Event-ID": "1-0"}).data)
    assert [sent.data["status"] for sent in found] == ["queued", "cancelled"]


def test_too_many_streams_are_refused(api, store):
    notices = services_of(api.application).notices
    notices.max_waiting = 1
    reader = Reader(api)
    reader.wait("connection")
    assert get(api).status_code == 503
    store.jobs.cancel("job-1", "ep", reason="x")
    reader.join(10)
    assert get(api).status_code == 200


def test_a_silent_stream_gets_comments_and_ends_with_its_process(api, store, monkeypatch):
    monkeypatch.setattr("ownpod.api.jobs.typed_events.KEEP_ALIVE_S", 0.05)
    claim(store)
    reader = Reader(api)
    wait_until(lambda: len(reader.parser.comments) >= 3)
    assert set(reader.parser.comments) == {"keep-alive"}
    services_of(api.application).notices.stop()
    reader.join(10)
    assert [sent.event for sent in reader.events] == ["connection", "worker"]


def test_the_other_stream_of_a_job_is_as_it_was(api, store):
    attempt = claim(store)
    log(store, "x", 1)
    store.chunks.add("job-1", 1, ["1"])
    store.jobs.finish(attempt, DONE)
    body = api.get("/v2/ep/stream/job-1", headers={"Accept": "text/event-stream"}).data.decode()
    assert [line for line in body.splitlines() if not line.startswith("data")] == [
        *("id: 1-0", ""),
        *("id: 1-end", "event: status", ""),
    ]


def test_the_place_in_the_queue_counts_down(api, store):
    services_of(api.application).positions.least_s = 0.01
    for job_id in ("job-2", "job-3"):
        store.jobs.create(new_job(job_id))
    reader = Reader(api, job_id="job-3")
    reader.wait("connection")
    for job_id in ("job-1", "job-2"):
        shown = len(reader.events)
        store.jobs.cancel(job_id, "ep", reason="x")
        wait_until(lambda shown=shown: len(reader.events) > shown)
    store.jobs.cancel("job-3", "ep", reason="x")
    reader.join(10)
    assert [sent.data.get("position") for sent in reader.events] == [3, 2, 1, None]


def test_a_job_of_a_managed_worker_has_its_host_and_device(api, store, managed):
    spec = ManagedSpec(Template(command=("c",)), gpu=GpuNeed(pools=("low",)))
    worker = "cccccccccccccc"
    assert managed.want(worker, "ep", spec=spec)
    store.jobs.create(new_job("pinned", queue=store.messages.own_queue("ep", worker)))
    reader = Reader(api, job_id="pinned")
    assert reader.wait("connection", "queued")["gpu_class"] == "low"
    assert managed.place(worker, "h", "t", ["GPU-1"])
    data = reader.wait("connection", "allocated")
    assert {name: data[name] for name in data if name.startswith(("gpu", "host"))} == {
        "host": "h",
        "gpu_id": 3,
        "gpu_uuid": "GPU-1",
        "gpu_name": "RTX",
        "gpu_class": "low",
    }
    store.jobs.finish(claim(store, "pinned", worker), DONE)
    reader.join(10)
    assert [sent.data.get("status") for sent in reader.events] == [
        *("queued", "allocated", "working", None, "completed")
    ]


@pytest.mark.slow
def test_500_streams_are_open_in_one_process(api, store):
    readers = []
    for number in range(500):
        store.jobs.create(new_job(f"many-{number}"))
        readers.append(Reader(api, job_id=f"many-{number}"))
    for number, reader in enumerate(readers):
        reader.wait("connection")
        attempt = claim(store, f"many-{number}")
        store.chunks.add(f"many-{number}", 1, ['"x"'])
        store.jobs.finish(attempt, DONE)
    for reader in readers:
        reader.join(60)
        assert [sent.event for sent in reader.events if sent.event != "connection"] == [
            *("worker", "text_delta", "text", "task_finish")
        ]
    assert services_of(api.application).notices._waiting == {}
