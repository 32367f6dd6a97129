"""OpenAI routes of load-balanced endpoints with all real processes: a server of OpenAI's API, HAProxy, `ownpod up`."""

import http.client
import json
import sys
from pathlib import Path

import pytest
import requests
from helpers import OwnPod, Process, answers, load_settings, wait_until

from ownpod.configuration import load_endpoints
from ownpod.processes import free_port
from ownpod.registry import Registry
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("openai_lb_server.py")
KEY = {"Authorization": "Bearer secret"}


class Rig:
    """An OwnPod with the endpoints ``chat``, whose worker is :data:`PROGRAM`, ``cold`` without workers, and ``queue``."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.server = f"http://127.0.0.1:{port}"
        self._worker = Process(sys.executable, PROGRAM, port, log=directory / "worker.log")
        wait_until(lambda: answers(f"{self.server}/ping"), 60, "the worker")
        endpoints = {
            "chat": {"type": "LB", "workers": [{"url": self.server, "id": "w1"}]},
            "cold": {"type": "LB", "holdTimeout": 1},
            "queue": {},
        }
        self.file = directory / "workers.yaml"
        self.file.write_text(json.dumps({"endpoints": endpoints}))
        self.ownpod = OwnPod(
            directory,
            OWNPOD_WORKERS_FILE=self.file,
            OWNPOD_FRONT="on",
            OWNPOD_API_KEYS="secret",
        )

    def ask(self, path, body=None, endpoint="chat", headers=KEY, **more):
        url = f"{self.ownpod.base}/{endpoint}/openai/v1/{path}"
        method = "GET" if body is None else "POST"
        return requests.request(method, url, json=body, headers=headers, timeout=60, **more)

    def chat(self, text, model="small", **more):
        messages = [{"role": "user", "content": text}]
        return {"model": model, "messages": messages, **more}

    @property
    def seen(self):
        return requests.get(f"{self.server}/seen", timeout=60).json()

    def allow(self):
        requests.post(f"{self.server}/next", timeout=60).raise_for_status()

    def health(self, endpoint="chat"):
        return requests.get(f"{self.ownpod.base}/{endpoint}/health", headers=KEY, timeout=60).json()

    def close(self) -> None:
        self.ownpod.stop()
        print(self.ownpod.output)
        self._worker.kill()
        print(self._worker.output)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("openai"))
    wait_until(lambda: made.health()["workers"]["ready"] == 1, 30, "a ready worker")
    yield made
    made.close()


def test_a_completion_and_the_model_list_are_the_servers_own(rig):
    answer = rig.ask("chat/completions?a=1", rig.chat("hello there"))
    assert answer.status_code == 200
    assert answer.headers["X-Runpod-Worker-Id"] == "w1"
    assert answer.json()["choices"][0]["message"]["content"] == "hello there"
    assert rig.seen["paths"][-1] == "POST /v1/chat/completions?a=1"
    headers = rig.seen["headers"]
    assert headers["x-forwarded-prefix"] == "/v2/chat/openai"
    assert "authorization" not in headers
    models = rig.ask("models")
    assert [row["id"] for row in models.json()["data"]] == ["small"]
    direct = requests.get(f"{rig.server}/v1/models", timeout=60)
    assert models.content == direct.content


def test_the_servers_errors_pass_unchanged(rig):
    missing = rig.ask("chat/completions", rig.chat("x", "none"))
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "The model `none` does not exist."
    busy = rig.ask("chat/completions", rig.chat("x", "busy"))
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "7")
    assert busy.json()["error"]["code"] == 429
    wrong = rig.ask("nothing", {})
    assert (wrong.status_code, wrong.json()) == (404, {"detail": "Not Found"})


def test_events_arrive_when_the_server_sends_them(rig):
    body = rig.chat("one two three", stream=True)
    with rig.ask("chat/completions", body, stream=True) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        for word in ("one", "two", "three"):
            # The server waits for this, so each event has arrived before the next one was made.
            rig.allow()
            event = json.loads(next(lines).removeprefix(b"data: "))
            assert event["choices"][0]["delta"]["content"] == word
        assert list(lines) == [b"data: [DONE]"]
    assert answer.headers["X-Runpod-Worker-Id"] == "w1"


def test_a_client_that_leaves_is_seen_by_the_server(rig):
    left = rig.seen["left"]
    with rig.ask("chat/completions", rig.chat("a b", stream=True), stream=True) as answer:
        lines = answer.iter_lines()
        rig.allow()
        assert b'"a"' in next(lines)
        assert (rig.seen["open"], rig.seen["left"]) == (1, left)
    wait_until(lambda: rig.seen["left"] == left + 1, 20, "the stream's end")
    body = json.dumps(rig.chat("wait"))
    one = http.client.HTTPConnection("127.0.0.1", rig.ownpod.port, timeout=60)
    one.request("POST", "/v2/chat/openai/v1/chat/completions", body, KEY)
    wait_until(lambda: rig.seen["open"] == 1, 20, "the request at the server")
    one.close()
    wait_until(lambda: rig.seen["left"] == left + 2, 20, "the request's end")
    wait_until(lambda: rig.health()["jobs"]["inProgress"] == 0, 20, "no open request")


def test_errors_of_the_front_have_openais_shape(rig):
    before = rig.seen["paths"]
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = rig.ask("models", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    late = rig.ask("chat/completions", rig.chat("x"), "cold")
    assert (late.status_code, late.headers["Retry-After"]) == (503, "5")
    assert late.json()["error"] == {
        "message": "timed out waiting for worker",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert rig.seen["paths"] == before


def test_other_endpoints_are_the_apis(rig):
    before = rig.seen["paths"]
    assert rig.ask("models", endpoint="unknown").status_code == 404
    for path in ("unknown/../chat", "unknown/%2e%2e/chat", "queue%2F..%2Fchat"):
        raw = requests.Request("GET", rig.ownpod.base, headers=KEY).prepare()
        raw.url = f"{rig.ownpod.base}/{path}/openai/v1/models"
        with requests.Session() as session:
            assert session.send(raw, timeout=60).status_code in {400, 404}
    assert rig.seen["paths"] == before


def test_an_endpoint_that_comes_at_run_time_and_changes_its_type(rig):
    settings = load_settings(REDIS_URL=rig.ownpod.redis_url, OWNPOD_WORKERS_FILE=rig.file)
    worker = {"url": rig.server.replace("127.0.0.1", "localhost"), "id": "n1"}

    def answering():
        """What answers: the worker (its id), or the API ("api"), which makes no job of a DELETE."""
        url = f"{rig.ownpod.base}/new/openai/v1/models"
        answer = requests.delete(url, headers=KEY, timeout=60)
        worker_id = answer.headers.get("X-Runpod-Worker-Id")
        return worker_id or ("api" if answer.status_code in {404, 405} else None)

    with connect(rig.ownpod.redis_url) as client:
        registry = Registry(load_endpoints(settings), Fleet(client), settings)
        for _ in range(2):
            registry.put_endpoint("new", {"type": "LB"})
            registry.add("new", worker)
            wait_until(lambda: answering() == "n1", 30, "the new endpoint")
            assert rig.ask("models", endpoint="new").json()["object"] == "list"
            registry.remove("n1")
            registry.put_endpoint("new", {})
            wait_until(lambda: answering() == "api", 30, "a queue")
        registry.remove_endpoint("new")
        wait_until(
            lambda: rig.ask("models", endpoint="new").status_code == 404, 30, "the endpoint's end"
        )
