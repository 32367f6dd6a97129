"""``ownpod logs`` and ``ownpod workers show``: the output of the workers that OwnPod starts, and how they ended."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click
import redis

from ownpod import settings
from ownpod.errors import BadRequest, OutputNotFound
from ownpod.rules.managed import LOG_LINES, WORKER_ID, ManagedWorker, Phase
from ownpod.rules.managed_reports import described_line, report
from ownpod.rules.output import is_of_job
from ownpod.store.client import connect
from ownpod.store.listing import Listing
from ownpod.store.managed import Managed
from ownpod.store.outputs import MOST_LINES, KeptLine, Outputs
from ownpod.tools import tables
from ownpod.tools.remote import print_json

TIMES = (
    *(("created", "created_ms"), ("placed", "placed_ms"), ("started", "started_ms")),
    *(("ready", "ready_ms"), ("stopped", "stopped_ms")),
)

Filter = Callable[[KeptLine], bool]


@contextmanager
def _opened() -> Iterator[redis.Redis]:
    """The Redis that the settings name. Raises: ConfigurationError."""
    with connect(settings.current().broker_url(), client_name="ownpod-cli") as client:
        yield client


@click.command()
@click.argument("worker_id", required=False)
@click.option("-f", "--follow", is_flag=True, help="Print further lines until the worker ends.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1, MOST_LINES),
    default=MOST_LINES,
    help="Number of last lines; by default all that are kept.",
)
@click.option("--job", "job_id", help="Only the lines of this job.")
@click.option("-t", "--times", is_flag=True, help="Print when each line was kept.")
@click.option("--json", "as_json", is_flag=True, help="Print each line as JSON, for programs.")
def logs(
    worker_id: str | None,
    job_id: str | None,
    lines: int,
    *,
    follow: bool,
    times: bool,
    as_json: bool,
) -> None:
    """Print the output of a worker that OwnPod starts, or of a job.

    The last 1000 lines, or 256 KB, of a worker are kept, until 7 days after its end. The command uses
    the Redis of this host's settings.

    \b
      ownpod logs abcdefghij0123 -f
      ownpod logs --job 5f3e2a1c-...
    """  # noqa: D301 - click's mark for lines that it must not wrap
    if worker_id is None and job_id is None:
        raise BadRequest("give a worker's id, or --job and a job's id")

    def wanted(line: KeptLine) -> bool:
        return job_id is None or is_of_job(line.run, job_id)

    def shown(found: Iterable[KeptLine]) -> None:
        for line in found:
            if as_json:
                print_json(described_line(line))
            else:
                click.echo(f"{tables.clock(line.at_ms)} {line.text}" if times else line.text)

    with _opened() as client:
        if worker_id is None:
            ids = [i for i in Listing(client).workers(job_id or "") if WORKER_ID.fullmatch(i)]
            if not ids:
                raise BadRequest(f"job {job_id!r} has run on no worker that OwnPod starts")
        else:
            ids = [_known(Managed(client), worker_id).id]
        outputs = Outputs(client)
        kept = [outputs.last(found) for found in ids]
        shown([line for found in kept for line in found if wanted(line)][-lines:])
        if follow:
            after = kept[-1][-1].id if kept[-1] else "0"
            for found in _further(Managed(client), outputs, ids[-1], after):
                shown(filter(wanted, found))


def _further(
    managed: Managed, outputs: Outputs, worker_id: str, after: str
) -> Iterator[list[KeptLine]]:
    """Lines after a line, until the worker has ended."""
    while True:
        # Before the lines, because the last ones are kept before its end is recorded.
        worker = managed.get(worker_id)
        found = outputs.wait(worker_id, after)
        yield found
        if found:
            after = found[-1].id
        elif worker is None or worker.phase is Phase.STOPPED:
            return


def show(worker_id: str, *, as_json: bool) -> None:
    """Prints a worker, with its last lines. Raises: OutputNotFound."""
    with _opened() as client:
        worker = _known(Managed(client), worker_id)
        texts = [line.text for line in Outputs(client).last(worker.id, LOG_LINES)]
    texts = texts or worker.log.splitlines()[-LOG_LINES:]
    if as_json:
        print_json(report(worker) | {"log": texts})
        return
    for name, value in _rows(worker):
        if value not in (None, ""):
            click.echo(f"{name:<12}{value}")
    for text in texts:
        click.echo(f"  {text}")


def _rows(worker: ManagedWorker) -> Iterator[tuple[str, object]]:
    yield from (("worker", worker.id), ("endpoint", worker.endpoint), ("phase", worker.phase))
    yield from (("reason", worker.reason), ("ended in", worker.ended_in))
    yield from (("exit code", worker.exit_code), ("memory", "out of memory" * worker.out_of_memory))
    yield from (("host", worker.host), ("devices", ", ".join(worker.devices)))
    yield "release", worker.release
    before_ms = None
    for name, field in TIMES:
        at_ms = getattr(worker, field)
        if at_ms is not None:
            after = f"  after {(at_ms - before_ms) / 1000:.1f} s" if before_ms is not None else ""
            yield name, f"{tables.clock(at_ms)}{after}"
            before_ms = at_ms


def _known(managed: Managed, worker_id: str) -> ManagedWorker:
    worker = managed.get(worker_id)
    if worker is None:
        raise OutputNotFound(worker_id)
    return worker
