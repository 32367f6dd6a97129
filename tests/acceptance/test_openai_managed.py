"""OpenAI's Python client at workers that OwnPod starts itself: a session keeps a chat, a template names the model, and the programs
of docs/howto/openai.md print what they should.
"""

import re
import sys

import openai
import pytest
import requests
import yaml
from helpers import ROOT, run_command
from openai_workers import HERE, MODEL, Llm, Notes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HEADER = "X-Runpod-Worker-Id"
PAGE = (ROOT / "docs" / "howto" / "openai.md").read_text()
COMMAND = [sys.executable, str(HERE / "llm_worker.py")]


def template(kind: str, image: str, **env: str) -> dict:
    """An endpoint whose workers answer as this image's. The engine ``process`` runs the command only."""
    found = {"image": image, "command": COMMAND, "env": {"KIND": kind, **env}}
    return {"template": found, "workersMax": 1}


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    directory = tmp_path_factory.mktemp("managed")
    chat = {"command": COMMAND, "env": {"KIND": "vllm-mid"}, "workers": {"max": 1}, "session": {}}
    names = {"MODEL_NAME": "org/model", "SERVED_MODEL_NAME": "served"}
    file = directory / "workers.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "models": {"llama": {"presets": {"chat": chat}}},
                "endpoints": {
                    "sgl": template("sglang", "runpod/worker-v1-sglang:v2.0.2", **names),
                    "proxy": template("vllm", "runpod/worker-v1-vllm:v2.25.2"),
                },
            }
        )
    )
    found = Llm(
        directory,
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:4",
        OWNPOD_SHUTDOWN_GRACE_S=2,
        # No test waits for a lease, and one that expires on a loaded machine would end a session's task.
        OWNPOD_LEASE_S=15,
    )
    yield found
    found.stop()
    print(found.output)


@pytest.fixture
def client_of(ownpod):
    with ownpod.clients() as make:
        yield make


def chat(client, text, **options):
    """A chat's answer and its headers."""
    messages = [{"role": "user", "content": text}]
    completions = client.chat.completions.with_raw_response
    raw = completions.create(model=MODEL, messages=messages, **options)
    return raw.parse(), raw.headers


def said(stream):
    parts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    return "".join(part or "" for part in parts)


def test_a_chat_keeps_the_worker_of_its_session(ownpod, client_of, tmp_path):
    sessions = f"{ownpod.base.removesuffix('/v2')}/api/sessions"
    wish = {"model_id": "llama", "task_preset": "chat"}
    session = requests.post(sessions, json=wish, timeout=30).json()["session_id"]
    notes, own = Notes(tmp_path), client_of("llama-chat")
    client = client_of("llama-chat", default_headers={HEADER: f"strict {session}"})
    for number in range(6):
        text = f"number {number}"
        found, headers = chat(client, notes.text(text), stream=number % 2 == 1)
        answer = said(found) if number % 2 else found.choices[0].message.content
        assert (answer, headers[HEADER]) == (text, session)
        if number == 2:
            # One without a session has another worker, of the endpoint's own, which is free from now on.
            assert chat(own, "hello")[1][HEADER] != session
    assert len(notes.workers()) == 1
    assert notes.signs() == "+-" * 6

    # A client that leaves ends its request, and not the session.
    left = Notes(tmp_path / "left")
    left.path.parent.mkdir()
    with chat(client, left.text("one two", "pause"), stream=True)[0] as stream:
        next(stream)
        left.wait("+")
    left.wait("+x")
    assert chat(client, notes.text("again"))[1][HEADER] == session
    assert len(notes.workers() | left.workers()) == 1

    requests.delete(f"{sessions}/{session}", timeout=30).raise_for_status()
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, "late")
    assert caught.value.code == "affinity_worker_gone"


def test_sglangs_list_of_models_is_made_of_its_template(ownpod, client_of):
    client = client_of("sgl")
    assert [model.id for model in client.models.list()] == ["served"]
    # Its worker is not asked again.
    assert [model.id for model in client.models.list()] == ["served"]
    assert len(ownpod.jobs("sgl", "/v1/models")) == 1
    assert chat(client, "one two")[0].choices[0].message.content == "one two"


@pytest.mark.parametrize(("endpoint", "query"), [("proxy", "?a=b%20c"), ("sgl", "")])
def test_a_query_reaches_the_server_behind_worker_vllm_only(
    ownpod, client_of, tmp_path, endpoint, query
):
    notes = Notes(tmp_path)
    options = {"extra_query": {"a": "b c"}, "extra_headers": {"X-Request-ID": "mine"}}
    found, headers = chat(client_of(endpoint), notes.text("hello"), **options)
    assert found.choices[0].message.content == "hello"
    (job,) = ownpod.jobs(endpoint, notes.path)
    assert (headers["X-OwnPod-Job-Id"], headers["X-Request-ID"]) == (job["id"], "mine")
    assert job["input"]["openai_route"].replace("+", "%20") == f"/v1/chat/completions{query}"


def test_the_program_in_python_prints_the_answer(ownpod):
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    url = "http://localhost:8000/v2/chat/openai/v1"
    assert url in program
    program = program.replace(url, ownpod.url("proxy"))
    done = run_command(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello!"


def test_the_command_with_curl_prints_the_answer(ownpod):
    (command,) = re.findall(r'^    (curl -s "\$BASE.*\n.*)$', PAGE, re.MULTILINE)
    command = command.replace("Qwen/Qwen3-8B", MODEL)
    done = run_command("sh", "-euc", command, BASE=ownpod.url("proxy"), KEY="any")
    assert done.returncode == 0, done.stderr
    assert '"content": "Hello!"' in done.stdout.replace('":"', '": "'), done.stdout
