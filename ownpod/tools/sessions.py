"""``ownpod session``: workers of one client each, whose model stays loaded between tasks; a client of the API."""

import json
import sys
import time
import uuid
from typing import Any

import click

from ownpod.tools import tables
from ownpod.tools.client import ApiError, Client
from ownpod.tools.remote import print_json, remote_api
from ownpod.tools.submit import read_input
from ownpod.tools.task_events import FINISH, TaskEvent, follow

COLUMNS = (
    *("SESSION", "MODEL", "PRESET", "STATUS", "HOST", "GPU", "QUEUE", "DONE", "IDLE ENDS", "ENDS"),
    "REASON",
)
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended."""

CHECK_S = 0.5
"""Seconds between two checks of a session that starts."""

OVER = "killed"


@click.group()
def session() -> None:
    """Start, use, list and end sessions: a model stays loaded for its client between tasks."""


@session.command()
@click.argument("model")
@click.argument("preset")
@click.option("-d", "--difficulty", help="The pool of devices; by default the preset's.")
@click.option(
    "--idle",
    type=int,
    metavar="SECONDS",
    help="End it after this time without work; by default, and at most, the preset's.",
)
@click.option(
    "--life",
    type=int,
    metavar="SECONDS",
    help="End it after this time from ready; by default, and at most, the preset's.",
)
@click.option(
    "--device-wait",
    "wait_s",
    type=int,
    metavar="SECONDS",
    help="Time for which it may wait for a device; by default OWNPOD_GPU_WAIT_S of the API. 0: refuse if none is free or freeable.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label, for people.")
@click.option(
    "--no-wait", is_flag=True, help="Print the id at once; do not wait until it is ready."
)
@remote_api
def start(  # noqa: PLR0917 - click
    client: Client,
    model: str,
    preset: str,
    difficulty: str | None,
    idle: int | None,
    life: int | None,
    wait_s: int | None,
    labels: tuple[str, ...],
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Start a session of PRESET of MODEL, and print its id when its model is loaded.

    Why it is not ready yet is written to the standard error.
    """
    body = {
        "model_id": model,
        "task_preset": preset,
        "task_difficulty": difficulty,
        "idle_timeout_seconds": idle,
        "max_lifetime_seconds": life,
        "wait_seconds": wait_s,
        "metadata": _labels(labels),
    }
    made = client.json("POST", "/api/sessions", json=body)
    if not no_wait:
        made = _ready(client, made)
    if as_json:
        print_json(made)
    else:
        click.echo(made["session_id"])
    if made["status"] == OVER:
        sys.exit(1)


@session.command()
@click.argument("where", metavar="SESSION")
@click.argument("job_input", metavar="INPUT", required=False)
@click.option("-p", "--prompt", help='A text; the same as the INPUT {"prompt": "<text>"}.')
@click.option("-d", "--difficulty", help="With MODEL/PRESET: the pool of devices.")
@click.option(
    "--timeout",
    "timeout_s",
    type=int,
    metavar="SECONDS",
    help="How long it may run; by default the preset's time-out.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the text and output only.")
@click.option("-v", "--verbose", is_flag=True, help="Also log lines of the level debug.")
@remote_api
def send(  # noqa: PLR0917 - click
    client: Client,
    where: str,
    job_input: str | None,
    prompt: str | None,
    difficulty: str | None,
    timeout_s: int | None,
    *,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run a task in a session, and print its text while it is made. Ctrl-C cancels the task.

    SESSION is a session's id, or MODEL/PRESET: an idle session of that preset, otherwise a new one. INPUT is JSON,
    @file, or - for stdin. All other events are written to the standard error; with --json each event is a line.

    \b
      ownpod session send abcdefghij0123 '{"prompt": "a cat"}'
      ownpod session send llama-7b/inference --prompt "a cat"
    """  # noqa: D301 - click's mark for lines that it must not wrap
    if (job_input is None) == (prompt is None):
        raise click.UsageError("give INPUT or --prompt; see ownpod session send --help")
    body = {
        "task_type": "session",
        **_target(client, where, difficulty),
        "metadata": {"prompt": prompt} if job_input is None else read_input(job_input),
        "timeout_seconds": timeout_s,
    }
    headers = {"Prefer": "respond-async", "Idempotency-Key": str(uuid.uuid4())}
    task = client.json("POST", "/api/tasks/submit", json=body, headers=headers)
    printed = _Printed(quiet=quiet, verbose=verbose, as_json=as_json)
    try:
        for found in follow(client, task["task_id"]):
            printed.show(found)
    except KeyboardInterrupt:
        client.json("POST", f"/api/tasks/{task['task_id']}/cancel")
        click.echo(f"\ncancelled: task {task['task_id']}", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(0 if printed.status == "completed" else 1)


@session.command(name="list")
@click.option(
    "-a", "--all", "ended", is_flag=True, help="Also those of the last 10 minutes that ended."
)
@click.option("-m", "--model", help="Only sessions of this model.")
@remote_api
def list_sessions(client: Client, model: str | None, *, ended: bool, as_json: bool) -> None:
    """List the sessions that the key may see.

    QUEUE: tasks that run + tasks that wait / tasks that may wait. DONE: tasks that have ended. IDLE ENDS: when the session ends if
    it gets no task. ENDS: when its lifetime ends. Times are UTC.
    """
    query = {"all": str(ended).lower()} | ({} if model is None else {"model_id": model})
    found = client.json("GET", "/api/sessions", params=query)
    if as_json:
        print_json(found)
        return
    if not found["sessions"]:
        click.echo("no sessions")
        return
    tables.show(COLUMNS, map(_cells, found["sessions"]))


@session.command()
@click.argument("session_ids", metavar="SESSION...", nargs=-1, required=True)
@click.option("--drain", is_flag=True, help="Let the running task end first.")
@remote_api
def kill(client: Client, session_ids: tuple[str, ...], *, drain: bool, as_json: bool) -> None:
    """End sessions, with the tasks that they run. Their devices are free when their workers have ended."""
    failed = False
    for session_id in session_ids:
        path = f"/api/sessions/{session_id}?drain={str(drain).lower()}"
        try:
            done = client.json("DELETE", path)
        except ApiError as error:
            # The others are ended nevertheless.
            click.echo(f"{session_id}: {error}", err=True)
            failed = True
            continue
        if as_json:
            print_json(done)
        else:
            click.echo(f"{session_id}: {done['message']}")
    if failed:
        sys.exit(1)


class _Printed:
    """Prints a task's events: its text to the standard output, and all else to the standard error."""

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._as_json = as_json
        self._has_text = False
        self._line_open = False
        self.status = ""
        """How the task has ended; "": it has not."""

    def show(self, found: TaskEvent) -> None:
        """Prints an event."""
        data = found.data
        if found.event == FINISH:
            self.status = str(data.get("status"))
        if self._as_json:
            print_json({"id": found.id, "event": found.event, "data": data})
        elif found.event == "text_delta":
            self._text(str(data.get("delta", "")))
        elif found.event == "text":
            # A task that streams has printed it already.
            if not self._has_text:
                self._text(str(data.get("content", "")))
        elif found.event in {"output", "output_delta"}:
            self._output(found.event, data)
        else:
            if data.get("status") == "restarted":
                self._has_text = False
            if data.get("level") != "debug" or self._verbose:
                self._note(in_words(found))
            if found.event == FINISH:
                self._end_line()

    def _text(self, text: str) -> None:
        # As sent: it may be a part of a line.
        click.echo(text, nl=False)
        if text:
            self._has_text, self._line_open = True, not text.endswith("\n")

    def _output(self, event: str, data: dict[str, Any]) -> None:
        self._end_line()
        if event == "output_delta" or not self._has_text:
            click.echo(json.dumps(data.get("output", data)))
        self._has_text = True

    def _note(self, text: str) -> None:
        if sys.stdout.isatty():
            # A note must not continue a line of text on the screen. In a file it would cut the text into lines.
            self._end_line()
        failed = self.status not in {"", "completed"}
        if text and (failed or not self._quiet):
            click.echo(click.style(text, dim=not failed), err=True)

    def _end_line(self) -> None:
        if self._line_open:
            click.echo()
            self._line_open = False


def in_words(found: TaskEvent) -> str:
    """An event as one line for people, without characters that control a terminal."""
    data = found.data
    words = [str(data.get("status", ""))]
    if found.event == "logs":
        words = [str(data.get("level", "info")), str(data.get("log", ""))]
    elif found.event == FINISH:
        words = [f"{data.get('status')} after {data.get('execution_ms', 0) / 1000:.2f} s"]
    elif found.event == "connection":
        if data.get("position"):
            words.append(f"position {data['position']}")
        if data.get("gpu_name"):
            words.append(f"on {data['gpu_name']} of {data.get('host')}")
        words.append(str(data.get("reason") or data.get("message") or ""))
    else:
        if isinstance(progress := data.get("progress"), dict) and progress.get("total"):
            words.append(f"{100 * progress.get('done', 0) // progress['total']} %")
        elif progress:
            words.append(json.dumps(progress))
        if data.get("load_seconds") is not None:
            words.append(f"loaded in {data['load_seconds']} s")
        words.append(str(data.get("message", "")))
    if data.get("error"):
        words.append(str(data["error"]))
    return tables.one_line(f"{found.event}: {' '.join(filter(None, words))}")


def _ready(client: Client, made: dict[str, Any]) -> dict[str, Any]:
    """Waits until a session is ready or has ended; writes what it waits for."""
    shown = ""
    while made["status"] == "initializing":
        text = f"{made['phase']}: {made['message']}" if made["message"] else made["phase"]
        if text != shown:
            click.echo(click.style(tables.one_line(text), dim=True), err=True)
            shown = text
        time.sleep(CHECK_S)
        made = client.json("GET", f"/api/sessions/{made['session_id']}")
    if made["status"] == OVER:
        click.echo(tables.one_line(f"{made['reason']}: {made['message']}"), err=True)
    elif made["load_seconds"] is not None:
        note = f"ready: its model was loaded in {made['load_seconds']:.1f} s"
        click.echo(click.style(note, dim=True), err=True)
    return made


def _target(client: Client, where: str, difficulty: str | None) -> dict[str, Any]:
    """What the body of a submission has about the session. ``where``: a session's id, or a model and a preset."""
    model, slash, preset = where.rpartition("/")
    if slash:
        return {
            "session_id": None,
            "model_id": model,
            "task_preset": preset,
            "task_difficulty": difficulty,
        }
    found = client.json("GET", f"/api/sessions/{where}")
    return {
        "session_id": where,
        "model_id": found["model_id"],
        "task_preset": found["task_preset"],
        "task_difficulty": found["task_difficulty"],
    }


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--label must be NAME=VALUE, not {text!r}")
        labels[name] = value
    return labels


def _cells(found: dict[str, Any]) -> tuple[object, ...]:
    gpu = found["gpu"] or {}
    running = 1 if found["current_task_id"] else 0
    return (
        *(found["session_id"], found["model_id"], found["task_preset"], found["status"]),
        *(
            gpu.get("host"),
            gpu.get("name"),
            f"{running}+{found['queue_size']}/{found['queue_max']}",
        ),
        *(found["tasks_done"], _clock(found["idle_expires_at"]), _clock(found["expires_at"])),
        " ".join(filter(None, [found["reason"], tables.one_line(found["message"] or "")])),
    )


def _clock(iso: str | None) -> str:
    return "" if iso is None else iso[11:19] + "Z"
