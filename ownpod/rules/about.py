"""What is known of a session or a one-off task besides its worker, as JSON in the worker's record. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from ownpod.rules.managed import ManagedWorker

ANY_SESSION = "any"
"""Why a session was made: for a task that another session could run as well."""


def about(
    model_id: str, preset: str, difficulty: str, labels: Mapping[str, Any], **more: Any
) -> str:
    """What is known of a session or task, as JSON. ``more``: of a one-off task ``output``, what its plain lines are; of a session
    ``for_task``; of both what :meth:`ownpod.rules.presets.Preset.later` has.
    """
    values = {
        "model_id": model_id,
        "preset": preset,
        "difficulty": difficulty,
        "labels": dict(labels),
        **{name: value for name, value in more.items() if value},
    }
    return json.dumps(values, sort_keys=True)


def about_of(worker: ManagedWorker) -> dict[str, Any]:
    """What is known of a session or task: ``model_id``, ``preset``, ``difficulty``, ``labels``; {}: nothing."""
    try:
        found = json.loads(worker.about or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
