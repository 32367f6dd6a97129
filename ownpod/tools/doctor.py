"""``ownpod doctor [URL]``: checks this host or a worker, and explains what to change."""

import json
import threading
import time

import click

from ownpod import settings
from ownpod.configuration import parse_headers, worker_id_of
from ownpod.errors import WorkerError
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt, Outcome, RunCheck
from ownpod.tools import host_check
from ownpod.tools.findings import Finding, show
from ownpod.validation import check_http_url
from ownpod.workers import Place, Worker, driver_for


class _Listener:
    """Receives the notices of a run, as a node does."""

    def __init__(self) -> None:
        self.checks: list[RunCheck] = []
        self.yielded = 0

    def chunks(self, texts: list[str]) -> None:
        self.yielded += len(texts)

    def set_check(self, check: RunCheck) -> None:
        self.checks.append(check)

    def remote(self, place: Place) -> None:
        """Does nothing: a worker that the command tests is no cloud worker."""


@click.command()
@click.argument("url", required=False)
@click.option(
    "--input",
    "job_input",
    default="{}",
    show_default=True,
    help="The input of the job that the worker runs.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header of each request to the worker.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=60,
    show_default=True,
    help="Seconds to wait for the job.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(
    url: str | None, job_input: str, headers: tuple[str, ...], timeout_s: float, *, as_json: bool
) -> None:
    """Check this host; or the worker at URL, with one job that runs as a node would run it.

    \b
      ownpod doctor
      ownpod doctor http://localhost:18000
      ownpod doctor http://gpu-1:8000 --input '{"prompt": "a cat"}' --timeout 600
    """  # noqa: D301 - click's mark for lines that it must not wrap
    if url is None:
        show(host_check.examine(settings.current()), as_json=as_json)
    try:
        check_http_url(url)
        json.loads(job_input)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    config = settings.current()
    spec = WorkerSpec(
        id=worker_id_of(url),
        endpoint="doctor",
        url=url.rstrip("/"),
        capacity=1,
        headers={**config.worker_headers, **parse_headers(headers)},
        verify_tls=config.worker_verify_tls,
        ca_bundle=config.worker_ca_bundle,
    )
    show(examine(driver_for(spec, config), job_input, timeout_s), as_json=as_json)


def examine(worker: Worker, job_input: str, timeout_s: float) -> list[Finding]:
    """Probes a worker, and runs one job on it; ``timeout_s`` is the longest wait for the job."""
    findings: list[Finding] = []
    try:
        worker.probe()
    except WorkerError as error:
        why = (
            f"{error}. Is the container running, started with --rp_serve_api --rp_api_host 0.0.0.0, and "
            "its port reachable from here?"
        )
        return [Finding("bad", "reachable", why)]
    findings.append(Finding("ok", "reachable", "it answers"))
    attempt = Attempt("doctor", "doctor", "doctor", 1, job_input, None, 0, 0, 0)
    try:
        run_id = worker.start(attempt)
    except WorkerError as error:
        hint = (
            "its handler needs another --input" if "refused" in str(error) else "not RunPod's API?"
        )
        return [*findings, Finding("bad", "/run", f"{error} ({hint})")]
    findings.append(Finding("ok", "/run", f"it accepted a job, as {run_id}"))
    listener = _Listener()
    outcome, took_s = _wait(worker, run_id, listener, timeout_s)
    if outcome is None:
        late = f"no end within {timeout_s:g} s; see --timeout. The worker may still run it"
        return [*findings, Finding("bad", "job", late)]
    if isinstance(outcome, WorkerError):
        return [*findings, Finding("bad", "job", str(outcome))]
    kind = "ok" if outcome.status == JobStatus.COMPLETED else "note"
    reason = f": {outcome.error}" if outcome.error else ""
    findings.append(Finding(kind, "job", f"{outcome.status} after {took_s:.2f} s{reason}"[:400]))
    return [*findings, *_conclusions(worker, run_id, listener)]


def _wait(
    worker: Worker, run_id: str, listener: _Listener, timeout_s: float
) -> tuple[Outcome | WorkerError | None, float]:
    """The job's outcome and its duration in seconds. None: the job did not end within ``timeout_s``."""
    ended: list[Outcome | WorkerError] = []

    def run() -> None:
        try:
            ended.append(worker.wait(run_id, listener))
        except WorkerError as error:
            ended.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return (ended[0] if ended else None), time.monotonic() - began


def _conclusions(worker: Worker, run_id: str, listener: _Listener) -> list[Finding]:
    if listener.yielded:
        handler = (
            f"it yields ({listener.yielded} chunks): /stream returns them as the worker answers"
        )
    else:
        handler = "it yields nothing: /stream stays empty, /status returns the output"
    if RunCheck.POLL in listener.checks:
        status = (
            "polled: it answers /status while it runs a job, so a restarted node adopts its run"
        )
    else:
        status = (
            "held: it answers /status only when the job has ended, so the node polls once. A restart of OwnPod "
            "loses the result, unless OWNPOD_CALLBACK_URL is set"
        )
    cancels = worker.cancel(run_id)
    cancel = (
        "it accepts /cancel"
        if cancels
        else "it has no /cancel: a cancelled job ends at once, but its slot is occupied until the handler ends"
    )
    return [
        Finding("ok", "handler", handler),
        Finding("ok" if RunCheck.POLL in listener.checks else "note", "/status", status),
        Finding("ok" if cancels else "note", "/cancel", cancel),
    ]
