"""Streams of OpenAI's clients."""

import json

import pytest
from helpers import job_store
from openai_worker import Answering

from ownpod.rules.openai import DONE

FILE = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: w1}]}
"""
URL = "/v2/ep/openai/v1/chat/completions"
EVENT = 'data: {"a": 1}\n\n'


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def api(new_app):
    return new_app(FILE).test_client()


def post(api, **more):
    body = {"model": "m", "stream": True} | more
    return api.post(URL, data=json.dumps(body))


def test_chunks_are_written_as_they_come(api, store):
    def begin(worker):
        worker.claim()
        worker.chunk(EVENT)

    with Answering(store, begin) as worker:
        response = post(api)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Runpod-Worker-Id"] == "w1"
    assert response.headers["X-Request-ID"] == worker.job_id
    parts = response.iter_encoded()
    assert next(parts) == EVENT.encode()
    worker.chunk("da", [{"b": 2}])
    assert next(parts) == b'da\n\ndata: {"b": 2}\n\n'
    worker.finish([])
    assert b"".join(parts) == DONE.encode()
