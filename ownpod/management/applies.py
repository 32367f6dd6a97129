"""The managing call that makes many endpoints as they should be, in one step."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ownpod.errors import CatalogReadOnly, CatalogRefused
from ownpod.management.calls import Caller
from ownpod.management.endpoints import Endpoints
from ownpod.registry import Registry
from ownpod.rules.applied import Action, Step, VariableUnknown, Wanted, left_over, step_of
from ownpod.rules.catalog import EndpointRow, Kind, Row
from ownpod.rules.catalog_changes import entry_of, released, type_problem
from ownpod.store.catalog import Audit, Catalog, Change, Snapshot


@dataclass(frozen=True)
class Applied:
    """What an apply has done, or would do.

    Attributes:
        steps: the changed endpoints.
        left_over: ids of endpoints that the file made and does not have any more, and that were not deleted.
    """

    steps: tuple[Step, ...] = ()
    left_over: tuple[str, ...] = ()


class Applies:
    """Makes endpoints as they should be: all of them in one transaction.

    Args:
        catalog: the rows in Redis.
        registry: the endpoints, with those of the configuration.
        endpoints: checks each endpoint.
    """

    def __init__(self, catalog: Catalog, registry: Registry, endpoints: Endpoints) -> None:
        self._catalog = catalog
        self._registry = registry
        self._endpoints = endpoints

    def apply(
        self,
        wanted: Callable[[Snapshot], Sequence[Wanted]],
        caller: Caller,
        *,
        applied: str = "",
        prune: bool = False,
    ) -> Applied:
        """Creates and changes endpoints.

        Args:
            wanted: the endpoints as they should be. May be called again.
            caller: for the audit log, and whether it is a dry run.
            applied: the mark of the file that has them; "": none.
            prune: whether endpoints that an apply with this mark made, and that are not wanted any more, are deleted.

        Raises:
            CatalogRefused: an endpoint cannot be so; the message names it. Nothing was changed.
            CatalogReadOnly: the configuration file defines one of them. Nothing was changed.
            RedisUnavailable: either all of it happened, or nothing.
        """
        made: list[Applied] = []

        def compute(snapshot: Snapshot) -> Change:
            change, outcome = self._change(snapshot, wanted(snapshot), applied, prune=prune)
            made[:] = [outcome]
            audits = tuple(_audit(step, caller) for step in outcome.steps)
            return replace(change, more_audits=audits)

        if caller.dry_run:
            compute(self._catalog.read())
        else:
            self._catalog.change(compute)
            self._registry.refresh()
            new = [step.row for step in made[0].steps if step.action is Action.CREATE]
            self._endpoints.await_fronts(new)
        return made[0]

    def _change(
        self, snapshot: Snapshot, wanted: Sequence[Wanted], applied: str, *, prune: bool
    ) -> tuple[Change, Applied]:
        steps = []
        for one in wanted:
            with _naming(one.id):
                old = self._endpoints.existing(one.id, snapshot)
                if step := step_of(old, one, applied):
                    if old is not None and (problem := type_problem(old, step.row)):
                        raise CatalogRefused(problem)
                    row = released(old, step.row, snapshot.now_ms)
                    steps.append(replace(step, row=row))
        left = left_over(snapshot.endpoints, wanted, applied)
        gone = left if prune else []
        # Deleted ones have no workers any more, and still must not count as endpoints of the configuration.
        after: dict[str, EndpointRow] = {
            **snapshot.endpoints,
            **{row.id: replace(row, workers_max=0) for row in gone},
            **{step.row.id: step.row for step in steps},
        }
        checked = [
            replace(step, row=self._checked(step.row, replace(snapshot, endpoints=after)))
            for step in steps
        ]
        put: list[Row] = [step.row for step in checked]
        put += _own_templates(put, snapshot)
        entries: dict[str, Mapping[str, Any] | None] = {
            step.row.id: entry_of(step.row) for step in checked
        }
        delete = [(Kind.ENDPOINT, row.id) for row in gone]
        delete += [
            (Kind.TEMPLATE, str(row.template_id))
            for row in gone
            if row.own_template and row.template_id in snapshot.templates
        ]
        entries |= dict.fromkeys(row.id for row in gone)
        change = Change(put=tuple(put), delete=tuple(delete), entries=entries)
        deleted = [Step(Action.DELETE, row, restarts=True) for row in gone]
        names = () if prune else tuple(row.id for row in left)
        return change, Applied((*checked, *deleted), names)

    def _checked(self, row: EndpointRow, snapshot: Snapshot) -> EndpointRow:
        with _naming(row.id):
            return self._endpoints.check(row, snapshot)


def _own_templates(rows: Sequence[Row], snapshot: Snapshot) -> list[Row]:
    """The templates that were made for these endpoints, with their containers."""
    found: list[Row] = []
    for row in rows:
        if isinstance(row, EndpointRow) and row.own_template:
            template = snapshot.templates.get(row.template_id or "")
            if template is not None and template.container != row.container:
                found.append(replace(template, container=row.container))
    return found


def _audit(step: Step, caller: Caller) -> Audit:
    action = {Action.CHANGE: "update"}.get(step.action, step.action.value)
    told = json.dumps({d.field: [d.old, d.new] for d in step.differences})
    return Audit(caller.by, caller.door, f"{action} {Kind.ENDPOINT}", step.row.id, told)


@contextlib.contextmanager
def _naming(endpoint_id: str) -> Iterator[None]:
    """Adds the endpoint to errors."""
    try:
        yield
    except VariableUnknown as error:
        raise CatalogRefused(f"endpoints.{endpoint_id}.{error}; nothing was changed") from None
    except CatalogRefused as error:
        raise CatalogRefused(f"endpoints.{endpoint_id}: {error}; nothing was changed") from None
    except CatalogReadOnly as error:
        raise CatalogReadOnly(f"endpoints.{endpoint_id}: {error}; nothing was changed") from None
