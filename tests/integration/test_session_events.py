"""Typed events of the tasks of a session."""

import pytest
from helpers import job_store, new_job
from sse import Parser, stream_of

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device, new_worker_id
from ownpod.rules.presets import Preset
from ownpod.rules.runs import Outcome
from ownpod.rules.sessions import Reason, wish_for
from ownpod.rules.task_views import TaskFacts
from ownpod.rules.templates import GpuNeed, ManagedSpec, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed
from ownpod.store.sessions import Sessions

SPEC = ManagedSpec(
    Template(image="llm:1", command=("c",)), Scaling(workers_max=0), gpu=GpuNeed(("low",))
)
ENDPOINT = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=SPEC, preset=Preset("llama", "c"))


class Lab:
    """A session, its jobs, and the API that shows their events."""

    def __init__(self, client, app):
        self.client, self.api = client, app.test_client()
        self.store = job_store(client)
        self.sessions = Sessions(self.store, result_ttl_s=1800)
        self.managed = Managed(client)
        gpu = Device("GPU-1", 3, "RTX", pools=("low",))
        Agents(client).heartbeat(AgentInfo("h", "docker", (gpu,)), "t")
        wish = wish_for(ENDPOINT)
        self.id = self.sessions.open(wish, owner="me", worker_id=new_worker_id(), reuse=False).id

    def submit(self, job_id="job-1"):
        queue = self.store.messages.own_queue("ep", self.id)
        own = {"queue": queue, "private": self.id, "affinity": "strict", "max_attempts": 1}
        task = TaskFacts(type="session").text()
        self.store.jobs.create(new_job(job_id, task=task, **own))

    def ready(self):
        assert self.managed.place(self.id, "h", "t", ["GPU-1"])
        assert self.managed.progress(self.id, "h", "pulling llm:1: 40 %")
        assert self.managed.started(self.id, "h")
        assert self.managed.ready(self.id)

    def claim(self, job_id="job-1"):
        return self.store.jobs.claim(job_id, worker_id=self.id, claim=job_id, lease_s=15)

    def run(self, job_id="job-1"):
        attempt = self.claim(job_id)
        self.store.chunks.add(job_id, 1, ['"Hi"'])
        assert self.store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='["Hi"]'))

    def stream(self, job_id="job-1", last=None):
        headers = {} if last is None else {"Last-Event-ID": last}
        return self.api.get(f"/v2/ep/stream/{job_id}?events=typed", headers=headers)


@pytest.fixture
def lab(client, new_app):
    return Lab(client, new_app("endpoints: {ep: {}}"))


def statuses(events):
    return [(sent.event, sent.data.get("status")) for sent in events]


def first_of(lab, job_id="job-1"):
    """The first event of a stream that stays open."""
    response = lab.api.get(f"/v2/ep/stream/{job_id}?events=typed", buffered=False)
    parser, pieces = Parser(), response.iter_encoded()
    events = []
    while not events:
        events = parser.feed(next(pieces))
    response.close()
    return events[0]


def test_the_first_task_of_a_session_shows_its_start(lab):
    lab.submit()
    waits = first_of(lab).data
    assert (waits["status"], waits["position"], waits["session_id"]) == ("queued", 1, lab.id)
    assert waits["gpu_class"] == "low"
    assert waits["reason"] == f"session {lab.id} waits for a place"
    lab.ready()
    lab.run()
    response = lab.stream()
    assert response.headers["X-Session-Id"] == lab.id
    events = stream_of(response.data)
    assert statuses(events) == [
        ("connection", "session_ready"),
        ("worker", "pulling"),
        ("worker", "created"),
        ("worker", "ready"),
        ("worker", "working"),
        ("text_delta", None),
        ("text", None),
        ("worker", "waiting"),
        ("task_finish", "completed"),
    ]
    connection, finish = events[0].data, events[-1].data
    assert (connection["gpu_id"], connection["gpu_uuid"], connection["host"]) == (3, "GPU-1", "h")
    assert connection["session_id"] == finish["session_id"] == lab.id
    assert events[3].data["load_seconds"] >= 0
    for place, sent in enumerate(events[:-1], 1):
        parser = Parser()
        assert parser.feed(lab.stream(last=sent.id).data) == events[place:]


def test_a_session_that_starts_has_its_device_and_an_idle_one_is_ready_at_once(lab):
    lab.submit()
    assert lab.managed.place(lab.id, "h", "t", ["GPU-1"])
    assert first_of(lab).data["status"] == "session_ready"
    assert lab.managed.started(lab.id, "h")
    assert lab.managed.ready(lab.id)
    lab.run()
    lab.submit("job-2")
    assert first_of(lab, "job-2").data["status"] == "session_ready"


def test_a_task_behind_another_shows_its_position(lab):
    lab.ready()
    for job_id in ("job-1", "job-2", "job-3"):
        lab.submit(job_id)
    attempt = lab.claim()
    assert [first_of(lab, job_id).data["position"] for job_id in ("job-2", "job-3")] == [1, 2]
    assert first_of(lab, "job-2").data["reason"] == (
        f"it waits for session {lab.id}, which has other work"
    )
    lab.store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="1"), slot_free=True)
    assert first_of(lab, "job-2").data["status"] == "session_ready"
    assert first_of(lab, "job-3").data["position"] == 2


def test_a_task_of_a_session_that_ends_has_the_code_of_the_end(lab):
    lab.ready()
    lab.submit()
    lab.claim()
    assert lab.sessions.end(lab.id, Reason.MANUAL, drain=False, owner="me")
    events = stream_of(lab.stream().data)
    assert statuses(events)[1:] == [("worker", "working"), ("task_finish", "failed")]
    finish = events[-1]
    assert (finish.data["code"], finish.data["session_id"]) == ("session_ended", lab.id)
    # The worker's record may be gone before the job's.
    lab.client.hset(keys.job("job-1"), "task", '{"type": "session"}')
    lab.client.delete(keys.managed(lab.id))
    assert stream_of(lab.stream().data)[-1] == finish


# How long a task will probably wait.


def loads(lab, seconds):
    lab.client.hset(keys.of_endpoint("ep", "starts"), "load_ms", seconds * 1000)


def ran(lab, seconds, number=1):
    """Jobs of the endpoint have run for about so many seconds; see BUCKETS_MS."""
    lab.client.hset(keys.of_endpoint("ep", "execution"), {10: 11, 30: 12}[seconds], number)


def test_nothing_is_said_of_a_wait_for_which_nothing_is_known(lab):
    lab.submit()
    assert "estimated_wait_seconds" not in first_of(lab).data
    shown = lab.api.get("/api/tasks/job-1").json
    assert (shown["position"], shown["estimated_wait_seconds"]) == (1, None)


def test_a_task_whose_session_gets_a_free_device_waits_for_its_load(lab):
    loads(lab, 40)
    lab.submit()
    assert first_of(lab).data["estimated_wait_seconds"] == 40
    # Its model or image is missing, or the device is not free, and nothing tells for how long.
    lab.managed.waits(lab.id, "waits for a GPU")
    assert "estimated_wait_seconds" not in first_of(lab).data
    assert lab.managed.place(lab.id, "h", "t", ["GPU-1"])
    assert lab.managed.started(lab.id, "h")
    began_ms = lab.managed.now_ms() - 15_000
    lab.client.hset(keys.managed(lab.id), "started_ms", began_ms)
    shown = lab.api.get("/api/tasks/job-1").json
    # The clock of the estimate may be a second old.
    assert 1 <= shown["estimated_wait_seconds"] <= 26
    assert "estimated_wait_seconds" not in first_of(lab).data


def test_a_task_behind_others_waits_for_the_median_of_the_runs_for_each(lab):
    ran(lab, 30)
    lab.ready()
    for job_id in ("job-1", "job-2", "job-3"):
        lab.submit(job_id)
    attempt = lab.claim()
    # The median of one run between 10 and 30 s.
    first, second = (first_of(lab, job_id).data for job_id in ("job-2", "job-3"))
    assert 1 <= first["estimated_wait_seconds"] <= 20
    assert 21 <= second["estimated_wait_seconds"] <= 40
    shown = lab.api.get("/api/tasks/job-3").json
    assert shown["position"] == 2
    assert 21 <= shown["estimated_wait_seconds"] <= 40
    lab.store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="1"), slot_free=True)
    assert "estimated_wait_seconds" not in first_of(lab, "job-2").data
    shown = lab.api.get("/api/tasks/job-1").json
    assert (shown["position"], shown["estimated_wait_seconds"]) == (None, None)


def test_a_job_of_the_endpoints_queue_waits_for_the_runs_of_shared_workers_only(lab):
    ran(lab, 30)
    lab.store.jobs.create(new_job("a"))
    lab.store.jobs.create(new_job("b"))
    lab.ready()
    lab.submit("private")
    lab.claim("private")
    assert "estimated_wait_seconds" not in first_of(lab, "b").data
    assert lab.store.jobs.claim("a", worker_id="w", claim="a", lease_s=15)
    lab.api.application.extensions["ownpod"].estimates._cached.clear()
    assert 1 <= first_of(lab, "b").data["estimated_wait_seconds"] <= 20


def test_the_worker_of_a_one_off_task_tells_nothing_of_the_loads_of_sessions(lab):
    lab.ready()
    load = keys.of_endpoint("ep", "starts"), "load_ms"
    known = lab.client.hget(*load)
    assert known is not None
    worker = new_worker_id()
    assert lab.sessions.open_task(worker, "ep", spec=SPEC, job_id="x", owner="")
    assert lab.managed.place(worker, "h", "t", ["GPU-2"])
    assert lab.managed.started(worker, "h")
    lab.client.hset(keys.managed(worker), "started_ms", 1)
    assert lab.managed.ready(worker)
    assert lab.client.hget(*load) == known
