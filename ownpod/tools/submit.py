"""``ownpod submit``: one job, or a file of inputs as one job each, submitted through the API."""

import hashlib
import json
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ownpod.rules.jobs import JobStatus
from ownpod.tools.client import ENDED, Client
from ownpod.tools.remote import print_json, remote

CHECK_INTERVAL_S = 0.5
"""Seconds between two polls of a job whose status is shown on a terminal."""


def read_input(text: str) -> Any:
    """Parses a job's input: JSON, ``@file`` or ``-`` for stdin. Raises: click.UsageError."""
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
@click.option("--wait", "waits", is_flag=True, help="Wait until the job ends; print its output.")
@click.option("--stream", "streams", is_flag=True, help="Print each chunk as soon as it arrives.")
@click.option("--jsonl", type=click.File(), help="A file with one input a line, instead of INPUT.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to which --jsonl appends results. Inputs with a result there are not run again.",
)
@click.option(
    "--at-a-time",
    type=click.IntRange(1, 1000),
    default=32,
    show_default=True,
    help="With --jsonl: jobs submitted at the same time.",
)
@click.option("--timeout", "timeout_ms", type=int, help="executionTimeout in ms.")
@click.option("--low-priority", is_flag=True, help="Let jobs of normal priority run first.")
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
    """  # noqa: D301 - click's mark for lines that it must not wrap
    policy: dict[str, Any] = {"lowPriority": True} if low_priority else {}
    if timeout_ms is not None:
        policy["executionTimeout"] = timeout_ms
    if jsonl is not None:
        if results is None or job_input is not None:
            raise click.UsageError("--jsonl replaces INPUT, and needs --results FILE")
        sys.exit(_submit_batch(client, jsonl, results, at_a_time, policy))
    if job_input is None:
        raise click.UsageError("there is no INPUT; see ownpod submit --help")
    job_id = client.submit(read_input(job_input), key=str(uuid.uuid4()), policy=policy)
    if streams:
        for chunk in client.chunks(job_id):
            click.echo(chunk if isinstance(chunk, str) and not as_json else json.dumps(chunk))
        sys.exit(_print_end(client.wait(job_id), as_json=as_json, output=False))
    if not waits:
        queued = {"id": job_id, "status": JobStatus.IN_QUEUE}
        click.echo(json.dumps(queued) if as_json else job_id)
        return
    sys.exit(_print_end(_wait_visibly(client, job_id), as_json=as_json, output=True))


def _wait_visibly(client: Client, job_id: str) -> dict[str, Any]:
    """Waits until the job ends; returns its last status. On a terminal a line shows its progress."""
    console, began = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        return client.wait(job_id)
    with console.status(job_id) as line:
        while True:
            status = client.call("GET", f"/status/{job_id}")
            if status["status"] in ENDED:
                return dict(status)
            words = [job_id, status["status"], f"{time.monotonic() - began:.0f} s"]
            if "queuePosition" in status:
                words += [f"position {status['queuePosition']}", status["waitingReason"]]
            elif status.get("workerId"):
                words.append(f"on {status['workerId']}")
            line.update("  ".join(words))
            time.sleep(CHECK_INTERVAL_S)


def _print_end(status: dict[str, Any], *, as_json: bool, output: bool) -> int:
    """Prints a job's end; returns the exit code. ``output``: print the job's output, too."""
    completed = status["status"] == JobStatus.COMPLETED
    if as_json:
        print_json(status)
    elif not completed:
        click.echo(f"{status['id']} {status['status']}: {status.get('error', '')}", err=True)
    elif output:
        value = status.get("output")
        click.echo(value if isinstance(value, str) else json.dumps(value, indent=2))
    return 0 if completed else 1


def _read_inputs(jsonl: IO[str]) -> Iterator[tuple[str, Any]]:
    """Pairs of a key and an input. The key is made from the line's number and text, so that a second run
    of the same file has the same keys. Raises: click.UsageError.
    """
    for number, line in enumerate(jsonl):
        if line.strip():
            try:
                job_input = json.loads(line)
            except ValueError as error:
                raise click.UsageError(f"line {number + 1} is not JSON: {error}") from None
            yield hashlib.sha256(f"{number} {line}".encode()).hexdigest()[:40], job_input


def _keys_with_result(results: Path) -> set[str]:
    """Keys of the inputs that have a result in the file. Removes lines that are not complete, because
    the next result would be appended to such a line.
    """
    lines: dict[str, str] = {}
    if not results.exists():
        return set()
    text = results.read_text()
    for line in text.splitlines(keepends=True):
        try:
            lines[str(json.loads(line)["key"])] = line
        except (ValueError, KeyError, TypeError):
            continue
    if "".join(lines.values()) != text:
        results.write_text("".join(lines.values()))
    return set(lines)


def _submit_batch(
    client: Client, jsonl: IO[str], results: Path, at_a_time: int, policy: dict[str, Any]
) -> int:
    """Runs each input once, and writes each result as soon as the job ends.

    Returns:
        The exit code: 1 if a job that ended now is not COMPLETED.
    """
    inputs, finished, failed = list(_read_inputs(jsonl)), _keys_with_result(results), 0
    pending = [(key, job_input) for key, job_input in inputs if key not in finished]
    queue = iter(pending)

    def run(key: str, job_input: Any) -> dict[str, Any]:
        # The Idempotency-Key: after an interruption the API answers with the job of the earlier run.
        job = client.submit(job_input, key=f"{results.name[:80]}-{key}", policy=policy)
        return {"key": key, "input": job_input, **client.wait(job)}

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(at_a_time) as pool,
        results.open("a") as file,
    ):
        task = bar.add_task(results.name, total=len(inputs), completed=len(inputs) - len(pending))
        running: set[Future[dict[str, Any]]] = set()
        while True:
            # The pool's own queue has no bound: an interrupted batch would still submit all of its jobs.
            while len(running) < at_a_time and (following := next(queue, None)) is not None:
                running.add(pool.submit(run, *following))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                result = future.result()
                failed += result["status"] != JobStatus.COMPLETED
                file.write(f"{json.dumps(result)}\n")
                file.flush()
                bar.update(task, advance=1)
    click.echo(f"{len(inputs)} inputs, {failed} not completed; results in {results}", err=True)
    return 1 if failed else 0
