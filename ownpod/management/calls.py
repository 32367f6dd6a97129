"""What all managing calls share: the caller, the answer, and the one transaction that writes a change."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ownpod.errors import CatalogNotFound
from ownpod.rules.catalog import Difference, Door, EndpointRow, Kind, Row
from ownpod.rules.catalog_changes import IN_PLACE, differences
from ownpod.store.catalog import Audit, Beside, Catalog, Change, Snapshot

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Caller:
    """The caller of a managing call.

    Attributes:
        by: the digest of the caller's key, or the name of the command; for the audit log.
        door: the API.
        dry_run: the call only answers what it would do.
    """

    by: str
    door: Door
    dry_run: bool = False


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What a call has done, or would do.

    Attributes:
        row: the object as it is afterwards; of a deletion, as it was.
        differences: what has changed.
        restarts: whether its workers are replaced or stopped.
    """

    row: R
    differences: tuple[Difference, ...] = ()
    restarts: bool = False


class _DryRun(Exception):
    """Ends the computation of a change that is not to be written."""


def write(
    catalog: Catalog,
    action: str,
    kind: Kind,
    caller: Caller,
    compute: Callable[[Snapshot], tuple[Change, R]],
    *,
    beside: Beside | None = None,
) -> Outcome[R]:
    """Computes a change and writes it with its entry in the audit log, in one step.

    Args:
        catalog: the rows in Redis.
        action: ``create``, ``update`` or ``delete``.
        kind: of the changed row.
        caller: for the audit log, and whether it is a dry run.
        compute: the change, and the row that it is about. May be called again, and raises for what is not allowed.
        beside: what else is written in this step; None for a dry run.
    """
    made: list[Outcome[R]] = []

    def with_audit(snapshot: Snapshot) -> Change:
        change, row = compute(snapshot)
        outcome = _outcome(action, snapshot, change, row)
        made[:] = [outcome]
        if caller.dry_run:
            raise _DryRun
        told = json.dumps({d.field: [d.old, d.new] for d in outcome.differences})
        audit = Audit(caller.by, caller.door, f"{action} {kind}", row.id, told)
        return replace(change, audit=audit)

    with contextlib.suppress(_DryRun):
        catalog.change(with_audit, beside)
    return made[0]


def _outcome(action: str, snapshot: Snapshot, change: Change, row: R) -> Outcome[R]:
    if action == "delete":
        return Outcome(row, restarts=isinstance(row, EndpointRow))
    # An edit of a template changes the endpoints that are bound to it.
    endpoints = [new for new in change.put if isinstance(new, EndpointRow)]
    pairs = [(snapshot.endpoints[n.id], n) for n in endpoints if n.id in snapshot.endpoints]
    structural = [d for old, new in pairs for d in differences(old, new)]
    in_place = [d for old, new in pairs for d in differences(old, new, IN_PLACE)]
    found = tuple(dict.fromkeys((*structural, *in_place)))
    return Outcome(row, found, restarts=bool(structural))


def found(rows: Mapping[str, R], kind: Kind, row_id: str) -> R:
    """The row with this id. Raises: CatalogNotFound."""
    row = rows.get(row_id)
    if row is None:
        raise CatalogNotFound(kind, row_id)
    return row


def newest_first(rows: Mapping[str, R]) -> list[R]:
    """Rows in the order in which RunPod's REST v2 lists them."""
    return sorted(rows.values(), key=lambda row: (-row.created_ms, row.id))


def listed(names: Sequence[str]) -> str:
    """Names in a message, five at most."""
    return ", ".join(repr(name) for name in sorted(names)[:5])
