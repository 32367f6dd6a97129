"""`ownpod submit` and the other commands, on the real processes and workers."""

import json
import sys
from pathlib import Path

import pytest
from helpers import run_command, wait_until

from ownpod.processes import free_port

OWNPOD = Path(sys.executable).parent / "ownpod"


@pytest.fixture
def run(shared, tmp_path):
    """A command against the shared OwnPod: (exit code, stdout, stderr)."""

    def made(*command, stdin="", **environ):
        url = {"OWNPOD_URL": shared.base.removesuffix("/v2")} | environ
        done = run_command(OWNPOD, *command, cwd=tmp_path, stdin=stdin, **url)
        return done.returncode, done.stdout, done.stderr

    return made


def test_submit_prints_the_id_or_waits_for_the_output(run, shared):
    code, output, _ = run("submit", '{"text": "x"}')
    assert (code, shared.ended(output.strip())["output"]["echo"]) == (0, "x")
    code, output, _ = run("submit", '{"text": "y", "seconds": 0.5}', "--wait")
    assert (code, json.loads(output)["echo"]) == (0, "y")
    code, output, _ = run("submit", '{"text": "z"}', "--wait", "--json")
    assert (code, json.loads(output)["status"]) == (0, "COMPLETED")


def test_an_input_comes_from_a_file_or_stdin(run, tmp_path):
    (tmp_path / "input.json").write_text('{"text": "from a file"}')
    assert json.loads(run("submit", "@input.json", "--wait")[1])["echo"] == "from a file"
    output = run("submit", "-", "--wait", stdin='{"text": "from stdin"}')[1]
    assert json.loads(output)["echo"] == "from stdin"


def test_a_job_that_fails_is_exit_code_1_with_the_reason(run):
    code, output, error = run("submit", '{"do": "error"}', "--wait")
    assert (code, output) == (1, "")
    assert "FAILED: it says no" in error


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["submit", "{"], "must be JSON"),
        (["submit", "@nothing.json"], "nothing.json: No such file"),
        (["submit"], "no INPUT"),
        (["submit", "--jsonl", "-"], "needs --results"),
        (["status", "nobody"], "'nobody' not found"),
        (["health", "-e", "none"], "endpoint 'none' not found"),
    ],
)
def test_a_wrong_command_is_explained_in_one_line(run, command, expected):
    code, _, error = run(*command)
    assert code == 2
    assert expected in error.splitlines()[-1]


def test_an_api_that_cannot_be_reached_is_explained(run):
    code, _, error = run("health", OWNPOD_URL=f"http://127.0.0.1:{free_port()}")
    assert code == 2
    assert "cannot be reached: is OwnPod running there?" in error


def test_chunks_are_printed_as_they_arrive(run):
    code, output, _ = run("submit", '{"count": 3}', "--stream", "-e", "generator-ep")
    assert (code, [json.loads(line) for line in output.splitlines()]) == (
        0,
        [{"number": 0}, {"number": 1}, {"number": 2}],
    )


def test_many_inputs_are_run_once_each_and_resumed(run, tmp_path):
    lines = [json.dumps({"text": str(n), "do": "raise" if n == 3 else "echo"}) for n in range(8)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    many = ("submit", "--jsonl", "in.jsonl", "--results", "out.jsonl")
    code, _, error = run(*many)
    assert code == 1
    assert "8 inputs, 1 not completed" in error
    results = tmp_path / "out.jsonl"
    first = [json.loads(line) for line in results.read_text().splitlines()]
    assert {r["input"]["text"]: r["status"] for r in first} == {
        str(n): "FAILED" if n == 3 else "COMPLETED" for n in range(8)
    }
    # As after SIGKILL: five results, and one that is cut short. No job may run again.
    cut = results.read_text().splitlines()
    results.write_text("\n".join([*cut[:5], cut[5][:20]]))
    run(*many)
    again = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(r["id"] for r in again) == sorted(r["id"] for r in first)


def test_status_history_and_health_show_a_job_and_its_workers(run, shared):
    job = shared.ended(shared.submit(text="shown"))
    output = run("status", job["id"])[1]
    assert f"workerId       {job['workerId']}" in output
    assert json.loads(run("status", job["id"], "--json")[1]) == job
    output = run("history", job["id"])[1]
    assert output.splitlines()[-1].split()[:2] == ["1", job["workerId"]]
    assert json.loads(run("history", job["id"], "--json")[1])["input"] == {"text": "shown"}
    output = run("health")[1]
    assert output.splitlines()[1].split() == ["WORKER", "STATE", "BUSY", "JOB", "REASON"]
    assert json.loads(run("health", "--json")[1])["workers"]["ready"] == 2


def test_top_counts_all_endpoints(run):
    code, output, _ = run("top", "--count", "2", "--every", "0.2")
    assert code == 0
    assert {"async-ep", "generator-ep", "local-ep"} <= {
        line.split(" ")[0] for line in output.splitlines()
    }
    updates = [
        json.loads(line)
        for line in run("top", "--count", 2, "--every", 0.2, "--json")[1].splitlines()
    ]
    assert [sorted(update) for update in updates] == [["async-ep", "generator-ep", "local-ep"]] * 2


@pytest.mark.parametrize(
    ("kind", "expected"), [("sync", "yields nothing"), ("generator", "yields (3 chunks)")]
)
def test_the_doctor_reports_how_a_worker_answers(run, start_worker, kind, expected):
    url, _ = start_worker(kind)
    code, output, _ = run("doctor", url)
    assert code == 0
    assert expected in output
    assert "held: it answers /status only when the job has ended" in output
    assert "it has no /cancel" in output


def test_the_doctor_reports_what_is_wrong(run, start_worker, shared):
    code, output, _ = run("doctor", f"http://127.0.0.1:{free_port()}")
    assert code == 1
    assert "Is the container running" in output
    url, _ = start_worker()
    assert "needs another --input" in run("doctor", url, "--input", "[]")[1]
    # A server that is not a worker.
    code, output, _ = run("doctor", shared.base, "--json")
    assert (code, json.loads(output)[-1]["kind"]) == (1, "bad")


def test_completion_is_there_for_shells(run):
    code, output, _ = run(_OWNPOD_COMPLETE="bash_source")
    assert code == 0
    assert "_ownpod_completion" in output


def test_a_progress_line_is_shown_on_a_terminal_only(run, shared):
    _, output, error = run("submit", '{"text": "x", "seconds": 0.3}', "--wait")
    assert "\x1b" not in output + error
    wait_until(lambda: shared.get("/health")["jobs"]["inProgress"] == 0)
