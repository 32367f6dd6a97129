"""The examples of the GPU service's README, one by one, against `ownpod up` with the engine `process` and stand-ins.

Its presets name images; here they name commands, because the engine `process` starts programs.
"""

import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import sse
import yaml
from helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "your-internal-api-key-here"
HEADERS = {"X-API-Key": KEY}

ENVIRONMENT = {
    "GPU_DEVICE_IDS": "0,1",
    "GPU_DEVICE_DIFFICULTY": "0:low,1:high",
    "SESSION_IDLE_TIMEOUT_SECONDS": "300",
    "SESSION_MAX_LIFETIME_SECONDS": "3600",
    "SESSION_QUEUE_MAX_SIZE": "5",
    "INTERNAL_API_KEY": KEY,
}
"""Its `.env`, without the file service."""

INFERENCE = """
    import os, time
    import runpod
    time.sleep(float(os.environ.get("LOAD_S", "0")))

    def handler(job):
        data = job["input"]
        print("the prompt has arrived", flush=True)
        while "until" in data and not os.path.exists(data["until"]):
            time.sleep(0.05)
        for word in data.get("prompt", "").split():
            yield f"{word} "
        yield f"({os.environ['MODEL_NAME']} {os.getpid()})"

    runpod.serverless.start({"handler": handler})
"""
GENERATE = """
    import json, os, sys
    print(json.dumps({"type": "text_delta", "data": {"delta": "Hel"}}))
    print(json.dumps({"event": "text_delta", "delta": "lo"}))
    print("a line of its own")
    print("WARNING: on standard error", file=sys.stderr)
    print(json.dumps({"type": "text", "data": {"content": "Hello " + os.environ["METADATA_NAME"]}}))
    sys.exit(int(os.environ.get("METADATA_EXIT", "0")))
"""


@pytest.fixture
def service(start_ownpod, tmp_path):
    def start(**environ):
        for name, text in {"inference.py": INFERENCE, "generate.py": GENERATE}.items():
            (tmp_path / name).write_text(textwrap.dedent(text))
        presets = {
            "models": {
                "llama-7b": {
                    "inference": {
                        "command": [sys.executable, str(tmp_path / "inference.py")],
                        "env_vars": {"MODEL_NAME": "llama-7b"},
                    }
                },
                "stable-diffusion-xl": {
                    "generate": {
                        "command": [sys.executable, str(tmp_path / "generate.py")],
                        "env_vars": {"MODEL_NAME": "stable-diffusion-xl"},
                    }
                },
            }
        }
        (tmp_path / "model_presets.yaml").write_text(yaml.safe_dump(presets))
        (tmp_path / "workers.yaml").write_text("endpoints: {local-ep: {}}")
        return start_ownpod(
            OWNPOD_PRESETS_FILE=tmp_path / "model_presets.yaml",
            OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
            OWNPOD_ENGINE="process",
            OWNPOD_SHUTDOWN_GRACE_S=2,
            **{**ENVIRONMENT, **environ},
        )

    return start


def url(ownpod, path):
    return ownpod.base.removesuffix("/v2") + path


def call(ownpod, method, path, status=200, **options):
    answer = requests.request(
        method, url(ownpod, path), **{"headers": HEADERS, "timeout": 60, **options}
    )
    assert answer.status_code == status, answer.text
    return answer.json()


TASK = {
    "task_type": "session",
    "task_difficulty": "low",
    "model_id": "llama-7b",
    "task_preset": "inference",
    "metadata": {"prompt": "Hello, world!", "max_tokens": 100},
    "timeout_seconds": 300,
}
"""The README's task."""


def submit(ownpod, **changes):
    """The response to the README's request, with its whole stream."""
    return requests.post(
        url(ownpod, "/api/tasks/submit"),
        json={**TASK, **changes},
        headers=HEADERS,
        timeout=120,
    )


def finished(ownpod, **changes):
    """The events of a task that is submitted and followed to its end, and the id of its session."""
    answer = submit(ownpod, **changes)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    return sse.stream_of(answer.content), answer.headers.get("X-Session-Id")


def of(events, name):
    return [event.data for event in events if event.event == name]


def text_of(events):
    (text,) = of(events, "text")
    assert "".join(delta["delta"] for delta in of(events, "text_delta")) == text["content"]
    return text["content"]


def test_a_session_as_in_the_readme(service):
    ownpod = service(LOAD_S=1)
    # "Health Check", and `curl .../health | jq '.gpus'` of "Check GPU Status".
    health = requests.get(url(ownpod, "/health"), timeout=60).json()
    assert (health["status"], health["active_sessions"], health["active_tasks"]) == (
        "healthy",
        0,
        0,
    )
    gpus = wait_until(
        lambda: requests.get(url(ownpod, "/health"), timeout=60).json()["gpus"], 20, "the devices"
    )
    assert [(gpu["device_id"], gpu["difficulty"]) for gpu in gpus] == [(0, "low"), (1, "high")]
    assert all(gpu["is_available"] for gpu in gpus)

    # "Task Submission", "First Request".
    events, session = finished(ownpod)
    assert events[0].event == "connection"
    connections = of(events, "connection")
    assert connections[-1]["status"] == "session_ready"
    assert connections[-1]["session_id"] == session
    statuses = [worker["status"] for worker in of(events, "worker")]
    assert "working" in statuses
    assert statuses[-1] == "waiting"
    first = text_of(events)
    assert first.startswith("Hello, world! (llama-7b ")
    # What the SDK writes for its developers has the output in it, and is no event.
    assert not [log for log in of(events, "logs") if log["level"] == "debug"]

    def logged():
        shown = call(ownpod, "GET", f"/api/tasks/{events[-1].data['task_id']}")
        return "the prompt has arrived" in [log["log"] for log in shown["recent_logs"]]

    wait_until(logged, 10, "the task's own line")
    finish = events[-1].data
    assert finish["status"] == "completed"
    assert isinstance(finish["elapsed_seconds"], int)

    # "Session Management": list, get.
    wait_until(lambda: call(ownpod, "GET", f"/api/sessions/{session}")["status"] == "waiting")
    listed = call(ownpod, "GET", "/api/sessions")
    assert listed["total"] == 1
    shown = call(ownpod, "GET", f"/api/sessions/{session}")
    assert listed["sessions"] == [shown]
    assert (shown["status"], shown["model_id"]) == ("waiting", "llama-7b")
    assert (shown["gpu_device_id"], shown["queue_size"]) == (0, 0)
    assert (shown["idle_timeout_seconds"], shown["max_lifetime_seconds"]) == (300, 3600)

    # "Subsequent Requests": with the session's id, the same container.
    again, same = finished(ownpod, session_id=session)
    assert same == session
    assert of(again, "connection")[-1]["session_id"] == session
    assert text_of(again) == first
    # ... and found without its id, too.
    more, found = finished(ownpod)
    assert (found, text_of(more)) == (session, first)

    # Keep the session alive.
    kept = call(ownpod, "POST", f"/api/sessions/{session}/keepalive")
    assert (kept["success"], kept["session_id"]) == (True, session)
    assert kept["last_activity"] >= shown["last_activity"]

    # Kill the session.
    killed = call(ownpod, "DELETE", f"/api/sessions/{session}")
    assert (killed["success"], killed["session_id"]) == (True, session)
    wait_until(
        lambda: call(ownpod, "GET", f"/api/sessions/{session}")["status"] == "killed",
        30,
        "the end of the session",
    )
    assert call(ownpod, "GET", "/api/sessions")["total"] == 0
    gone = call(ownpod, "POST", "/api/tasks/submit", 404, json={**TASK, "session_id": session})
    assert gone["code"] == "session_ended"
    wait_until(
        lambda: all(
            gpu["is_available"]
            for gpu in requests.get(url(ownpod, "/health"), timeout=60).json()["gpus"]
        ),
        30,
        "the device",
    )


def test_a_one_off_task_as_in_the_readme(service):
    ownpod = service()
    task = {
        "task_type": "oneoff",
        "model_id": "stable-diffusion-xl",
        "task_preset": "generate",
        "metadata": {"name": "you"},
    }
    events, session = finished(ownpod, **task, task_difficulty="high")
    assert session is None
    connections = of(events, "connection")
    assert connections[-1]["status"] == "allocated"
    assert "".join(delta["delta"] for delta in of(events, "text_delta")) == "Hello"
    assert of(events, "text")[-1]["content"] == "Hello you"
    logs = {log["log"]: log for log in of(events, "logs")}
    assert logs["a line of its own"]["level"] == "info"
    assert any(log["level"] == "warning" for log in logs.values())
    assert events[-1].data["status"] == "completed"
    assert events[-1].data["exit_code"] == 0

    failed, _ = finished(ownpod, **{**task, "metadata": {"name": "you", "exit": 3}})
    finish = failed[-1].data
    assert (finish["status"], finish["exit_code"]) == ("failed", 3)
    shown = call(ownpod, "GET", f"/api/tasks/{finish['task_id']}")
    assert (shown["status"], shown["task_type"]) == ("failed", "oneoff")
    assert shown["recent_logs"]

    def freed():
        gpus = requests.get(url(ownpod, "/health"), timeout=60).json()["gpus"]
        return len(gpus) == 2 and all(gpu["is_available"] for gpu in gpus)

    wait_until(freed, 30, "the container exits, the GPU is released")


def test_a_sessions_queue_has_five_places_and_keeps_its_order(service, tmp_path):
    ownpod = service()
    until = tmp_path / "until"
    held = {"prompt": "first", "until": str(until)}
    answer = call(
        ownpod,
        "POST",
        "/api/tasks/submit",
        json={**TASK, "metadata": held},
        headers=HEADERS | {"Prefer": "respond-async"},
    )
    session = answer["session_id"]
    wait_until(
        lambda: call(ownpod, "GET", f"/api/sessions/{session}")["status"] == "working",
        60,
        "the first task",
    )
    wait_until(
        lambda: call(ownpod, "GET", f"/api/sessions/{session}")["current_task_id"],
        60,
        "the first task",
    )
    positions = []
    for n in range(5):
        queued = call(
            ownpod,
            "POST",
            "/api/tasks/submit",
            json={**TASK, "session_id": session, "metadata": {"prompt": str(n)}},
            headers=HEADERS | {"Prefer": "respond-async"},
        )
        positions.append((queued["position"], queued["task_id"]))
    assert [position for position, _ in positions] == [1, 2, 3, 4, 5]
    full = submit(ownpod, session_id=session)
    assert full.status_code == 503
    assert full.headers["Retry-After"].isdecimal()
    assert full.json()["code"] == "queue_full"
    shown = call(ownpod, "GET", f"/api/sessions/{session}")
    assert (shown["queue_size"], shown["queue_max"]) == (5, 5)
    assert shown["queued_task_ids"] == [task_id for _, task_id in positions]

    def follow(task_id):
        stream = requests.get(
            url(ownpod, f"/api/tasks/{task_id}/events"), headers=HEADERS, timeout=120
        )
        return sse.stream_of(stream.content)

    with ThreadPoolExecutor(5) as pool:
        streams = pool.map(follow, [task_id for _, task_id in positions])
        until.touch()
        finishes = [events[-1].data for events in streams]
    assert [finish["status"] for finish in finishes] == ["completed"] * 5
    starts = [
        call(ownpod, "GET", f"/api/tasks/{task_id}")["started_at"] for _, task_id in positions
    ]
    assert starts == sorted(starts)


def test_all_endpoints_but_health_need_the_key(service):
    ownpod = service()
    for method, path, body in (
        ("POST", "/api/tasks/submit", TASK),
        ("GET", "/api/sessions", None),
        ("GET", "/api/sessions/abc123", None),
        ("DELETE", "/api/sessions/abc123", None),
        ("POST", "/api/sessions/abc123/keepalive", None),
    ):
        for headers in ({}, {"X-API-Key": "another"}):
            refused = call(ownpod, method, path, 401, json=body, headers=headers)
            assert refused["detail"] == refused["error"]
    assert "gpus" in call(ownpod, "GET", "/health", headers={})
    unknown = call(ownpod, "GET", "/api/sessions/abc123", 404)
    assert unknown["detail"] == "Session abc123 not found"


def test_a_cut_stream_is_resumed_without_loss_or_repetition(service, tmp_path):
    ownpod = service()
    until = tmp_path / "until"
    until.touch()
    events, _ = finished(ownpod, metadata={"prompt": "a b c d", "until": str(until)})
    task_id = events[-1].data["task_id"]
    for n, event in enumerate(events[:-1]):
        rest = requests.get(
            url(ownpod, f"/api/tasks/{task_id}/events"),
            headers=HEADERS | {"Last-Event-ID": event.id},
            timeout=60,
        )
        assert list(sse.parsed([rest.content])) == events[n + 1 :], json.dumps(event.data)
    done = requests.get(
        url(ownpod, f"/api/tasks/{task_id}/events"),
        headers=HEADERS | {"Last-Event-ID": events[-1].id},
        timeout=60,
    )
    assert done.status_code == 204
