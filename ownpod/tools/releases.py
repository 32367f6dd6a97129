"""``ownpod releases`` and ``ownpod rollback``: what an endpoint's workers were started from, and the way back."""

import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import click

from ownpod.errors import BadRequest
from ownpod.management.rollbacks import roll_back
from ownpod.rules.releases import Release, Rollout, changed, state
from ownpod.store.managed import Managed
from ownpod.store.releases import Releases
from ownpod.tools import hosts, tables
from ownpod.tools.catalog import caller
from ownpod.tools.remote import print_json

COLUMNS = ("NUMBER", "RELEASE", "MADE", "IMAGE", "DIGEST", "WORKERS", "STATE", "CHANGED")

LOOK_S = 60.0
"""Seconds for which ``--again`` waits for a host, because a registry may be slow."""

OTHERS_S = 10.0
"""Seconds for which it waits for another host, after one could not find out."""

LOOK_CHECK_S = 0.1

SHORT_DIGEST = len("sha256:") + 12


@click.command()
@click.argument("endpoint")
@click.option(
    "--again", is_flag=True, help="Check what the tag of the image means now; another one is new."
)
@hosts.json_option
def releases(endpoint: str, *, again: bool, as_json: bool) -> None:
    """List the releases of an endpoint, the newest first. CHANGED names fields, never their values.

    A changed image, command, environment, limit, device or volume makes a release when the configuration is read.
    """
    with hosts.opened() as (_, managed):
        if again:
            click.echo(_look(managed.releases, endpoint), err=as_json)
        rows = _rows(managed, endpoint)
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo(f"endpoint {endpoint!r} has no releases: OwnPod has started none of its workers")
        return
    tables.show(COLUMNS, map(_cells, rows))


@click.command()
@click.argument("endpoint")
@click.argument("number", type=click.IntRange(1), required=False)
def rollback(endpoint: str, number: int | None) -> None:
    """Make a release of an earlier one: of NUMBER, otherwise of the last one before whose workers were ready.

    It is valid until the configuration of the endpoint changes.
    """
    with hosts.connected() as client:
        done = roll_back(Releases(client), endpoint, number, caller())
    click.echo(f"release {done.made} is release {done.of} again, instead of {done.instead_of}")


def _look(stored: Releases, endpoint: str) -> str:
    """Asks the hosts what the tag means now, and waits. Raises: BadRequest."""
    latest = stored.rollout(endpoint).latest
    if latest is None:
        raise BadRequest(f"endpoint {endpoint!r} has no releases")
    if latest.spec.template.image is None:
        raise BadRequest(f"the template of endpoint {endpoint!r} has no image")
    asked, until = stored.look(endpoint), time.monotonic() + LOOK_S
    while True:
        found, pending = stored.look_result(endpoint, asked)
        if found and not pending:
            return f"its tag means {found}"
        if found:
            until = min(until, time.monotonic() + OTHERS_S)
        if time.monotonic() > until:
            why = found or "no host with the engine docker has answered"
            raise BadRequest(f"what the tag of the image means is not known: {why}")
        time.sleep(LOOK_CHECK_S)


def _rows(managed: Managed, endpoint: str) -> list[dict[str, Any]]:
    stored = managed.releases
    found, rollout = stored.releases(endpoint), stored.rollout(endpoint)
    live = Counter(worker.release for worker in managed.list(endpoint))
    coming = rollout.next
    waits = stored.waits_for(endpoint, coming) if coming else ""
    failures = managed.failures(endpoint)
    current = rollout.current
    fails = current is not None and failures.count and failures.release == current.id
    before = {new.number: old for new, old in pairwise(found)}
    newest: dict[str, int] = {}
    for release in found:
        # Releases with the same workers: these are listed with the newest.
        newest.setdefault(release.id, release.number)
    return [
        _row(
            release,
            before.get(release.number),
            rollout,
            live,
            counted=newest[release.id] == release.number,
            waits=waits,
            failing=failures.reason if fails else "",
        )
        for release in found
    ]


def _row(
    release: Release,
    before: Release | None,
    rollout: Rollout,
    live: Mapping[str, int],
    *,
    counted: bool,
    waits: str,
    failing: str,
) -> dict[str, Any]:
    names = changed(before, release) if before is not None else ()
    return {
        "number": release.number,
        "release": release.id,
        "madeAt": release.made_ms,
        "why": release.why,
        "image": release.spec.template.image,
        "digest": release.digest,
        "workers": live.get(release.id, 0) if counted else 0,
        "state": state(release, rollout, live, waits_for=waits, failing=failing),
        "changed": list(names),
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    names = ", ".join(row["changed"])
    if row["why"].startswith("rollback"):
        names = f"{row['why']}: {names}"
    return (
        *(row["number"], row["release"], tables.ago(row["madeAt"]), row["image"]),
        *(row["digest"][:SHORT_DIGEST], row["workers"], row["state"], names),
    )
