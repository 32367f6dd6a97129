"""``ownpod submit``, ``status``, ``history``, ``health`` and ``top``: an OwnPod from the terminal."""

import functools
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ownpod.settings import DEFAULT_ENDPOINT
from ownpod.tools import tables
from ownpod.tools.client import TERMINAL, Client

LOOK_S = 0.5

Command = Callable[..., Any]


def remote(command: Command) -> Command:
    """Options of every command that talks to an OwnPod, and the client that they make."""

    @click.option(
        "--url",
        envvar="OWNPOD_URL",
        default="http://127.0.0.1:8000",
        show_default=True,
        help="The API's base URL; also OWNPOD_URL.",
    )
    @click.option("--key", envvar="OWNPOD_API_KEY", help="An API key; also OWNPOD_API_KEY.")
    @click.option("-e", "--endpoint", default=DEFAULT_ENDPOINT, show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="Answer as JSON, for programs.")
    @functools.wraps(command)
    def wrapped(url: str, key: str | None, endpoint: str, **options: Any) -> Any:
        patient = options.get("jsonl") is not None
        return command(Client(url, key, endpoint, patient=patient), **options)

    return wrapped


def say_json(value: Any) -> None:
    """One line of JSON."""
    click.echo(json.dumps(value))


def read_input(text: str) -> Any:
    """A job's input: JSON, ``@file`` or ``-`` for stdin. Raises: click.UsageError."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except OSError as error:
            raise click.UsageError(f"{text[1:]}: {error.strerror}") from None
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(
            f'the input must be JSON like \'{{"prompt": "a cat"}}\', @file or -: {error}'
        ) from None


@click.command()
@click.argument("job_input", metavar="INPUT", required=False)
@click.option("--wait", "waits", is_flag=True, help="Wait for the end, and print the output.")
@click.option("--stream", "streams", is_flag=True, help="Print chunks as they come.")
@click.option("--jsonl", type=click.File(), help="Many inputs, one a line, instead of INPUT.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where --jsonl writes results as they come; lines that are there already are not run again.",
)
@click.option("--at-a-time", type=click.IntRange(1, 1000), default=32, show_default=True)
@click.option("--timeout", "timeout_ms", type=int, help="executionTimeout in ms.")
@click.option("--low-priority", is_flag=True)
@remote
def submit(
    client: Client,
    job_input: str | None,
    jsonl: IO[str] | None,
    results: Path | None,
    *,
    waits: bool,
    streams: bool,
    at_a_time: int,
    timeout_ms: int | None,
    low_priority: bool,
    as_json: bool,
) -> None:
    """Submit a job, or many.

    INPUT is JSON, @file, or - for stdin.

    \b
      ownpod submit '{"prompt": "a cat"}' --wait
      ownpod submit @input.json --stream
      ownpod submit --jsonl inputs.jsonl --results results.jsonl
    """  # noqa: D301 - click's mark for lines to be left alone
    policy: dict[str, Any] = {"lowPriority": True} if low_priority else {}
    if timeout_ms is not None:
        policy["executionTimeout"] = timeout_ms
    if jsonl is not None:
        if results is None or job_input is not None:
            raise click.UsageError("--jsonl takes the place of INPUT, and wants --results FILE")
        sys.exit(_submit_many(client, jsonl, results, at_a_time, policy))
    if job_input is None:
        raise click.UsageError("there is no INPUT; see ownpod submit --help")
    job_id = client.submit(read_input(job_input), key=str(uuid.uuid4()), policy=policy)
    if streams:
        for chunk in client.chunks(job_id):
            click.echo(chunk if isinstance(chunk, str) and not as_json else json.dumps(chunk))
        sys.exit(_end(client.wait(job_id), as_json=as_json, output=False))
    if not waits:
        click.echo(json.dumps({"id": job_id, "status": "IN_QUEUE"}) if as_json else job_id)
        return
    sys.exit(_end(_watch(client, job_id), as_json=as_json, output=True))


def _watch(client: Client, job_id: str) -> dict[str, Any]:
    """The job's last status; meanwhile a line that lives, on a terminal."""
    console, began = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        return client.wait(job_id)
    with console.status(job_id) as line:
        while True:
            status = client.call("GET", f"/status/{job_id}")
            if status["status"] in TERMINAL:
                return dict(status)
            words = [job_id, status["status"], f"{time.monotonic() - began:.0f} s"]
            if "queuePosition" in status:
                words += [f"position {status['queuePosition']}", status["waitingReason"]]
            elif status.get("workerId"):
                words.append(f"on {status['workerId']}")
            line.update("  ".join(words))
            time.sleep(LOOK_S)


def _end(status: dict[str, Any], *, as_json: bool, output: bool) -> int:
    """Prints how a job ended; the exit code."""
    done = status["status"] == "COMPLETED"
    if as_json:
        say_json(status)
    elif not done:
        click.echo(f"{status['id']} {status['status']}: {status.get('error', '')}", err=True)
    elif output:
        found = status.get("output")
        click.echo(found if isinstance(found, str) else json.dumps(found, indent=2))
    return 0 if done else 1


def _lines(jsonl: IO[str]) -> Iterator[tuple[str, Any]]:
    """Each input with a key: the same line of the same file has the same one."""
    for number, line in enumerate(jsonl):
        if line.strip():
            try:
                job_input = json.loads(line)
            except ValueError as error:
                raise click.UsageError(f"line {number + 1} is no JSON: {error}") from None
            yield hashlib.sha256(f"{number} {line}".encode()).hexdigest()[:40], job_input


def _done(results: Path) -> set[str]:
    """Keys of the results that are there. A line that a kill cut short is taken away."""
    found: dict[str, str] = {}
    if not results.exists():
        return set()
    text = results.read_text()
    for line in text.splitlines(keepends=True):
        try:
            found[str(json.loads(line)["key"])] = line
        except (ValueError, KeyError, TypeError):
            continue
    if "".join(found.values()) != text:
        results.write_text("".join(found.values()))
    return set(found)


def _submit_many(
    client: Client, jsonl: IO[str], results: Path, at_a_time: int, policy: dict[str, Any]
) -> int:
    """Runs each input once, writing each result as it comes. The exit code: 1 if any did not complete."""
    lines, done, failed = list(_lines(jsonl)), _done(results), 0
    todo = iter([(key, job_input) for key, job_input in lines if key not in done])

    def run(key: str, job_input: Any) -> dict[str, Any]:
        # After an interruption the same key finds the job that is under way.
        job = client.submit(job_input, key=f"{results.name[:80]}-{key}", policy=policy)
        return {"key": key, "input": job_input, **client.wait(job)}

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(at_a_time) as pool,
        results.open("a") as file,
    ):
        task = bar.add_task(
            results.name, total=len(lines), completed=len(lines) - _left(lines, done)
        )
        running: set[Future[dict[str, Any]]] = set()
        while True:
            while len(running) < at_a_time and (following := next(todo, None)) is not None:
                running.add(pool.submit(run, *following))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                result = future.result()
                failed += result["status"] != "COMPLETED"
                file.write(f"{json.dumps(result)}\n")
                file.flush()
                bar.update(task, advance=1)
    click.echo(f"{len(lines)} inputs, {failed} not completed; results in {results}", err=True)
    return 1 if failed else 0


def _left(lines: list[tuple[str, Any]], done: set[str]) -> int:
    return sum(key not in done for key, _ in lines)


@click.command()
@click.argument("job_id")
@remote
def status(client: Client, job_id: str, *, as_json: bool) -> None:
    """How a job is."""
    found = client.call("GET", f"/status/{job_id}")
    if as_json:
        say_json(found)
        return
    for name, value in found.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{name:<15}{text}")


@click.command()
@click.argument("job_id")
@remote
def history(client: Client, job_id: str, *, as_json: bool) -> None:
    """A job's attempts: on which worker, when, and how each ended."""
    found = client.call("GET", f"/requests/{job_id}")
    if as_json:
        say_json(found)
        return
    began = found["created_ms"]
    rows: list[tuple[object, ...]] = [
        (
            a["attempt"],
            a["workerId"],
            tables.seconds(a["startedMs"] - began),
            tables.seconds(a["endedMs"] - a["startedMs"]),
            f"{'lost' if a['lost'] else 'given back'}: {a['reason']}",
        )
        for a in found.get("attempts", [])
    ]
    if "started_ms" in found:
        ran_ms = found.get("finished_ms", time.time() * 1000) - found["started_ms"]
        end = ": ".join(filter(None, [found["status"], found.get("error")]))
        after = tables.seconds(found["started_ms"] - began)
        rows.append((found["attempt"], found["worker_id"], after, tables.seconds(ran_ms), end))
    click.echo(f"{job_id}  {found['status']}  submitted {tables.ago(began)} ago")
    tables.show(("ATTEMPT", "WORKER", "AFTER", "RAN", "END"), rows)


@click.command()
@remote
def health(client: Client, *, as_json: bool) -> None:
    """An endpoint's jobs and workers. Exit code 1 if no worker is well."""
    found = client.call("GET", "/health")
    if as_json:
        say_json(found)
    else:
        jobs = ", ".join(f"{name} {count}" for name, count in found["jobs"].items())
        click.echo(f"{client.endpoint}: {jobs}")
        tables.show(WORKER_COLUMNS, _worker_rows(found))
    if not found["workers"]["ready"] + found["workers"]["running"]:
        sys.exit(1)


WORKER_COLUMNS = ("WORKER", "STATE", "BUSY", "JOB", "REASON")


def _worker_rows(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    for worker in found["ownpod"]["workers"]:
        busy = f"{worker['running'] + worker['held']}/{worker['capacity']}"
        jobs = ", ".join(worker["jobs"])
        yield worker["id"], worker["state"], busy, jobs, worker["reason"]


@click.command()
@click.option("--every", "every_s", type=click.FloatRange(0.2), default=1.0, show_default=True)
@click.option("--count", type=click.IntRange(1), help="Look so often, then end.")
@remote
def top(client: Client, *, every_s: float, count: int | None, as_json: bool) -> None:
    """All endpoints and workers, live: what runs, what waits, how fast."""
    before: dict[str, tuple[float, int]] = {}

    def look() -> dict[str, Any]:
        found = {}
        for name in client.endpoints():
            client.endpoint = name
            found[name] = client.call("GET", "/health")
            now, ended = (
                time.monotonic(),
                sum(found[name]["jobs"][k] for k in ("completed", "failed")),
            )
            then, earlier = before.get(name, (now, ended))
            before[name] = now, ended
            found[name]["perSecond"] = (ended - earlier) / (now - then) if now > then else 0.0
        return found

    looks = 0
    console = Console()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            found = look()
            looks += 1
            if as_json:
                say_json(found)
            else:
                live.update(_screen(found), refresh=console.is_terminal)
            if count is not None and looks >= count:
                break
            time.sleep(every_s)


def _screen(found: dict[str, Any]) -> RenderableType:
    rows = [
        (
            name,
            f["jobs"]["inQueue"],
            f["jobs"]["inProgress"],
            f"{f['perSecond']:.1f}",
            f["jobs"]["completed"],
            f["jobs"]["failed"],
            f"{f['workers']['ready'] + f['workers']['running']}/{len(f['ownpod']['workers'])}",
        )
        for name, f in found.items()
    ]
    columns = ("ENDPOINT", "WAITING", "RUNNING", "PER S", "COMPLETED", "FAILED", "WORKERS")
    workers = [(name, *row) for name, f in found.items() for row in _worker_rows(f)]
    return Group(
        tables.make(columns, rows),
        Text(),
        tables.make(("ENDPOINT", *WORKER_COLUMNS), workers),
    )
