"""Templates and network volumes of REST v2."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ownpod.management.shown import as_sent, keep_sent
from ownpod.management.v2.endpoints import OPTIONAL, apply_container, args_of
from ownpod.rules.catalog import Container, Door, TemplateRow, VolumeRow

_FIELDS = {
    "name": "name",
    "category": "category",
    "public": "public",
    "serverless": "serverless",
    "startSsh": "start_ssh",
    "startJupyter": "start_jupyter",
}


def new_template(template_id: str, values: Mapping[str, Any]) -> TemplateRow:
    """A template from the fields of a request."""
    empty = TemplateRow(template_id, values["name"], Container())
    return keep_sent(apply_template(empty, values), Door.V2, values)


def changed_template(row: TemplateRow, values: Mapping[str, Any]) -> TemplateRow:
    """The template with the fields of a request."""
    return keep_sent(apply_template(row, values), Door.V2, values)


def apply_template(row: TemplateRow, values: Mapping[str, Any]) -> TemplateRow:
    """The template with other fields; names of fields are those of v2."""
    changes: dict[str, Any] = {own: values[name] for name, own in _FIELDS.items() if name in values}
    if "allowedCudaVersions" in values:
        changes["cuda_allowed"] = tuple(values["allowedCudaVersions"])
    if "mounts" in values:
        changes["mounts"] = json.dumps(values["mounts"], sort_keys=True)
    return replace(row, container=apply_container(row.container, values), **changes)


def show_template(row: TemplateRow) -> dict[str, Any]:
    """The template as v2 answers it: all fields are there."""
    container = row.container
    shown: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "image": container.image,
        "args": args_of(container),
        "disk": container.disk_gb or 20,
        "mounts": json.loads(row.mounts) if row.mounts else {},
        "ports": list(container.ports),
        "env": dict(container.env),
        "registry": container.registry,
        "serverless": row.serverless,
        "public": row.public,
        "category": row.category,
        "startSsh": row.start_ssh,
        "startJupyter": row.start_jupyter,
        "allowedCudaVersions": list(row.cuda_allowed),
    }
    if container.command:
        shown["cmd"] = list(container.command)
    if container.entrypoint:
        shown["entrypoint"] = list(container.entrypoint)
    return as_sent(row, Door.V2, shown, apply_template, OPTIONAL)


def new_volume(volume_id: str, values: Mapping[str, Any]) -> VolumeRow:
    """A network volume from the fields of a request."""
    kind = values.get("type", "STANDARD")
    return VolumeRow(volume_id, values["name"], int(values["size"]), values["dataCenter"], kind)


def changed_volume(row: VolumeRow, values: Mapping[str, Any]) -> VolumeRow:
    """The network volume with another name or size."""
    return replace(
        row, name=values.get("name", row.name), size_gb=int(values.get("size", row.size_gb))
    )


def show_volume(row: VolumeRow) -> dict[str, Any]:
    """The network volume as v2 answers it."""
    return {
        "id": row.id,
        "name": row.name,
        "size": row.size_gb,
        "dataCenter": row.data_center,
        "type": row.type,
    }
