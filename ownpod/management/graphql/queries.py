"""The queries of GraphQL."""

from collections.abc import Mapping
from typing import Any

from ownpod.errors import CatalogNotFound
from ownpod.management.calls import newest_first
from ownpod.management.graphql import rows
from ownpod.management.graphql.context import Info, shown
from ownpod.management.shown import USER_ID
from ownpod.rules.gpu_types import GPU_TYPES, POOLS
from ownpod.rules.launching import DATA_CENTER_LABEL, DEFAULT_DATA_CENTER
from ownpod.rules.managed import AgentInfo


def _myself(_root: Any, info: Info) -> dict[str, Any]:
    found = info.context.management.catalog.read()
    registries = [{"id": row.id, "name": row.name} for row in found.registries.values()]
    return {
        "id": USER_ID,
        "email": "",
        "pubKey": "",
        "clientBalance": 0.0,
        "currentSpendPerHr": 0.0,
        "spendLimit": 0,
        "signedTermsOfService": True,
        "networkVolumes": [rows.volume(row) for row in newest_first(found.volumes)],
        "podTemplates": [rows.template(row) for row in newest_first(found.templates)],
        "pods": [],
        "containerRegistryCreds": registries,
    }


def _endpoints(_user: Any, info: Info) -> list[dict[str, Any]]:
    found = info.context.management.catalog.read()
    return [shown(row, found, info.context) for row in info.context.management.endpoints.list()]


def _endpoint_of(_user: Any, info: Info, id: str | None = None) -> Any:  # noqa: A002 - RunPod's name
    try:
        row = info.context.management.endpoints.get(id or "")
    except CatalogNotFound:
        return None
    return shown(row, info.context.management.catalog.read(), info.context)


def _pod_template(_root: Any, info: Info, id: str | None = None) -> Any:  # noqa: A002 - RunPod's name
    row = info.context.management.catalog.read().templates.get(id or "")
    return None if row is None else rows.template(row)


def _pod_templates(_root: Any, info: Info, input: Any = None) -> list[Any]:  # noqa: A002
    if input and input.get("isRunpod"):
        return []
    return [rows.template(row) for row in info.context.management.templates.list()]


def _gpu_types(_root: Any, info: Info, input: Any = None) -> list[dict[str, Any]]:  # noqa: A002
    wanted = {*((input or {}).get("ids") or ()), (input or {}).get("id")} - {None}
    devices = [d for agent in info.context.agents() for d in agent.devices if not d.simulated]
    there = {d.name: sum(other.name == d.name for other in devices) for d in devices}
    memory = {d.name: round(d.memory_mb / 1024) for d in devices}
    own = [(name, name, memory[name], "Nvidia") for name in there if name not in GPU_TYPES]
    known = [(t.id, t.name, t.memory_gb, t.manufacturer) for t in GPU_TYPES.values()]
    return [
        _gpu_type(type_id, name, memory_gb, maker, there.get(type_id, 0))
        for type_id, name, memory_gb, maker in (*known, *own)
        if not wanted or type_id in wanted
    ]


def _gpu_type(type_id: str, name: str, memory_gb: int, maker: str, count: int) -> dict[str, Any]:
    prices = ("securePrice", "communityPrice", "oneMonthPrice", "threeMonthPrice", "oneWeekPrice")
    lowest = {
        "minimumBidPrice": 0.0,
        "uninterruptablePrice": 0.0,
        "stockStatus": "High" if count else None,
        "maxUnreservedGpuCount": count,
        "availableGpuCounts": list(range(1, count + 1)),
    }
    return {
        "id": type_id,
        "displayName": name,
        "memoryInGb": memory_gb,
        "manufacturer": maker,
        "secureCloud": bool(count),
        "communityCloud": False,
        "maxGpuCount": count,
        "maxGpuCountSecureCloud": count,
        "maxGpuCountCommunityCloud": 0,
        "lowestPrice": lowest,
        **dict.fromkeys((*prices, "communitySpotPrice", "secureSpotPrice"), 0.0),
    }


def _data_centers(_root: Any, info: Info) -> list[dict[str, Any]]:
    found = dict[str, list[AgentInfo]]()
    for agent in info.context.agents():
        found.setdefault(agent.labels.get(DATA_CENTER_LABEL, DEFAULT_DATA_CENTER), []).append(agent)
    return [
        {
            "id": name,
            "name": name,
            "location": "",
            "storageSupport": True,
            "listed": True,
            "gpuAvailability": [
                {
                    "gpuTypeId": device.name,
                    "displayName": device.name,
                    "stockStatus": "High",
                    "available": True,
                }
                for device in {d.name: d for a in agents for d in a.devices}.values()
            ],
        }
        for name, agents in sorted(found.items())
    ]


QUERIES: Mapping[str, Any] = {
    "myself": _myself,
    "podTemplate": _pod_template,
    "podTemplates": _pod_templates,
    "gpuTypes": _gpu_types,
    "serverlessGpuPools": lambda *_: [
        {"id": pool, "gpuTypeIds": list(types)} for pool, types in POOLS.items()
    ],
    "dataCenters": _data_centers,
    "cpuFlavors": lambda *_: [],
    "pod": lambda *_, **__: None,
}

USER: Mapping[str, Any] = {
    "endpoints": _endpoints,
    "endpoint": _endpoint_of,
    "pod": lambda *_, **__: None,
}
