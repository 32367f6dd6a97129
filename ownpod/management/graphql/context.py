"""What the operations of GraphQL use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphql import GraphQLResolveInfo

from ownpod.management import Caller, Management
from ownpod.management.graphql import rows
from ownpod.management.workers import WorkerShown
from ownpod.rules.catalog import EndpointRow
from ownpod.rules.managed import AgentInfo
from ownpod.store.catalog import Snapshot


@dataclass(frozen=True)
class Context:
    """What the operations use.

    Attributes:
        management: the managing calls.
        caller: the caller of this request.
        agents: returns the hosts.
        workers: returns an endpoint's workers that exist now.
        stop_worker: stops a worker, which is replaced if it is needed; False: there is none of this id.
    """

    management: Management
    caller: Caller
    agents: Callable[[], Sequence[AgentInfo]]
    workers: Callable[[EndpointRow], Sequence[WorkerShown]]
    stop_worker: Callable[[str], bool]


Info = GraphQLResolveInfo[Context]


def shown(row: EndpointRow, found: Snapshot, context: Context) -> dict[str, Any]:
    """The endpoint as ``Endpoint``, with its template, volumes and workers."""
    bound = found.templates.get(row.template_id or "")
    return rows.endpoint(row, bound, found.volumes, lambda: context.workers(row))
