"""The examples that users copy, run unchanged."""

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


@pytest.mark.timeout(240)
def test_the_javascript_sdk(run, javascript):
    shutil.copy(CLIENTS / "javascript_sdk.mjs", javascript)
    assert "COMPLETED" in run("node", javascript / "javascript_sdk.mjs")
