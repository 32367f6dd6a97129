"""Retry, policies, webhooks and events, on the real processes and workers."""

import json
import subprocess
import sys
import threading

import pytest
import requests
from helpers import Answer, FakeWorker, Process, answers, wait_until

from ownpod.processes import free_port


def test_a_failed_job_is_retried(shared):
    failed = shared.ended(shared.submit(do="raise"))
    again = shared.post(f"/retry/{failed['id']}")
    assert again["status"] == "IN_QUEUE"
    assert again["id"] != failed["id"]
    assert shared.ended(again["id"])["status"] == "FAILED"
    assert "only FAILED" in shared.post(f"/retry/{shared.submit(seconds=0.5)}")["error"]


@pytest.fixture
def end(tmp_path):
    """A file that ends the jobs of a test; it is there after the test."""
    found = tmp_path / "end"
    yield found
    found.touch()


def busy(ownpod, end):
    """Both workers of ``local-ep`` at work, until the file ``end`` exists."""
    jobs = [ownpod.submit(until=str(end)) for _ in range(2)]
    wait_until(lambda: all(ownpod.status(job)["status"] == "IN_PROGRESS" for job in jobs))
    return jobs


def test_low_priority_waits_behind_the_others(shared, end):
    busy(shared, end)
    low = {"input": {"seconds": 0.3}, "policy": {"lowPriority": True}}
    lows = [shared.post("/run", low)["id"] for _ in range(2)]
    others = [shared.submit(seconds=0.3) for _ in range(4)]
    end.touch()
    last_other = max(shared.ended(job)["delayTime"] for job in others)
    first_low = min(shared.ended(job)["delayTime"] for job in lows)
    assert first_low > last_other


def test_a_job_that_waits_past_its_ttl_is_timed_out_unseen(shared, tmp_path, end):
    jobs = busy(shared, end)
    note = tmp_path / "note"
    policy = {"input": {"note": str(note)}, "policy": {"ttl": 10000}}
    job = shared.post("/run", policy)["id"]
    done = shared.get(f"/status-sync/{job}?wait=60000")
    assert done["status"] == "TIMED_OUT"
    assert done["error"] == "ttl: the job waited longer than 10000 ms for a worker"
    assert "executionTime" not in done
    end.touch()
    for one in jobs:
        shared.ended(one)
    assert shared.ended(shared.submit(text="next"))["status"] == "COMPLETED"
    assert not note.exists()


def test_a_job_that_runs_past_its_ttl_is_stopped_like_a_time_out(shared, end):
    job = shared.post("/run", {"input": {"until": str(end)}, "policy": {"ttl": 10000}})["id"]
    # Its handler goes on.
    done = shared.get(f"/status-sync/{job}?wait=60000")
    assert done["status"] == "TIMED_OUT"
    assert done["error"] == "ttl: the job was not done when its ttl had passed"


def test_curl_can_do_everything(shared, end):
    def curl(path, *options, body=None):
        data = [] if body is None else ["-d", json.dumps(body)]
        said = subprocess.run(
            ["curl", "-s", *options, *data, f"{shared.endpoint}{path}"],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout
        return json.loads(said)

    job = curl("/run", "-XPOST", body={"input": {"text": "curl"}})["id"]
    assert curl(f"/status-sync/{job}?wait=60000")["status"] == "COMPLETED"
    assert curl(f"/status/{job}")["output"]["echo"] == "curl"
    assert curl(f"/stream/{job}", "-H", "Accept: application/json")["stream"] == []
    runsync = "/runsync?wait=60000"
    assert curl(runsync, "-XPOST", body={"input": {"text": "s"}})["output"]["echo"] == "s"
    failed = curl(runsync, "-XPOST", body={"input": {"do": "raise"}})["id"]
    again = curl(f"/retry/{failed}", "-XPOST")["id"]
    assert curl(f"/status-sync/{again}?wait=60000")["status"] == "FAILED"
    jobs = busy(shared, end)
    waiting = [curl("/run", "-XPOST", body={"input": {}})["id"] for _ in range(2)]
    assert curl(f"/cancel/{waiting[0]}", "-XPOST")["status"] == "CANCELLED"
    assert curl("/purge-queue", "-XPOST") == {"removed": 1, "status": "completed"}
    assert curl("/requests?limit=1&status=CANCELLED")["requests"][0]["id"] == waiting[1]
    assert curl("/health")["workers"]["running"] == 2
    end.touch()
    for one in jobs:
        shared.ended(one)


def test_curl_sees_events(shared):
    url = f"{shared.base}/generator-ep"
    job = requests.post(f"{url}/run", json={"input": {"count": 3}}, timeout=60).json()["id"]
    said = subprocess.run(
        ["curl", "-sN", f"{url}/stream/{job}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    chunks = [line for line in said.splitlines() if line.startswith('data: {"output"')]
    assert len(chunks) == 3
    assert '"COMPLETED"' in said.strip().splitlines()[-1]


def test_a_streaming_worker_is_relayed_as_it_comes(start_ownpod):
    def run(*_):
        return Answer(body={"id": "r", "status": "IN_PROGRESS"})

    arrived = threading.Semaphore(0)

    def parts():
        for number in range(3):
            yield f'data: {{"output": {number}}}\n\n'.encode()
            # The next one is sent when the client has this one.
            if not arrived.acquire(timeout=60):
                return

    worker = FakeWorker(
        {
            "POST /run": run,
            "POST /stream": lambda *_: Answer(kind="text/event-stream", parts=parts()),
            "POST /status": Answer(body={"status": "COMPLETED", "output": [0, 1, 2]}),
        }
    )
    with worker.serving():
        ownpod = start_ownpod(worker.url)
        job = ownpod.submit()
        with requests.get(
            f"{ownpod.endpoint}/stream/{job}",
            headers={"Accept": "text/event-stream"},
            stream=True,
            timeout=100,
        ) as response:
            had = 0
            for line in response.iter_lines():
                if line.startswith(b'data: {"output"'):
                    had += 1
                    arrived.release()
        assert had == 3
        assert ownpod.status(job)["output"] == [0, 1, 2]


def test_webhooks_come_at_every_end_and_survive_a_restart(start_worker, start_ownpod, end):
    url, _ = start_worker()
    port = free_port()
    ownpod = start_ownpod(
        url,
        OWNPOD_WEBHOOK_DELAY_S=1,
        OWNPOD_WEBHOOK_TRIES=20,
        OWNPOD_WEBHOOK_SECRET="s",
    )
    hook = f"http://127.0.0.1:{port}/hook"

    def submit(**job_input):
        return ownpod.post("/run", {"input": job_input, "webhook": hook})["id"]

    jobs = {submit(text="a"): "COMPLETED", submit(do="raise"): "FAILED"}
    held = submit(until=str(end))
    cancelled = submit()
    assert ownpod.post(f"/cancel/{cancelled}")["status"] == "CANCELLED"
    end.touch()
    jobs |= {held: "COMPLETED", cancelled: "CANCELLED"}
    for job in jobs:
        ownpod.ended(job)

    def tried():
        listed = ownpod.get("/requests")["requests"]
        return all(job.get("webhook") for job in listed)

    wait_until(tried)
    # Nobody listens there until OwnPod has been started anew.
    ownpod.stop()
    receiver = FakeWorker({"POST /hook": Answer(body={})}, port=port)
    with receiver.serving():
        ownpod.start()
        received = lambda: {body["id"]: body["status"] for _, _, body in list(receiver.seen)}  # noqa: E731
        wait_until(lambda: len(received()) == len(jobs), 30)
        assert received() == jobs
        assert all("X-OwnPod-Signature" in headers for headers, _ in receiver.raw)
        body = next(b for _, _, b in receiver.seen if b["id"] == held)
        assert body == ownpod.status(held)


def test_a_webhook_that_hangs_holds_up_no_job(start_worker, start_ownpod):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    never = threading.Event()
    with FakeWorker({"POST /hook": Answer(hold=never, body={})}).serving() as receiver:
        hook = f"{receiver.url}/hook"
        for _ in range(4):
            ownpod.post("/run", {"input": {}, "webhook": hook})
        wait_until(lambda: len(receiver.seen) == 4)
        assert ownpod.ended(ownpod.submit(text="free"))["status"] == "COMPLETED"
        never.set()


def test_a_cancel_reaches_a_worker_that_accepts_it(start_ownpod):
    ended = []

    def status(*_):
        return Answer(body={"status": "CANCELLED" if ended else "IN_PROGRESS"})

    def cancel(path, _body):
        ended.append(path)
        return Answer(body={})

    worker = FakeWorker(
        {
            "POST /run": lambda *_: Answer(body={"id": "r9", "status": "IN_PROGRESS"}),
            "POST /status": status,
            "POST /cancel": cancel,
        }
    )
    with worker.serving():
        # A lease so long that its renewal is not what tells the node.
        ownpod = start_ownpod(worker.url, OWNPOD_LEASE_S=600)
        job = ownpod.submit()
        wait_until(lambda: worker.paths("POST /status"))
        assert ownpod.post(f"/cancel/{job}")["status"] == "CANCELLED"
        wait_until(lambda: ended == ["/cancel/r9"], 5)
        wait_until(lambda: ownpod.get("/health")["workers"]["idle"] == 1)


@pytest.mark.parametrize(
    ("environ", "warns"), [({}, True), ({"OWNPOD_API_KEYS": "hunter2"}, False)]
)
def test_the_start_warns_when_no_key_is_needed(redis_server, tmp_path, environ, warns):
    port = free_port()
    api = Process(
        *(sys.executable, "-m", "ownpod", "api", "--host", "0.0.0.0", "--port", port),
        log=tmp_path / "api.log",
        REDIS_URL=redis_server.url,
        **environ,
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 30)
        assert ("no key is needed" in api.output) is warns
        url = f"http://127.0.0.1:{port}/v2/local-ep"
        for key in ("hunter2", "hunter2-wrong"):
            for path, body in (("run", {"input": {}}), ("run", []), ("cancel/none", None)):
                headers = {"Authorization": f"Bearer {key}"}
                requests.post(f"{url}/{path}", json=body, headers=headers, timeout=60)
        assert "hunter2" not in api.output
    finally:
        api.stop()
