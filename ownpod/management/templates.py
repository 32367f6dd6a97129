"""The managing calls of templates."""

from collections.abc import Callable
from dataclasses import replace

from ownpod.errors import CatalogInUse, CatalogRefused
from ownpod.management.calls import Caller, Outcome, found, listed, newest_first, write
from ownpod.management.endpoints import Endpoints
from ownpod.rules.catalog import Kind, Row, TemplateRow, new_id
from ownpod.rules.catalog_changes import entry_of, released
from ownpod.store.catalog import Catalog, Change, Snapshot


class Templates:
    """Lists, adds, changes and deletes templates. All calls may raise RedisUnavailable.

    Args:
        catalog: the rows in Redis.
        endpoints: checks the endpoints that an edit reaches.
    """

    def __init__(self, catalog: Catalog, endpoints: Endpoints) -> None:
        self._catalog = catalog
        self._endpoints = endpoints

    def list(self) -> list[TemplateRow]:
        """All templates, the newest first."""
        return newest_first(self._catalog.read().templates)

    def get(self, template_id: str) -> TemplateRow:
        """One template. Raises: CatalogNotFound."""
        return found(self._catalog.read().templates, Kind.TEMPLATE, template_id)

    def create(
        self, make: Callable[[Snapshot, str], TemplateRow], caller: Caller
    ) -> Outcome[TemplateRow]:
        """Adds a template. Raises: CatalogRefused: another one has its name, or no host can start its workers."""
        made_id = new_id(Kind.TEMPLATE, self._catalog.read().templates)

        def compute(snapshot: Snapshot) -> tuple[Change, TemplateRow]:
            row = replace(make(snapshot, made_id), id=made_id, created_ms=snapshot.now_ms)
            self._check(row, snapshot)
            return Change(put=(row,)), row

        return write(self._catalog, "create", Kind.TEMPLATE, caller, compute)

    def update(
        self,
        template_id: str,
        change: Callable[[Snapshot, TemplateRow], TemplateRow],
        caller: Caller,
        *,
        reaches_endpoints: bool,
    ) -> Outcome[TemplateRow]:
        """Changes a template.

        Args:
            template_id: the template's id.
            change: the new row.
            caller: for the audit log, and whether it is a dry run.
            reaches_endpoints: whether the endpoints that are bound to it get a release (REST v1, GraphQL), or not (REST v2).

        Raises:
            CatalogNotFound: there is none.
            CatalogRefused: another one has its name, or an endpoint could not run with it.
        """

        def compute(snapshot: Snapshot) -> tuple[Change, TemplateRow]:
            old = found(snapshot.templates, Kind.TEMPLATE, template_id)
            row = replace(change(snapshot, old), id=template_id, created_ms=old.created_ms)
            self._check(row, snapshot)
            put: list[Row] = [row]
            entries = {}
            if reaches_endpoints and row.container != old.container:
                for bound in snapshot.endpoints.values():
                    if bound.template_id == template_id:
                        new = released(
                            bound, replace(bound, container=row.container), snapshot.now_ms
                        )
                        new = self._endpoints.check(new, snapshot)
                        put.append(new)
                        entries[new.id] = entry_of(new)
            return Change(put=tuple(put), entries=entries), row

        return write(self._catalog, "update", Kind.TEMPLATE, caller, compute)

    def delete(self, template_id: str, caller: Caller) -> Outcome[TemplateRow]:
        """Deletes a template. Raises: CatalogNotFound; CatalogInUse: an endpoint is bound to it."""

        def compute(snapshot: Snapshot) -> tuple[Change, TemplateRow]:
            row = found(snapshot.templates, Kind.TEMPLATE, template_id)
            users = [e.name for e in snapshot.endpoints.values() if e.template_id == template_id]
            if users:
                raise CatalogInUse(f"template {template_id!r} is in use by {listed(users)}")
            return Change(delete=((Kind.TEMPLATE, template_id),)), row

        return write(self._catalog, "delete", Kind.TEMPLATE, caller, compute)

    def _check(self, row: TemplateRow, snapshot: Snapshot) -> None:
        _check(row, snapshot)
        if row.serverless:
            # Others are for pods, which never start.
            self._endpoints.check_startable(row.container)


def _check(row: TemplateRow, snapshot: Snapshot) -> None:
    if any(o.name == row.name and o.id != row.id for o in snapshot.templates.values()):
        raise CatalogRefused(f"Template name must be unique: {row.name!r} exists")
    registry = row.container.registry
    if registry and registry not in snapshot.registries:
        raise CatalogRefused(f"container registry auth {registry!r} not found")
    try:
        _ = row.container.words
    except ValueError as error:
        raise CatalogRefused(f"the command cannot be split into words: {error}") from None
