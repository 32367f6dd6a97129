"""Workers that are away, die, or come back: no job is lost, none runs twice by mistake."""

import signal

from helpers import FakeWorker, answers, wait_until

from ownpod.processes import free_port


def workers_by_id(ownpod):
    return {w["id"]: w for w in ownpod.get("/health")["ownpod"]["workers"]}


def ready(ownpod, count):
    return lambda: ownpod.get("/health")["workers"]["ready"] == count


def test_a_dead_worker_takes_no_jobs_from_the_living(start_worker, start_ownpod):
    dead = f"http://127.0.0.1:{free_port()}"
    url, _ = start_worker()
    ownpod = start_ownpod(dead, url)
    assert ownpod.get("/health")["workers"]["unhealthy"] == 1
    jobs = [ownpod.submit(text=str(n)) for n in range(20)]
    done = [ownpod.ended(job) for job in jobs]
    assert {d["status"] for d in done} == {"COMPLETED"}
    assert [d["output"]["echo"] for d in done] == [str(n) for n in range(20)]
    assert all("retries" not in d for d in done)


def test_jobs_wait_while_all_workers_are_down_and_run_when_one_comes(start_worker, start_ownpod):
    port = free_port()
    ownpod = start_ownpod(f"http://127.0.0.1:{port}")
    job = ownpod.submit(text="patience")
    (worker,) = workers_by_id(ownpod).values()
    assert worker["state"] == "unhealthy"
    assert "refused" in worker["reason"]
    assert ownpod.status(job)["status"] == "IN_QUEUE"
    start_worker(port=port)
    assert ownpod.ended(job)["output"]["echo"] == "patience"


def test_a_worker_that_goes_down_while_idle_and_comes_back(start_worker, start_ownpod):
    first_url, first = start_worker()
    second_url, _ = start_worker()
    ownpod = start_ownpod(first_url, second_url)
    first.kill()
    jobs = [ownpod.submit(text=str(n)) for n in range(10)]
    done = [ownpod.ended(job) for job in jobs]
    assert {d["status"] for d in done} == {"COMPLETED"}
    assert {d["workerId"] for d in done} == {second_url[7:].replace(".", "-").replace(":", "-")}
    # The job that met the dead worker has cost no attempt.
    assert all("retries" not in d for d in done)
    wait_until(ready(ownpod, 1))
    start_worker(port=int(first_url.rpartition(":")[2]))
    wait_until(ready(ownpod, 2), 15)
    used = set()

    def both():
        many = [ownpod.submit(seconds=0.2) for _ in range(4)]
        used.update(ownpod.ended(job)["workerId"] for job in many)
        return len(used) == 2

    wait_until(both, what="jobs of both workers")


def test_a_job_whose_worker_dies_is_tried_elsewhere(start_worker, start_ownpod, tmp_path):
    workers = dict(start_worker() for _ in range(2))
    ownpod = start_ownpod(*workers)
    note, end = tmp_path / "note", tmp_path / "end"
    job = ownpod.submit(until=str(end), note=str(note), text="survivor")
    pid = int(wait_until(lambda: note.exists() and note.read_text().split()[:1])[0])
    (victim,) = [worker for worker in workers.values() if worker.pid == pid]
    first = ownpod.status(job)["workerId"]
    victim.kill()
    end.touch()
    done = ownpod.ended(job)
    assert (done["status"], done["output"]["echo"], done["retries"]) == ("COMPLETED", "survivor", 1)
    assert done["workerId"] != first
    assert len(note.read_text().split()) == 2
    assert ownpod.ended(ownpod.submit(text="next"))["status"] == "COMPLETED"


def test_a_job_that_kills_its_workers_fails_after_three_attempts(
    start_worker, start_ownpod, tmp_path
):
    workers = [start_worker() for _ in range(3)]
    ownpod = start_ownpod(*(url for url, _ in workers))
    note = tmp_path / "note"
    job = ownpod.submit(do="exit", note=str(note))
    done = ownpod.ended(job, 40)
    assert done["status"] == "FAILED"
    assert "died or was cut off" in done["error"]
    assert done["retries"] == 2
    assert len(note.read_text().split()) == 3
    # The endpoint is not ended by it: a worker that comes back serves the next job.
    start_worker(port=int(workers[0][0].rpartition(":")[2]))
    assert ownpod.ended(ownpod.submit(text="next"), 40)["status"] == "COMPLETED"


def test_capacity_is_never_exceeded_and_is_used(start_worker, start_ownpod, tmp_path):
    url, _ = start_worker("async")
    file = tmp_path / "workers.yaml"
    file.write_text(f"endpoints: {{local-ep: {{workers: [{{url: '{url}', capacity: 3}}]}}}}")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file)
    note, end = tmp_path / "note", tmp_path / "end"
    jobs = [ownpod.submit(seconds=1, until=str(end), note=str(note)) for _ in range(6)]
    wait_until(lambda: ownpod.get("/health")["jobs"]["inProgress"] == 3)
    assert ownpod.get("/health")["jobs"]["inQueue"] == 3
    end.touch()
    done = [ownpod.ended(job) for job in jobs]
    assert {d["status"] for d in done} == {"COMPLETED"}
    assert len(note.read_text().split()) == 6


def test_a_polled_worker_serves_whichever_method_it_takes(start_ownpod):
    from helpers import Answer

    runs = {}

    def run(_path, body):
        job_id = f"r{len(runs)}"
        runs[job_id] = 0
        return Answer(body={"id": job_id, "status": "IN_QUEUE"})

    def status(path, _body):
        job_id = path.rpartition("/")[2]
        runs[job_id] += 1
        if runs[job_id] < 5:
            return Answer(body={"id": job_id, "status": "IN_PROGRESS"})
        return Answer(body={"id": job_id, "status": "COMPLETED", "output": job_id})

    get_worker = FakeWorker({"POST /run": run, "GET /status": status})
    with get_worker.serving():
        ownpod = start_ownpod(get_worker.url)
        outputs = {ownpod.ended(ownpod.submit())["output"] for _ in range(3)}
    assert outputs == {"r0", "r1", "r2"}
    # 404 for POST once, then it is known.
    assert len(get_worker.paths("POST /status")) == 1


def test_a_frozen_worker_is_noticed_while_idle(start_worker, start_ownpod):
    url, worker = start_worker()
    ownpod = start_ownpod(url, OWNPOD_WORKER_CONNECT_TIMEOUT_S=0.5)
    worker.send(signal.SIGSTOP)
    wait_until(ready(ownpod, 0), 20)
    worker.send(signal.SIGCONT)
    wait_until(lambda: answers(url))
    wait_until(ready(ownpod, 1), 20)
    assert ownpod.ended(ownpod.submit(text="thawed"))["status"] == "COMPLETED"
