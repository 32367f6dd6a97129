"""RunPod's official Python client against OwnPod, unmodified."""

import asyncio

import aiohttp
import pytest
import requests
import runpod
from helpers import wait_until
from runpod import AsyncioEndpoint, AsyncioJob


@pytest.fixture
def endpoint(shared, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", shared.base)
    monkeypatch.setattr(runpod, "api_key", "any")
    return runpod.Endpoint("local-ep")


@pytest.fixture
def end(tmp_path):
    """A file that ends the jobs of a test; it is there after the test."""
    found = tmp_path / "end"
    yield found
    found.touch()


def test_run_and_output(endpoint, end):
    job = endpoint.run({"input": {"text": "a", "until": str(end)}})
    assert job.status() in {"IN_QUEUE", "IN_PROGRESS"}
    end.touch()
    assert job.output(timeout=60)["echo"] == "a"
    assert job.status() == "COMPLETED"


def test_run_wraps_what_has_no_input(endpoint):
    assert endpoint.run({"text": "b"}).output(timeout=60)["echo"] == "b"


def test_run_sync(endpoint):
    assert endpoint.run_sync({"input": {"text": "c"}}, timeout=60)["echo"] == "c"


def test_run_sync_of_a_job_longer_than_the_wait(endpoint):
    assert endpoint.run_sync({"input": {"text": "d", "seconds": 3}}, timeout=60)["echo"] == "d"


def test_cancel(endpoint, shared, end):
    first = [endpoint.run({"input": {"until": str(end)}}) for _ in range(2)]
    job = endpoint.run({"input": {"text": "never"}})
    assert job.cancel()["status"] == "CANCELLED"
    assert job.status() == "CANCELLED"
    end.touch()
    for busy in first:
        busy.output(timeout=60)


def test_health_and_purge_queue(endpoint, end):
    busy = [endpoint.run({"input": {"until": str(end)}}) for _ in range(2)]
    wait_until(lambda: endpoint.health()["jobs"]["inProgress"] == 2)
    waiting = [endpoint.run({"input": {}}) for _ in range(3)]
    assert endpoint.health()["jobs"]["inQueue"] == 3
    assert endpoint.health()["workers"]["running"] == 2
    assert endpoint.purge_queue() == {"removed": 3, "status": "completed"}
    assert {job.status() for job in waiting} == {"CANCELLED"}
    end.touch()
    for job in busy:
        assert job.output(timeout=60)


def test_an_unknown_endpoint_is_an_error(shared, endpoint):
    with pytest.raises(requests.HTTPError, match="404"):
        runpod.Endpoint("nobody").run({"input": {}})


def test_the_asyncio_client(shared, endpoint, end):
    async def use() -> None:
        async with aiohttp.ClientSession() as session:
            remote = AsyncioEndpoint("local-ep", session)
            job: AsyncioJob = await remote.run({"text": "e", "seconds": 0.2})
            assert await job.status() in {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
            assert (await job.output(timeout=60))["echo"] == "e"
            assert (await remote.health())["workers"]["ready"] == 2
            busy = [await remote.run({"until": str(end)}) for _ in range(2)]
            waiting = await remote.run({})
            assert (await waiting.cancel())["status"] == "CANCELLED"
            end.touch()
            for one in busy:
                await one.output(timeout=60)

    asyncio.run(use())


def test_many_jobs_come_back_each_with_its_own_result(endpoint):
    jobs = {f"text {number}": endpoint.run({"text": f"text {number}"}) for number in range(60)}
    for text, job in jobs.items():
        assert job.output(timeout=60)["echo"] == text


@pytest.fixture
def generator(endpoint):
    return runpod.Endpoint("generator-ep")


def test_stream(generator):
    job = generator.run({"input": {"count": 5, "seconds": 0.1}})
    assert list(job.stream()) == [{"number": number} for number in range(5)]
    assert job.output(timeout=60) == [{"number": number} for number in range(5)]


def test_stream_of_a_handler_that_does_not_yield(endpoint):
    job = endpoint.run({"input": {"text": "plain", "seconds": 0.2}})
    assert list(job.stream()) == []
    assert job.output(timeout=60)["echo"] == "plain"


def test_asyncio_stream(generator, shared):
    async def use() -> list:
        async with aiohttp.ClientSession() as session:
            job = await AsyncioEndpoint("generator-ep", session).run({"count": 3})
            return [chunk async for chunk in job.stream()]

    assert asyncio.run(use()) == [{"number": number} for number in range(3)]


def test_go_posts_status_and_stream_and_reads_numbers_and_strings(shared):
    base = f"{shared.base}/generator-ep"
    job_id = requests.post(f"{base}/run", json={"input": {"do": "raise"}}, timeout=60).json()["id"]
    headers = {"Content-Type": "application/json", "Authorization": "Bearer any"}

    def post(path):
        return requests.post(f"{base}/{path}/{job_id}", headers=headers, timeout=60).json()

    failed = wait_until(lambda: (s := post("status"))["status"] == "FAILED" and s, 20)
    assert isinstance(failed["error"], str)
    assert all(isinstance(failed[name], int) for name in ("delayTime", "executionTime"))
    assert isinstance(failed["workerId"], str)
    assert post("stream") == {"status": "FAILED", "stream": []}


def test_cancel_of_a_running_job_keeps_its_slot(shared, endpoint, end):
    jobs = [endpoint.run({"input": {"until": str(end)}}) for _ in range(2)]
    wait_until(lambda: all(job.status() == "IN_PROGRESS" for job in jobs))
    assert jobs[0].cancel()["status"] == "CANCELLED"
    assert shared.status(jobs[0].job_id)["status"] == "CANCELLED"
    # The handlers still run: nothing else is begun before they have ended.
    following = shared.submit(text="after")
    wait_until(lambda: any(worker["held"] for worker in shared.get("/health")["ownpod"]["workers"]))
    assert shared.get("/health")["workers"]["running"] == 2
    assert shared.status(following)["status"] == "IN_QUEUE"
    end.touch()
    assert shared.ended(following)["status"] == "COMPLETED"
    assert shared.status(jobs[0].job_id)["status"] == "CANCELLED"
