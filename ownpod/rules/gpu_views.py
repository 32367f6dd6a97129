"""Devices in the GPU service's words, for ``/health`` and ``/health/resources``. Pure.

Source: the GPU service's ``GPUStatus``. Its installation had one host, so ``device_id`` is unique with ``host`` only.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ownpod.rules.devices import state_of
from ownpod.rules.event_data import iso
from ownpod.rules.managed import AgentInfo, Device, Hold
from ownpod.rules.presets import HIGH, LOW
from ownpod.rules.sessions import Status

CPU = "CPU"
"""The name of a stand-in."""


def difficulty_of(device: Device, known: Collection[str]) -> str | None:
    """The difficulty of a device: the first of its pools that is one; None: it has none."""
    names = {*known, LOW, HIGH}
    return next((pool for pool in device.pools if pool in names), None)


def describe_device(
    agent: AgentInfo,
    device: Device,
    holds: Iterable[Hold],
    difficulties: Collection[str],
    sessions: Collection[str],
) -> dict[str, Any]:
    """A device as JSON has it.

    Args:
        agent: its host.
        device: the device.
        holds: what occupies the devices of its host.
        difficulties: those that presets have.
        sessions: ids of the sessions that may be shown.
    """
    state = state_of(device, agent, holds)
    figures = device.metrics
    return {
        "device_id": device.index,
        "name": CPU if device.simulated else device.name,
        "difficulty": difficulty_of(device, difficulties),
        "is_available": state.word == "free",
        "memory_used_mb": _whole(figures.get("memory_used_mb")),
        "memory_total_mb": device.memory_mb or None,
        "temperature_celsius": figures.get("temperature_c"),
        "utilization_percent": figures.get("utilization_percent"),
        "current_session_id": next((w for w in state.workers if w in sessions), None),
        "host": agent.host,
        "uuid": device.id,
        "simulated": device.simulated,
        "state": state.word,
        "reason": state.reason,
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def overall(gpus: Sequence[dict[str, Any]], sessions: int) -> str:
    """The GPU service's word for its health: ``degraded`` without a free device, ``unhealthy`` without any device and session."""
    if not gpus and not sessions:
        return "unhealthy"
    return "healthy" if any(gpu["is_available"] for gpu in gpus) else "degraded"


def resources_of(
    *,
    now_ms: int,
    gpus: Sequence[dict[str, Any]],
    running: int,
    task_ids: Sequence[str],
    statuses: Iterable[Status],
    sessions: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The body of ``/health/resources``.

    Args:
        now_ms: the clock of the records, ms since the epoch.
        gpus: from :func:`describe_device`.
        running: number of tasks that run.
        task_ids: ids of those that may be shown.
        statuses: of all sessions.
        sessions: those that may be shown, as :func:`ownpod.rules.task_views.describe_session` has them.
    """
    counts = Counter(statuses)
    by_difficulty = Counter({LOW: 0, HIGH: 0})
    by_difficulty.update(gpu["difficulty"] for gpu in gpus if gpu["difficulty"] is not None)
    return {
        "timestamp": iso(now_ms),
        "resource_allocation": {
            "gpus": list(gpus),
            "running_tasks": {"count": running, "task_ids": list(task_ids)},
            "sessions": {
                "count": sum(counts.values()),
                "active": counts[Status.WORKING],
                "idle": counts[Status.WAITING],
                "details": list(sessions),
            },
        },
        "capacity": {
            "total_gpus": len(gpus),
            "available_gpus": sum(gpu["is_available"] for gpu in gpus),
            "gpus_by_difficulty": dict(sorted(by_difficulty.items())),
        },
    }
