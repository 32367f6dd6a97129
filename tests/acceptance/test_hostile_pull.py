"""A pull worker that lies in every field, and one that is served over TLS: real processes."""

import contextlib
import itertools
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
import trustme
from helpers import Process, RedisServer, wait_until, worker_states

from ownpod.processes import free_port
from ownpod.store.client import connect
from ownpod.store.offers import Offers

JOBS = 40


class Honest(threading.Thread):
    """A small pull worker that echoes; runs until its stop."""

    def __init__(self, base):
        super().__init__(daemon=True)
        self._base = base
        self.has = ""
        self.stopped = False

    def run(self):
        with requests.Session() as session:
            session.headers["Authorization"] = "good-key"
            while not self.stopped:
                query = "gpu=0&job_in_progress=0"
                found = session.get(f"{self._base}/job-take/good?{query}", timeout=60)
                if found.status_code != 200:
                    continue
                job = found.json()
                self.has = job["id"]
                session.get(f"{self._base}/ping/good?job_id={job['id']}", timeout=60)
                # So long the other one can try to end it.
                time.sleep(0.2)
                url = f"{self._base}/job-done/good/{job['id']}?gpu=0&isStream=false"
                session.post(url, data=json.dumps({"output": job["input"]}), timeout=60)


def lies(base, run):
    """Method, URL and body of each request of a worker that lies about everything."""
    bodies = [
        json.dumps({"output": "mine"}),
        json.dumps({"status": "IN_PROGRESS", "output": {"percent": -1}}),
        json.dumps({"output": [], "stopPod": True}),
        json.dumps({"error": "\ud800"}),
        json.dumps({"error": {"a": [None]}, "stopPod": "yes"}),
        "[" * 50_000,
        "",
        "\x00\xff",
        "x" * 3_000_000,
    ]
    for body in bodies:
        for path in (
            f"local-ep/job-done/liar/{run}",
            f"other/job-done/good/{run}",
            f"other/job-done/liar/{run}",
            f"local-ep/job-done/good/{run}",
            "local-ep/job-done/liar/never-was",
            "nothing/job-done/liar/x",
        ):
            yield "POST", f"{base}/{path}?gpu=0&isStream=true", body
            stream = path.replace("job-done", "job-stream")
            yield "POST", f"{base}/{stream}?gpu=0&isStream=false", body
    for ids in (run, f"{run},a:b,../..,%00", "", ",".join(str(n) for n in range(500))):
        for path in (
            "local-ep/ping/liar",
            "other/ping/liar",
            "other/ping/good",
            "local-ep/ping/good",
        ):
            yield "GET", f"{base}/{path}?job_id={ids}&job_id={run}", None
    yield "GET", f"{base}/other/job-take/good?job_in_progress=0", None
    yield "GET", f"{base}/other/job-stop/good?gpu=0", None
    yield "GET", f"{base}/local-ep/job-stop/good?gpu=0", None
    yield "GET", f"{base}/local-ep/job-take/a:b?gpu=0", None
    yield "GET", f"{base}/local-ep/ping/good:out", None


@pytest.mark.timeout(300)
def test_a_worker_that_lies_in_every_field_changes_no_other_workers_job(start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {local-ep: {maxWorkers: 1}, other: {maxWorkers: 2}}")
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKER_KEYS="good-key,liar-key",
        OWNPOD_MAX_OUTPUT_MB=1,
        OWNPOD_WORKER_GONE_S=60,
        OWNPOD_LEASE_S=30,
    )
    good = Honest(ownpod.endpoint)
    good.start()
    wait_until(lambda: worker_states(ownpod).get("good") == "ready", 30)
    before = {child.pid for child in psutil.Process(ownpod.process.pid).children(recursive=True)}
    jobs = [ownpod.submit(text=f"j{number}") for number in range(JOBS)]
    answers, running = set(), threading.Event()
    running.set()

    def lie(session, method, url, body):
        data = None if body is None else body.encode("latin-1", "replace")
        try:
            found = session.request(method, url, data=data, timeout=60)
        except requests.RequestException:
            return
        answers.add((found.status_code, found.status_code >= 500 and found.text))

    def liar():
        with requests.Session() as session:
            session.headers["Authorization"] = "liar-key"
            for size in itertools.cycle(("-1", "99999999999999999999", "x", "1e9", "0")):
                take = f"{ownpod.base}/other/job-take-batch/liar?batch_size={size}"
                # Closes its held request at once, again and again.
                with contextlib.suppress(requests.RequestException):
                    requests.get(take, headers=session.headers, timeout=0.05)
                for number in range(3):
                    url = f"{ownpod.base}/local-ep/job-take/w{number}?gpu=0"
                    lie(session, "GET", url, None)
                for method, url, body in lies(ownpod.base, good.has or "none"):
                    if not running.is_set():
                        return
                    lie(session, method, url, body)

    with ThreadPoolExecutor(1) as pool:
        lying = pool.submit(liar)
        try:
            ended = [ownpod.ended(job, 60) for job in jobs]
            # It was refused, answered, and found nothing.
            wait_until(lambda: {200, 401, 429, 503} <= {status for status, _ in answers}, 60)
        finally:
            running.clear()
        lying.result(60)
    assert [job["output"] for job in ended] == [{"text": f"j{n}"} for n in range(JOBS)]
    assert {job["workerId"] for job in ended} == {"good"}
    assert not [job for job in ended if "retries" in job]
    assert {status for status, _ in answers} <= {200, 204, 400, 401, 429, 503}
    assert {text for status, text in answers if status == 503} <= {
        text for _, text in answers if text and "received its jobs under another key" in text
    }
    after = {child.pid for child in psutil.Process(ownpod.process.pid).children(recursive=True)}
    assert before <= after
    assert "Traceback" not in ownpod.output
    assert "its maxWorkers" in str(ownpod.get("/health")["ownpod"]["refused"])
    wait_until(lambda: worker_states(ownpod) == {"good": "ready"})
    assert ownpod.post("/runsync", {"input": {"text": "next"}})["status"] == "COMPLETED"
    good.stopped = True


def test_a_worker_is_served_and_its_close_noticed_behind_the_apis_own_tls(tmp_path):
    redis, port = RedisServer(tmp_path), free_port()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = tmp_path / "certificate.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}}")
    environ = {
        "REDIS_URL": redis.url,
        "OWNPOD_WORKERS_FILE": file,
        "WEB_CONCURRENCY": 1,
        "GUNICORN_CMD_ARGS": f"--certfile={certificate} --keyfile={certificate}",
    }
    command = (sys.executable, "-m", "ownpod", "api", "--port", port)
    api = Process(*command, log=tmp_path / "api.log", **environ)
    take = f"https://127.0.0.1:{port}/v2/ep/job-take/w?gpu=0&job_in_progress=0"
    try:
        with requests.Session() as session, connect(redis.url) as client:
            # Not the REQUESTS_CA_BUNDLE of this machine.
            session.trust_env, session.verify = False, str(tmp_path / "ca.pem")

            def serves():
                try:
                    return session.get(f"https://127.0.0.1:{port}/health", timeout=2).ok
                except requests.RequestException:
                    return False

            wait_until(serves, 30)
            pulls = Offers(client, gone_s=60)
            with pytest.raises(requests.Timeout):
                # Two seconds for the answer; the connection may take longer.
                requests.get(take, timeout=(60, 2), verify=session.verify)
            wait_until(lambda: pulls.contact("w").left, 2)
            with ThreadPoolExecutor(1) as pool:
                held = pool.submit(session.get, take, timeout=60)
                wait_until(lambda: not pulls.contact("w").left, 5)
                body = '{"id": "r", "input": {}}'
                pulls.offer("w", "r", job_id="j", attempt=1, body=body, time_s=60)
                assert held.result(60).json() == {"id": "r", "input": {}}
            done = f"https://127.0.0.1:{port}/v2/ep/job-done/w/r?isStream=false"
            assert session.post(done, data='{"output": 1}', timeout=60).status_code == 200
            assert pulls.run("w", "r").outcome.output == "1"
        assert "Traceback" not in (tmp_path / "api.log").read_text()
    finally:
        api.stop()
        redis.stop()
