"""OpenAI's JavaScript client and the AI SDK's RunPod provider, unmodified."""

import json
import shutil

import pytest
from helpers import run_command, wait_until
from openai_workers import MODEL, node_folder, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    if not shutil.which("npm"):
        pytest.skip("no Node: install node and npm to test OpenAI's JavaScript clients")
    return node_folder(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llm")
    with serving(directory, ["vllm", "vllm-mid-raw0"], ["vllm-mid"]) as (found, _start):
        yield found


@pytest.fixture
def use(ownpod, packages, tmp_path):
    """Runs one of the programs; returns the JSON of its last line."""

    def run(program, endpoint, **environ):
        values = {"ENDPOINT": ownpod.url(endpoint), "NOTE": tmp_path / "note", "MODEL": MODEL}
        done = run_command("node", program, cwd=packages, timeout=250, **values, **environ)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("endpoint", ["vllm-pull", "vllm-mid-raw0-pull", "vllm-mid-push"])
def test_every_operation_of_openais_javascript_client(ownpod, use, tmp_path, endpoint):
    whole = endpoint == "vllm-pull"
    said = use("use_openai.mjs", endpoint, RESPONSES="1" if whole else "")
    assert said["chat"] == "Grüße 🙂 from js"
    assert said["stream"] == "one two three four five"
    assert said["usage"]["completion_tokens"] == 5
    assert said["completion"] == "to be"
    assert said["models"] == [MODEL]
    assert said["unknown"]["name"] == "NotFoundError"
    assert (said["unknown"]["status"], said["unknown"]["code"]) == (404, 404)
    assert (said["failed"]["name"], said["failed"]["status"]) == ("InternalServerError", 500)
    assert said["broken"]["name"] == "APIError"
    assert said["late"]["name"] == "APIConnectionTimeoutError"
    if whole:
        assert said["response"] == "a response"
        assert said["events"][0] == "response.created"
        assert said["events"][-1] == "response.completed"
        assert said["embeddings"] == [[4, 0.5, -1], [1, 0.5, -1]]
    # A worker had begun, so the client did not repeat it.
    assert len((tmp_path / "note").read_text().splitlines()) == 1
    for name in ("note.abort", "note.late"):
        left = tmp_path / name
        wait_until(lambda left=left: ownpod.statuses(endpoint, left) == ["CANCELLED"], 20, name)


@pytest.mark.parametrize("endpoint", ["vllm-pull", "vllm-mid-raw0-pull", "vllm-mid-push"])
def test_every_operation_of_the_ai_sdks_runpod_provider(ownpod, use, tmp_path, endpoint):
    said = use("use_ai_sdk.mjs", endpoint)
    assert (said["text"], said["finish"]) == ("Grüße 🙂 from the sdk", "stop")
    assert said["tokens"] == 5
    assert "".join(said["parts"]) == "one two three four five"
    assert said["streamTokens"] == 5
    assert said["completion"] == "user: to be assistant:"
    assert said["unknown"]["status"] == 404
    assert said["unknown"]["text"] == "The model `other` does not exist."
    assert (said["failed"]["status"], said["failed"]["retryable"]) == (400, False)
    left = tmp_path / "note.abort"
    wait_until(lambda: ownpod.statuses(endpoint, left) == ["CANCELLED"], 20, "cancelled")
