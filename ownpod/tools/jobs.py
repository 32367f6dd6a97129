"""``ownpod status`` and ``ownpod history``: one job, read through the API."""

import json
import time

import click

from ownpod.tools import tables
from ownpod.tools.client import Client
from ownpod.tools.remote import print_json, remote


@click.command()
@click.argument("job_id")
@remote
def status(client: Client, job_id: str, *, as_json: bool) -> None:
    """Show a job's status and output."""
    record = client.call("GET", f"/status/{job_id}")
    if as_json:
        print_json(record)
        return
    for name, value in record.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{name:<15}{text}")


@click.command()
@click.argument("job_id")
@remote
def history(client: Client, job_id: str, *, as_json: bool) -> None:
    """Show a job's attempts.

    For each attempt: its worker, its times and its end.
    """
    record = client.call("GET", f"/requests/{job_id}")
    if as_json:
        print_json(record)
        return
    created_ms = record["created_ms"]
    rows: list[tuple[object, ...]] = [
        (
            attempt["attempt"],
            attempt["workerId"],
            tables.seconds(attempt["startedMs"] - created_ms),
            tables.seconds(attempt["endedMs"] - attempt["startedMs"]),
            f"{'lost' if attempt['lost'] else 'requeued'}: {attempt['reason']}",
        )
        for attempt in record.get("attempts", [])
    ]
    if "started_ms" in record:
        # The log has the attempts that were requeued. The last attempt is in the record itself.
        ran_ms = record.get("finished_ms", time.time() * 1000) - record["started_ms"]
        end = ": ".join(filter(None, [record["status"], record.get("error")]))
        after = tables.seconds(record["started_ms"] - created_ms)
        rows.append((record["attempt"], record["worker_id"], after, tables.seconds(ran_ms), end))
    click.echo(f"{job_id}  {record['status']}  submitted {tables.ago(created_ms)} ago")
    tables.show(("ATTEMPT", "WORKER", "AFTER", "RAN", "END"), rows)
