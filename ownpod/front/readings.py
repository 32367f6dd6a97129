"""What HAProxy's statistics and tables report of the endpoints. Pure."""

from collections.abc import Mapping

from ownpod.front.plan import KEEPER
from ownpod.front.runtime import number
from ownpod.rules.balancing import RouteReading, ServerReading


def readings(
    chosen: Mapping[str, str],
    left: Mapping[str, str],
    stats: list[dict[str, str]],
    counts: Mapping[str, Mapping[str, int]],
    wishes: Mapping[str, Mapping[str, int]],
) -> dict[str, RouteReading]:
    """The endpoints as HAProxy has them.

    Args:
        chosen: backend by endpoint.
        left: endpoint by backend, of those that it has left and that are not yet empty.
        stats: rows of ``show stat``, of servers.
        counts: entries of the table of open requests, by endpoint.
        wishes: entries of the table of requests with ``strict-resume``, by ``<endpoint>|<worker>``.
    """
    servers: dict[str, dict[str, ServerReading]] = {}
    for row in stats:
        if row.get("pxname") and row.get("svname") not in {None, "", KEEPER.id}:
            servers.setdefault(row["pxname"], {})[row["svname"]] = _server_reading(row)
    wished: dict[str, set[str]] = {}
    for key, entry in wishes.items():
        if entry.get("conn_cur", 0):
            name, _, worker = key.rpartition("|")
            wished.setdefault(name, set()).add(worker)
    found = {}
    for endpoint, backend in chosen.items():
        own = dict(servers.get(backend, {}))
        for other in (b for b, left_by in left.items() if left_by == endpoint):
            own = servers.get(other, {}) | own
        count = counts.get(endpoint, {})
        found[endpoint] = RouteReading(
            requests=count.get("conn_cur", 0),
            servers=own,
            wishes=tuple(sorted(wished.get(endpoint, set()) - own.keys())),
            total=count.get("http_req_cnt", 0),
        )
    return found


def _server_reading(row: Mapping[str, str]) -> ServerReading:
    status = row.get("status", "")
    up = status.startswith(("UP", "no check", "DRAIN"))
    problem = ""
    if not up and not status.startswith("MAINT"):
        problem = " ".join(
            part
            for part in (
                row.get("check_desc", ""),
                row.get("check_code", ""),
                row.get("last_chk", ""),
            )
            if part
        )
    return ServerReading(
        open=number(row, "scur"),
        waiting=number(row, "qcur"),
        total=number(row, "stot"),
        up=up,
        problem=problem or ("" if up else status),
    )
