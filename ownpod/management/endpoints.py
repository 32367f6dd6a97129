"""The managing calls of endpoints."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from marshmallow import ValidationError

from ownpod.configuration import BALANCED_KEYS, make_endpoint
from ownpod.errors import CatalogImpossible, CatalogNotFound, CatalogReadOnly, CatalogRefused
from ownpod.management.calls import Caller, Outcome, newest_first, write
from ownpod.management.fronts import Living, await_fronts, no_fronts
from ownpod.registry import Registry
from ownpod.rules.balancing import Balancing
from ownpod.rules.catalog import (
    LONGEST_NAME,
    RESERVED,
    Container,
    EndpointRow,
    EndpointType,
    Gpu,
    Kind,
    Row,
    TemplateRow,
    new_id,
)
from ownpod.rules.catalog_changes import (
    entry_of,
    named,
    quota_problem,
    released,
    type_problem,
)
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import AgentInfo
from ownpod.rules.placement import secrets_nowhere, why_not_startable
from ownpod.rules.secrets import secrets_in, why_missing
from ownpod.rules.templates import GpuNeed, ScalerType
from ownpod.store.catalog import Catalog, Change, Snapshot
from ownpod.validation import NAME, first_problem


class Endpoints:
    """Lists, adds, changes and deletes endpoints. All calls may raise RedisUnavailable.

    Args:
        catalog: the rows in Redis.
        registry: the endpoints, with those of the configuration.
        quota: the most workers of all endpoints together; 0: any.
        agents: the hosts, to refuse an endpoint that none can run: by its GPUs, its image, its secrets.
        stored: names of the secrets in Redis.
        living: the fronts, which must have a new load-balanced endpoint before its caller may use it.
    """

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        quota: int = 0,
        agents: Callable[[], Sequence[AgentInfo]] = tuple,
        *,
        living: Living = no_fronts,
        stored: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._agents = agents
        self._stored = stored
        self._living = living
        self._catalog = catalog
        self._registry = registry
        self._quota = quota

    def list(self) -> list[EndpointRow]:
        """All endpoints: the catalog's, the newest first, and those of the configuration."""
        rows = self._catalog.read().endpoints
        # Read now: another process may have deleted one, which would look like an endpoint of the configuration.
        others = (e for e in self._registry.newer().values() if e.id not in rows)
        return [
            *newest_first(rows),
            *(row_of(endpoint) for endpoint in sorted(others, key=lambda e: e.id)),
        ]

    def get(self, endpoint_id: str) -> EndpointRow:
        """One endpoint. Raises: CatalogNotFound."""
        row = self._catalog.read().endpoints.get(endpoint_id)
        return row if row is not None else self._others(endpoint_id)

    def _others(self, endpoint_id: str) -> EndpointRow:
        endpoint = self._registry.newer().get(endpoint_id)
        if endpoint is None:
            raise CatalogNotFound(Kind.ENDPOINT, endpoint_id)
        return row_of(endpoint)

    def create(
        self,
        make: Callable[[Snapshot, str], tuple[EndpointRow, TemplateRow | None]],
        caller: Caller,
        *,
        endpoint_id: str | None = None,
    ) -> Outcome[EndpointRow]:
        """Adds an endpoint.

        Args:
            make: the row with this id, and the template that is made with it, if any. May raise.
            caller: for the audit log, and whether it is a dry run.
            endpoint_id: a wanted id; None: a new one in RunPod's shape.

        Raises:
            CatalogRefused: a rule forbids it, with RunPod's text where RunPod has one.
        """
        taken = {*self._registry.endpoints, *self._catalog.read().endpoints}
        made_id = endpoint_id or new_id(Kind.ENDPOINT, taken)

        def compute(snapshot: Snapshot) -> tuple[Change, EndpointRow]:
            if made_id in snapshot.endpoints or self._is_known(made_id):
                raise CatalogRefused(f"endpoint {made_id!r} exists")
            row, template = make(snapshot, made_id)
            row = released(None, replace(row, id=made_id), snapshot.now_ms)
            row = self.check(row, snapshot)
            put: tuple[Row, ...] = (row,)
            if template is not None:
                put = (*put, replace(template, created_ms=snapshot.now_ms))
            return Change(put=put, entries={made_id: entry_of(row)}), row

        outcome = self._write("create", caller, compute)
        if not caller.dry_run:
            self.await_fronts([outcome.row])
        return outcome

    def update(
        self,
        endpoint_id: str,
        change: Callable[[Snapshot, EndpointRow], EndpointRow],
        caller: Caller,
    ) -> Outcome[EndpointRow]:
        """Changes an endpoint. A change of what its workers are made from replaces them, one after the other.

        Raises:
            CatalogNotFound: there is none.
            CatalogReadOnly: it is defined in the configuration file.
            CatalogRefused: a rule forbids it.
        """

        def compute(snapshot: Snapshot) -> tuple[Change, EndpointRow]:
            old = self._mine(endpoint_id, snapshot)
            new = replace(change(snapshot, old), id=endpoint_id)
            if problem := type_problem(old, new):
                raise CatalogRefused(problem)
            row = released(old, new, snapshot.now_ms)
            row = self.check(row, snapshot)
            return Change(put=(row,), entries={endpoint_id: entry_of(row)}), row

        return self._write("update", caller, compute)

    def delete(self, endpoint_id: str, caller: Caller) -> Outcome[EndpointRow]:
        """Deletes an endpoint, as RunPod's REST v2 does: its workers stop, its jobs are cancelled, its own template goes.

        Raises:
            CatalogNotFound: there is none.
            CatalogReadOnly: it is defined in the configuration file.
        """

        def compute(snapshot: Snapshot) -> tuple[Change, EndpointRow]:
            row = self._mine(endpoint_id, snapshot)
            delete: tuple[tuple[Kind, str], ...] = ((Kind.ENDPOINT, endpoint_id),)
            if row.own_template and row.template_id in snapshot.templates:
                delete = (*delete, (Kind.TEMPLATE, str(row.template_id)))
            return Change(delete=delete, entries={endpoint_id: None}), row

        return self._write("delete", caller, compute)

    def _write(
        self,
        action: str,
        caller: Caller,
        compute: Callable[[Snapshot], tuple[Change, EndpointRow]],
    ) -> Outcome[EndpointRow]:
        outcome = write(self._catalog, action, Kind.ENDPOINT, caller, compute)
        self._registry.refresh()
        return outcome

    def await_fronts(self, made: Iterable[EndpointRow]) -> None:
        """Waits until the fronts have those of these new endpoints that are load-balanced, for a few seconds at most."""
        await_fronts(self._living, [row.id for row in made if row.is_balanced])

    def _mine(self, endpoint_id: str, snapshot: Snapshot) -> EndpointRow:
        row = self.existing(endpoint_id, snapshot)
        if row is None:
            raise CatalogNotFound(Kind.ENDPOINT, endpoint_id)
        return row

    def existing(self, endpoint_id: str, snapshot: Snapshot) -> EndpointRow | None:
        """An endpoint that can be changed; None: there is none. Raises: CatalogReadOnly."""
        row = snapshot.endpoints.get(endpoint_id)
        if row is not None or not self._is_known(endpoint_id):
            return row
        raise CatalogReadOnly(
            f"endpoint {endpoint_id!r} is not of this API: it is defined in workers.yaml or was added with "
            "`ownpod`, so change it there (after a change of the file send SIGHUP)"
        )

    def _is_known(self, endpoint_id: str) -> bool:
        """Whether the registry has the endpoint, also after it was read again: another process may have deleted it."""
        if endpoint_id in self._registry.endpoints:
            self._registry.refresh()
        return endpoint_id in self._registry.endpoints

    def check(self, row: EndpointRow, snapshot: Snapshot) -> EndpointRow:
        """Checks an endpoint against the others and against what OwnPod can run.

        Returns:
            The endpoint, whose last release has its name.

        Raises:
            CatalogRefused: it cannot be.
        """
        _check_row(row, snapshot)
        others = [other for other in snapshot.endpoints.values() if other.id != row.id]
        outside = (e for e in self._registry.endpoints.values() if e.id not in snapshot.endpoints)
        outside_max = sum(e.managed.scaling.workers_max for e in outside if e.managed is not None)
        if problem := quota_problem([row, *others], outside_max, self._quota):
            raise CatalogRefused(problem)
        try:
            spec = make_endpoint(row.id, entry_of(row)).managed
        except ValidationError as error:
            place, problem = first_problem(error.normalized_messages())
            raise CatalogRefused(f"{place}: {problem}") from None
        except ValueError as error:
            raise CatalogRefused(f"the command cannot be split into words: {error}") from None
        if spec is not None and row.workers_max:
            self.check_startable(row.container, spec.gpu)
        return row if spec is None else named(row, spec.release)

    def check_startable(self, container: Container, gpu: GpuNeed | None = None) -> None:
        """Checks that a host can start a worker, by its GPUs, image and secrets, where a host is known.

        Raises:
            CatalogImpossible: none can; the message has what to change.
        """
        agents = self._agents()
        if problem := why_not_startable(container.image, gpu, agents):
            raise CatalogImpossible(problem)
        names = secrets_in(container.env)
        if names and (missing := secrets_nowhere(names, self._stored(), agents)):
            raise CatalogImpossible(why_missing(missing))


def _check_row(row: EndpointRow, snapshot: Snapshot) -> None:
    """Checks an endpoint by itself, and that what it names is there. Raises: CatalogRefused."""
    if not NAME.fullmatch(row.id) or row.id in RESERVED:
        raise CatalogRefused(f"the id {row.id!r} cannot be used: ids have letters, digits, - and _")
    if not 0 < len(row.name) <= LONGEST_NAME:
        raise CatalogRefused(f"name must have 1 to {LONGEST_NAME} characters")
    for volume in row.volumes:
        if volume not in snapshot.volumes:
            raise CatalogRefused(f"network volume {volume!r} not found")
    registry = row.container.registry
    if registry and registry not in snapshot.registries:
        raise CatalogRefused(f"container registry auth {registry!r} not found")


def row_of(endpoint: Endpoint) -> EndpointRow:
    """An endpoint of the configuration, as the management APIs show it."""
    spec = endpoint.managed
    row = EndpointRow(
        id=endpoint.id,
        name=endpoint.id,
        container=Container(),
        workers_max=len(endpoint.workers),
        timeout_ms=endpoint.execution_timeout_ms,
        from_file=True,
    )
    if endpoint.balancing is not None:
        row = replace(
            row,
            type=EndpointType.LOAD_BALANCER,
            timeout_ms=0,
            scaler=ScalerType.REQUEST_COUNT,
            own=_own_of(endpoint.balancing),
        )
    if spec is None:
        return row
    template, scaling = spec.template, spec.scaling
    return replace(
        row,
        container=Container(
            image=template.image or "",
            command=template.command,
            entrypoint=template.entrypoint,
            env=template.env,
        ),
        gpu=None
        if spec.gpu is None
        else Gpu(
            pools=tuple(pool for pool in spec.gpu.pools if not pool.startswith("-")),
            excluded=tuple(pool[1:] for pool in spec.gpu.pools if pool.startswith("-")),
            count=spec.gpu.count,
        ),
        workers_min=scaling.workers_min,
        workers_max=scaling.workers_max,
        idle_s=scaling.idle_timeout_s,
        scaler=scaling.scaler,
        scaler_value=scaling.scaler_value,
    )


def _own_of(balancing: Balancing) -> dict[str, str]:
    """The keys of a load-balanced endpoint that are not at their default, as rows have them."""
    default = Balancing()
    return {
        key: json.dumps(getattr(balancing, name))
        for name, key in BALANCED_KEYS.items()
        if getattr(balancing, name) != getattr(default, name)
    }
