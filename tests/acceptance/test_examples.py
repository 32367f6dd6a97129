"""The examples that users copy, run unchanged."""

import json
import shutil
import sys

import pytest
from helpers import ROOT, Process, answers, run_command, wait_until

from ownpod.processes import free_port

CLIENTS = ROOT / "examples" / "clients"


@pytest.fixture
def run(shared, tmp_path):
    def made(*command):
        url = shared.base.removesuffix("/v2")
        done = run_command(*command, cwd=tmp_path, OWNPOD_URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return made


def test_the_python_sdk(run):
    assert "hello from Python" in run(sys.executable, CLIENTS / "python_sdk.py")


def test_curl(run):
    said = run("sh", CLIENTS / "curl.sh")
    assert "hello from curl" in said
    assert '"status": "COMPLETED"' in said


def test_an_interrupted_batch_over_a_folder_continues(run, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("x" * number)
    command = (sys.executable, CLIENTS / "batch.py", folder, tmp_path / "results")
    assert run(*command).count("COMPLETED") == 5
    assert len(list((tmp_path / "results").iterdir())) == 5
    (tmp_path / "results" / "3.txt.json").unlink()
    assert run(*command).split(":")[0] == "3.txt"


@pytest.mark.parametrize("secret", ["s3cret", "wrong"])
def test_the_webhook_receiver_accepts_signed_webhooks_only(
    start_worker, start_ownpod, tmp_path, secret
):
    url, _ = start_worker()
    ownpod = start_ownpod(url, OWNPOD_WEBHOOK_SECRET="s3cret")
    port = free_port()
    receiver = Process(
        *(sys.executable, CLIENTS / "webhook_receiver.py", port),
        log=tmp_path / "receiver.log",
        OWNPOD_WEBHOOK_SECRET=secret,
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"))
        body = {"input": {"text": "sent"}, "webhook": f"http://127.0.0.1:{port}/"}
        job = ownpod.post("/run", body)["id"]
        ownpod.ended(job)
        if secret == "s3cret":
            wait_until(lambda: f"{job} COMPLETED" in receiver.output)
        else:
            tries = lambda: next(  # noqa: E731
                found.get("webhook", []) for found in ownpod.get("/requests")["requests"]
            )
            wait_until(lambda: tries() and tries()[0]["httpStatus"] == 401)
            assert receiver.output == ""
    finally:
        receiver.kill()


@pytest.mark.timeout(300)
def test_the_javascript_sdk(run, javascript):
    shutil.copy(CLIENTS / "javascript_sdk.mjs", javascript)
    assert "COMPLETED" in run("node", javascript / "javascript_sdk.mjs")


@pytest.fixture
def sessions(start_ownpod, tmp_path):
    """OwnPod with the presets of the example, whose workers run in the root of the clone, as a reader's do."""
    file = tmp_path / "workers.yaml"
    text = (ROOT / "examples" / "sessions" / "workers.yaml").read_text()
    text = text.replace("[python, examples", f"[{json.dumps(sys.executable)}, {ROOT}/examples")
    file.write_text(text.replace('LOAD_S: "3"', 'LOAD_S: "1"'))
    return start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:1",
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_clients_of_sessions_keep_their_session_and_print_text_as_it_comes(sessions, tmp_path):
    url = sessions.base.removesuffix("/v2")
    folder = ROOT / "examples" / "sessions"
    commands = [[sys.executable, folder / "client.py"]]
    if shutil.which("node"):
        commands.append(["node", folder / "client.mjs"])
    for number, command in enumerate(commands):
        done = run_command(*command, "hello", "again", cwd=tmp_path, OWNPOD_URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
        # The second client reuses the idle session of the first.
        spoken = 2 * number
        assert done.stdout == (
            f"> hello\nhello! You have spoken {spoken + 1} times; first you said: hello\n"
            f"> again\nagain! You have spoken {spoken + 2} times; first you said: hello\n"
        )
        wrong = run_command(*command, "hello", cwd=tmp_path, OWNPOD_URL=url, PRESET="none")
        assert wrong.returncode == 1
        assert "refused: unknown_preset: " in wrong.stderr
    done = run_command("sh", folder / "curl.sh", cwd=tmp_path, OWNPOD_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("event: task_finish") == 3
    assert '"Session killed successfully"' in done.stdout
    assert 'data: {"output": {"counted": 3}}' in done.stdout
