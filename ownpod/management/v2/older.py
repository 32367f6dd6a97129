"""Bodies of REST v2 as the first version of RunPod's Terraform provider sends them: with some names and types of v1. Pure."""

from collections.abc import Mapping
from typing import Any

NAMES = {
    "dockerStartCmd": "cmd",
    "dockerEntrypoint": "entrypoint",
    "containerRegistryAuthId": "registry",
}
"""Names of v1, and those of v2 that mean the same."""


def translated(body: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The body with the names and types of v2; what both versions of a field have is v2's.

    Args:
        body: what the client sent.
        known: the fields of v2.
    """
    made = dict(body)
    for old, new in NAMES.items():
        if old in made and old not in known and new in known:
            value = made.pop(old)
            made.setdefault(new, value)
    if isinstance(made.get("flashboot"), bool):
        made["flashboot"] = "FLASHBOOT" if made["flashboot"] else "OFF"
    return made


def has_older_type(name: str, value: Any) -> bool:
    """Whether a field means something only in v1. An array of mounts is one: v2 has an object."""
    return name == "mounts" and isinstance(value, list)
