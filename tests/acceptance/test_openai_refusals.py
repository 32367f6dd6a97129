"""OpenAI's client against an API without workers: what OwnPod itself refuses, and how long a client waits."""

import sys

import openai
import pytest
import requests
from helpers import Process, RedisServer, answers, wait_until

from ownpod.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The URL of one API process with the endpoints ``ep`` and ``other``, which have no workers; one key."""
    directory = tmp_path_factory.mktemp("api")
    file, port = directory / "workers.yaml", free_port()
    file.write_text("endpoints: {ep: {}, other: {}}")
    redis = RedisServer(directory)
    api = Process(
        *(sys.executable, "-m", "gunicorn", "-w", "1", "-b", f"127.0.0.1:{port}", "wsgi:app"),
        log=directory / "api.log",
        REDIS_URL=redis.url,
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_API_KEYS="k",
        OWNPOD_OPENAI_TIMEOUT_S=1,
        OWNPOD_OPENAI_BODY_MB=1,
        OWNPOD_RATE_LIMITS='{"runsync": "40/hour"}',
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 30, "the API")
        yield f"http://127.0.0.1:{port}/v2"
    finally:
        api.stop()
        redis.stop()
        print(api.output)


@pytest.fixture
def client(base):
    with openai.OpenAI(base_url=f"{base}/ep/openai/v1", api_key="k") as found:
        yield found


def jobs(base, endpoint="ep"):
    headers = {"Authorization": "Bearer k"}
    found = requests.get(f"{base}/{endpoint}/requests", headers=headers, timeout=60).json()
    return [row["status"] for row in found["requests"]]


def test_a_wrong_key_is_an_authentication_error(client):
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").chat.completions.create(**CHAT)
    assert isinstance(caught.value.body["message"], str)


def test_an_unknown_endpoint_is_not_found(client, base):
    with pytest.raises(openai.NotFoundError):
        client.with_options(base_url=f"{base}/unknown/openai/v1").chat.completions.create(**CHAT)


def test_a_body_that_is_too_large_is_refused(client):
    large = {**CHAT, "user": "x" * 1_100_000}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**large)
    assert caught.value.status_code == 413


def test_a_body_that_is_no_object_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body=["no", "object"], cast_to=object)
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", content=b"{no json", cast_to=object)


def test_other_methods_are_refused(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.delete("/models/m", cast_to=object)
    assert caught.value.status_code == 405


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_no_worker_takes_is_over_and_leaves_no_job(client, base, stream):
    once = client.with_options(max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        once.chat.completions.create(**CHAT, stream=stream)
    assert caught.value.status_code in {503, 504}
    assert caught.value.response.headers["content-type"] == "application/json"
    wait_until(lambda: set(jobs(base)) == {"CANCELLED"}, 10, "the job's cancel")


def test_more_requests_than_the_limit_are_refused_with_the_time_to_wait(client, base):
    url = f"{base}/other/openai/v1/"
    strangers = client.with_options(base_url=url, max_retries=0, timeout=60)
    # Bodies that are refused count, too, and wait for nothing.
    for _ in range(41):
        answer = requests.post(
            f"{url}chat/completions", data="[]", headers={"Authorization": "Bearer k"}, timeout=60
        )
        if answer.status_code == 429:
            break
    with pytest.raises(openai.RateLimitError) as caught:
        strangers.chat.completions.create(**CHAT)
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert isinstance(caught.value.body["message"], str)
