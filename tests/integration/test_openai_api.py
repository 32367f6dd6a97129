"""Requests of OpenAI's clients without a stream: jobs, responses, errors."""

import json

import pytest
from helpers import job_store
from openai_worker import Answering

FILE = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: w1}], apiKeys: [ep-key]}
  web: {type: LB, workers: [{url: "http://127.0.0.1:2", id: c}]}
"""
URL = "/v2/ep/openai/v1/chat/completions"
KEY = {"Authorization": "Bearer all"}
CHAT = '{"id": "c",  "object": "chat.completion", "choices": []}'
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def api(new_app):
    return new_app(FILE, OWNPOD_API_KEYS="all").test_client()


def post(api, body=BODY, url=URL, **headers):
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return api.post(url, data=data, headers=KEY | headers)


def test_a_request_is_a_job_and_its_output_the_response(api, store):
    def steps(worker):
        got = worker.claim()
        assert got == {"openai_route": "/v1/chat/completions", "openai_input": BODY}
        worker.finish(f"[{CHAT}]")

    with Answering(store, steps) as worker:
        response = post(api)
    assert (response.status_code, response.text) == (200, CHAT)
    assert response.content_type == "application/json"
    assert response.headers["X-Request-ID"] == worker.job_id
    assert response.headers["X-Runpod-Worker-Id"] == "w1"
    assert "x-should-retry" not in response.headers
