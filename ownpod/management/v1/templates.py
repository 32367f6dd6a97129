"""Templates and network volumes of REST v1."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ownpod.management.shown import as_sent, keep_sent
from ownpod.management.v1.fields import DOCKER_ARGS
from ownpod.rules.catalog import Container, Door, TemplateRow, VolumeRow

DEFAULTS: Mapping[str, Any] = {
    "containerDiskInGb": 50,
    "ports": ["8888/http", "22/tcp"],
    "volumeInGb": 20,
    "volumeMountPath": "/workspace",
}
"""RunPod's defaults of a new template that are no empty values."""

_CONTAINER = {
    "imageName": "image",
    "containerDiskInGb": "disk_gb",
    "dockerEntrypoint": "entrypoint",
    "env": "env",
    "ports": "ports",
}
_TEMPLATE = {
    "name": "name",
    "category": "category",
    "isPublic": "public",
    "isServerless": "serverless",
    "readme": "readme",
    "volumeInGb": "volume_gb",
    "volumeMountPath": "volume_path",
}


def new_template(template_id: str, values: Mapping[str, Any]) -> TemplateRow:
    """A template from the fields of a request."""
    empty = TemplateRow(template_id, str(values["name"]), Container())
    return keep_sent(apply_template(empty, {**DEFAULTS, **values}), Door.V1, values)


def changed_template(row: TemplateRow, values: Mapping[str, Any]) -> TemplateRow:
    """The template with the fields of a request; ``env`` is replaced as a whole, as in RunPod's."""
    return keep_sent(apply_template(row, values), Door.V1, values)


def apply_template(row: TemplateRow, values: Mapping[str, Any]) -> TemplateRow:
    """The template with other fields; names of fields are those of v1."""
    given: dict[str, Any] = {own: values[n] for n, own in _CONTAINER.items() if n in values}
    given = {own: tuple(v) if isinstance(v, list) else v for own, v in given.items()}
    container = replace(row.container, **given)
    if "containerRegistryAuthId" in values:
        container = replace(container, registry=values["containerRegistryAuthId"] or None)
    if "dockerStartCmd" in values:
        container = replace(container, command=tuple(values["dockerStartCmd"]), args=None)
    if DOCKER_ARGS in values:
        container = replace(container, args=values[DOCKER_ARGS] or None, command=())
    changes: dict[str, Any] = {own: values[n] for n, own in _TEMPLATE.items() if n in values}
    return replace(row, container=container, **changes)


def show_template(row: TemplateRow) -> dict[str, Any]:
    """The template as v1 answers it."""
    container = row.container
    shown = {
        "id": row.id,
        "name": row.name,
        "imageName": container.image,
        "category": row.category,
        "containerDiskInGb": container.disk_gb if container.disk_gb is not None else 50,
        "containerRegistryAuthId": container.registry or "",
        "dockerEntrypoint": list(container.entrypoint),
        "dockerStartCmd": words_of(container),
        "env": dict(container.env),
        "isPublic": row.public,
        "isRunpod": False,
        "isServerless": row.serverless,
        "ports": list(container.ports),
        "readme": row.readme,
        "volumeInGb": row.volume_gb or 0,
        "volumeMountPath": row.volume_path or "",
        "earned": 0,
        "runtimeInMin": 0,
    }
    return as_sent(row, Door.V1, shown, apply_template)


def words_of(container: Container) -> list[str]:
    """The words of the command; one word if its quotes do not match."""
    try:
        return list(container.words)
    except ValueError:
        return [container.args or ""]


def new_volume(volume_id: str, values: Mapping[str, Any]) -> VolumeRow:
    """A network volume from the fields of a request."""
    return VolumeRow(volume_id, values["name"], int(values["size"]), values["dataCenterId"])


def changed_volume(row: VolumeRow, values: Mapping[str, Any]) -> VolumeRow:
    """The network volume with another name or size."""
    return replace(
        row, name=values.get("name", row.name), size_gb=int(values.get("size", row.size_gb))
    )


def show_volume(row: VolumeRow) -> dict[str, Any]:
    """The network volume as v1 answers it. runpod-flash refuses any other key."""
    return {
        "id": row.id,
        "name": row.name,
        "size": row.size_gb,
        "dataCenterId": row.data_center,
    }
