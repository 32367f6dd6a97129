"""What REST v2 lists besides the objects of the catalog: GPU types, data centers, billing. OwnPod's are those of its hosts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ownpod.rules.gpu_types import GPU_TYPES, GpuType
from ownpod.rules.launching import DATA_CENTER_LABEL, DEFAULT_DATA_CENTER
from ownpod.rules.managed import AgentInfo, Device

REGION = "UNKNOWN"
"""RunPod's word for a region that it does not know."""

_AMOUNTS: Mapping[str, tuple[str, ...]] = {
    "": (
        *("podGpuAmount", "podCpuAmount", "podDiskAmount", "serverlessGpuAmount"),
        *("serverlessCpuAmount", "serverlessDiskAmount", "serverlessFeeAmount"),
        *("storageStandardAmount", "storageHighPerformanceAmount", "endpointAmount"),
        *("clusterGpuAmount", "clusterDiskAmount", "clusterNetworkingAmount"),
    ),
    "pods": ("gpuAmount", "cpuAmount", "diskAmount"),
    "serverless": ("gpuAmount", "cpuAmount", "diskAmount", "feeAmount"),
    "endpoints": (),
    "network-volumes": ("standardAmount", "highPerformanceAmount"),
    "clusters": ("gpuAmount", "diskAmount", "networkingAmount"),
}
_UNIQUE = {
    "pods": "uniquePodCount",
    "serverless": "uniqueServerlessCount",
    "network-volumes": "uniqueNetworkVolumeCount",
    "clusters": "uniqueClusterCount",
}


def devices_of(agents: Iterable[AgentInfo]) -> list[tuple[Device, str]]:
    """The GPUs of all hosts, each with its data center; stand-ins are none."""
    return [
        (device, agent.labels.get(DATA_CENTER_LABEL, DEFAULT_DATA_CENTER))
        for agent in agents
        for device in agent.devices
        if not device.simulated
    ]


def gpu_types(agents: Sequence[AgentInfo], *, availability: bool = True) -> list[dict[str, Any]]:
    """RunPod's GPU types, and those of the hosts that RunPod does not have.

    Args:
        agents: the hosts as they last published themselves; this asks none of them.
        availability: whether each has its availability, its data centers and its CUDA versions.
    """
    found = devices_of(agents)
    own = {
        device.name: GpuType(
            device.name,
            device.name,
            max(round(device.memory_mb / 1024), 1),
            device.pools[0] if device.pools else None,
        )
        for device, _ in found
        if device.name not in GPU_TYPES
    }
    places: dict[str, Counter[str]] = {}
    for device, place in found:
        places.setdefault(device.name, Counter())[place] += 1
    return [
        _gpu_type(gpu, places.get(gpu.id, Counter()), availability=availability)
        for gpu in (*GPU_TYPES.values(), *own.values())
    ]


def _gpu_type(gpu: GpuType, places: Counter[str], *, availability: bool) -> dict[str, Any]:
    count = sum(places.values())
    shown: dict[str, Any] = {
        "id": gpu.id,
        "name": gpu.name,
        "pool": gpu.pool,
        "manufacturer": gpu.manufacturer.upper(),
        "memory": gpu.memory_gb,
        "secure": count > 0,
        "community": False,
        "price": {"secure": 0, "community": 0, "serverless": 0},
        "maxCount": {"secure": count, "community": 0},
    }
    if availability:
        level = "HIGH" if count else "NONE"
        shown["availability"] = level
        shown["dataCenters"] = [
            {"id": place, "name": place, "availability": level} for place in sorted(places)
        ]
        shown["cudaVersions"] = []
    return shown


def data_centers(agents: Sequence[AgentInfo]) -> list[dict[str, Any]]:
    """The data centers of the hosts, from their label ``datacenter``."""
    names = {agent.labels.get(DATA_CENTER_LABEL, DEFAULT_DATA_CENTER) for agent in agents}
    found = devices_of(agents)
    return [
        {
            "id": name,
            "name": name,
            "region": REGION,
            "globalNetwork": False,
            "networkVolumeTypes": ["STANDARD"],
            "compliance": [],
            "gpuAvailability": [
                {"id": gpu, "name": gpu, "availability": "HIGH"}
                for gpu in sorted({device.name for device, place in found if place == name})
            ],
            "cpuAvailability": [],
        }
        for name in sorted(names or {DEFAULT_DATA_CENTER})
    ]


def billing(kind: str, bucket: str, start: str, end: str) -> dict[str, Any]:
    """A bill without entries, because nothing costs anything here.

    Args:
        kind: ``pods`` and so on; "": of everything.
        bucket: the size of a bucket, as the client asked.
        start: the beginning of the time, as the client asked.
        end: its end.
    """
    metadata: dict[str, Any] = {
        "query": {"bucketSize": bucket, "startTime": start, "endTime": end},
        "recordCount": 0,
        "totals": dict.fromkeys(("totalAmount", *_AMOUNTS[kind]), 0),
    }
    if kind in _UNIQUE:
        metadata[_UNIQUE[kind]] = 0
    return {"records": [], "metadata": metadata}


BILLS = tuple(kind for kind in _AMOUNTS if kind)
"""The kinds of bills."""
