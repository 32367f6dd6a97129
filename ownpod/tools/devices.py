"""Tables of hosts and devices, for the commands that list them."""

from collections.abc import Iterator, Sequence
from typing import Any

from ownpod.rules.devices import gigabytes

HOST_COLUMNS = ("HOST", "STATE", "ENGINE", "FREE", "WORKERS", "HEARTBEAT", "PROBLEM")
DEVICE_COLUMNS = ("HOST", "INDEX", "NAME", "MEMORY", "LOAD", "TEMP", "STATE", "USE")


def host_rows(hosts: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """Rows for :data:`HOST_COLUMNS`, from an answer of ``/agents``."""
    for host in hosts:
        states = [device["state"] for device in host["devices"]]
        yield (
            *(host["host"], host["state"], host["engine"]),
            f"{states.count('free')} of {len(states)}",
            *(host["workers"], f"{host['silentSeconds']:.0f} s ago", host["problem"]),
        )


def device_rows(hosts: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """Rows for :data:`DEVICE_COLUMNS`, from an answer of ``/agents``. USE: the workers that hold it, and its reason."""
    for host in hosts:
        for device in host["devices"]:
            yield (
                *(host["host"], device["index"], device["name"], *figures(device)),
                device["state"],
                ", ".join([*device["workers"], *filter(None, [device["reason"]])]),
            )


def figures(device: dict[str, Any]) -> tuple[str, str, str]:
    """Memory, load and temperature of a device as JSON has it; "" where one is not known."""
    metrics = device["metrics"]
    memory = f"{gigabytes(device['memoryMb'])} GB" if device["memoryMb"] else ""
    if memory and "memory_used_mb" in metrics:
        memory = f"{gigabytes(metrics['memory_used_mb'])} of {memory}"
    load, heat = metrics.get("utilization_percent"), metrics.get("temperature_c")
    return (
        memory,
        "" if load is None else f"{load:.0f} %",
        "" if heat is None else f"{heat:.0f} °C",
    )
