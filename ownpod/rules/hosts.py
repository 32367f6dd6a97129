"""Hosts and their devices, as the API and the commands show them. Pure."""

from collections.abc import Iterable
from typing import Any

from ownpod.rules.devices import state_of
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Device, Hold
from ownpod.rules.volumes import describe_volume


def host_state(agent: AgentInfo, workers: int) -> str:
    """The state of a host with this number of workers: silent, draining, drained or ready."""
    if agent.silent_s >= HOST_SILENT_S:
        return "silent"
    if agent.draining:
        return "draining" if workers else "drained"
    return "ready"


def describe_device(agent: AgentInfo, device: Device, holds: Iterable[Hold]) -> dict[str, Any]:
    """A device as JSON has it. ``holds``: what occupies the devices of its host. Memory in MiB."""
    state = state_of(device, agent, holds)
    return {
        "id": device.id,
        "index": device.index,
        "name": device.name,
        "simulated": device.simulated,
        "memoryMb": device.memory_mb,
        "metrics": dict(device.metrics),
        "pools": list(device.pools),
        "slots": device.slots,
        "state": state.word,
        "workers": list(state.workers),
        "next": list(state.next),
        "idleSeconds": None if state.idle_s is None else round(state.idle_s, 1),
        "reason": state.reason,
    }


def describe_host(agent: AgentInfo, holds: Iterable[Hold], workers: int) -> dict[str, Any]:
    """A host with its devices as JSON has it. ``workers``: the number of its workers that are not stopped."""
    found = list(holds)
    return {
        "host": agent.host,
        "state": host_state(agent, workers),
        "engine": agent.engine,
        "devices": [describe_device(agent, device, found) for device in agent.devices],
        "volumes": [describe_volume(volume) for volume in agent.volumes],
        "workers": workers,
        "silentSeconds": round(agent.silent_s, 1),
        "labels": dict(agent.labels),
        "problem": agent.problem,
    }
