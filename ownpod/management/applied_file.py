"""The file of ``ownpod apply``: read, checked, and written."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from marshmallow import ValidationError

from ownpod.configuration import (
    LONGEST_PROBLEM,
    AddedEndpointSchema,
    endpoint_entry,
    make_endpoint,
    yaml_problem,
)
from ownpod.errors import BadRequest
from ownpod.rules.applied import FILE_KEYS, Wanted, file_entry
from ownpod.rules.catalog import LONGEST_NAME, RESERVED, EndpointRow, EndpointType
from ownpod.rules.catalog_changes import NO_TIMEOUT_MS, TEMPLATE
from ownpod.rules.endpoints import Endpoint
from ownpod.validation import NAME, first_problem

PROJECT = re.compile(r"[!-~]{1,100}")
"""Allowed values of ``project``: visible ASCII."""

_ROW_KEYS = frozenset(
    (
        *("type", "template", "gpu", "workersMin", "workersMax", "idleTimeout"),
        *("scalerType", "scalerValue", "executionTimeout", "expires"),
    )
)
"""Keys of an endpoint that its row has fields for; the row keeps the others under ``own``."""

_KEYS = sorted(
    {field.data_key or name for name, field in AddedEndpointSchema().fields.items()}.union(
        FILE_KEYS
    )
)
"""All keys of an endpoint."""

_TEMPLATE_KEYS = frozenset(("image", "command", "entrypoint", "env", "registry"))


@dataclass(frozen=True)
class AppliedFile:
    """The endpoints of a file. ``project``: under which ``--prune`` finds the endpoints of earlier applies; "": none."""

    endpoints: tuple[Wanted, ...]
    project: str = ""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, because the first of two endpoints with one id would be lost without a word."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value[:80]!r} is there twice", key.start_mark
                )
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(text: str, place: str) -> AppliedFile:
    """The endpoints in the text of a file.

    Args:
        text: YAML.
        place: the file's name, for errors.

    Raises:
        BadRequest: one line that names the file, the field and what is allowed. It has no values of variables.
    """
    try:
        # A subclass of the safe loader, which makes no objects.
        content = yaml.load(text, _Loader)  # noqa: S506
        return _file(content)
    except yaml.YAMLError as error:
        raise BadRequest(f"{place}: not YAML: {yaml_problem(error)}") from None
    except BadRequest as error:
        raise BadRequest(f"{place}: {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        # A date that does not exist, too many digits, a list as a key, too deep.
        problem = " ".join(str(error).split())[:LONGEST_PROBLEM]
        raise BadRequest(f"{place}: cannot be read: {problem}") from None


def _file(content: Any) -> AppliedFile:
    if not isinstance(content, dict) or not isinstance(content.get("endpoints"), dict):
        raise BadRequest("endpoints: must be an object with the endpoints by id")
    if unknown := sorted(map(str, content.keys() - {"endpoints", "project"})):
        raise BadRequest(f"{unknown[0]}: is not a key here; the keys are endpoints, project")
    project = content.get("project", "")
    if project != "" and not (isinstance(project, str) and PROJECT.fullmatch(project)):
        raise BadRequest("project: must be a text of 1 to 100 visible ASCII characters")
    found = []
    for endpoint_id, values in content["endpoints"].items():
        if not isinstance(endpoint_id, str) or not NAME.fullmatch(endpoint_id):
            raise BadRequest(
                f"endpoints.{str(endpoint_id)[:80]}: an endpoint's id must be letters, digits, - and _"
            )
        try:
            found.append(wanted_of(endpoint_id, values))
        except BadRequest as error:
            raise BadRequest(f"endpoints.{endpoint_id}.{error}") from None
    return AppliedFile(tuple(found), project)


def wanted_of(endpoint_id: str, values: Any) -> Wanted:
    """An endpoint from the keys of the file.

    Raises:
        BadRequest: names the field, and what is allowed; without values of variables.
    """
    if endpoint_id in RESERVED:
        raise BadRequest("id: cannot be used, because paths of the management API begin with it")
    if not isinstance(values, dict) or not isinstance(values.get("template"), dict):
        raise BadRequest("template: is needed, because OwnPod starts an endpoint's workers from it")
    _check_keys(values)
    plain = {key: value for key, value in values.items() if key not in FILE_KEYS}
    plain["template"], kept = _without_unknown_values(values["template"])
    try:
        endpoint = make_endpoint(endpoint_id, plain)
    except ValidationError as error:
        raise BadRequest(": ".join(first_problem(error.normalized_messages()))) from None
    spec = endpoint.managed
    assert spec is not None  # noqa: S101 - there is a template
    return Wanted(
        id=endpoint_id,
        name=_name(values.get("name", endpoint_id)),
        image=spec.template.image or "",
        command=spec.template.command,
        entrypoint=spec.template.entrypoint,
        env={**spec.template.env, **dict.fromkeys(kept)},
        gpu=None if spec.gpu is None else (spec.gpu.pools, spec.gpu.count),
        workers_min=spec.scaling.workers_min,
        workers_max=spec.scaling.workers_max,
        idle_s=spec.scaling.idle_timeout_s,
        scaler=spec.scaling.scaler,
        scaler_value=float(spec.scaling.scaler_value),
        timeout_ms=_timeout_ms(endpoint, values),
        expires_ms=spec.expires_ms,
        registry=spec.template.registry or None,
        volumes=_texts("networkVolumeIds", values),
        data_centers=_texts("dataCenterIds", values),
        own=_own(endpoint, endpoint_entry(plain, endpoint)),
        type=EndpointType.LOAD_BALANCER if endpoint.is_balanced else EndpointType.QUEUE,
    )


def _timeout_ms(endpoint: Endpoint, values: Mapping[str, Any]) -> int:
    """The default is one of jobs, so an endpoint without jobs has none."""
    if endpoint.is_balanced and "executionTimeout" not in values:
        return NO_TIMEOUT_MS
    return endpoint.execution_timeout_ms


def _check_keys(values: Mapping[Any, Any]) -> None:
    if "workers" in values:
        raise BadRequest("workers: is not a key here; `ownpod workers add` adds workers")
    for key in values:
        if key not in _KEYS:
            raise BadRequest(f"{str(key)[:80]}: is not a key here; the keys are {', '.join(_KEYS)}")


def _without_unknown_values(template: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """The template without the variables whose value is null, and their names."""
    env = template.get("env")
    if not isinstance(env, dict):
        return template, []
    kept = [name for name, value in env.items() if value is None and isinstance(name, str)]
    return {**template, "env": {n: v for n, v in env.items() if n not in kept}}, kept


def _own(endpoint: Endpoint, values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that the row has no fields for, as JSON, without those that are at their default."""
    template = dict(values["template"])
    if endpoint.managed is not None and "volumes" in template:
        # One of three forms; the entry of run time adds the network volume to the list.
        template["volumes"] = [
            {"name": mount.name, "path": mount.path, "readOnly": mount.read_only}
            for mount in endpoint.managed.template.volumes
        ]
    found = {key: value for key, value in values.items() if key not in _ROW_KEYS}
    found |= {
        f"{TEMPLATE}{key}": value for key, value in template.items() if key not in _TEMPLATE_KEYS
    }
    return {
        key: json.dumps(value, default=str)
        for key, value in found.items()
        if not _is_default(endpoint, values, key)
    }


def _is_default(endpoint: Endpoint, values: Mapping[str, Any], key: str) -> bool:
    name = key.removeprefix(TEMPLATE)
    if key == name:
        without = {other: value for other, value in values.items() if other != key}
    else:
        left = {other: value for other, value in values["template"].items() if other != name}
        without = {**values, "template": left}
    try:
        return make_endpoint(endpoint.id, without) == endpoint
    except ValidationError:
        return False


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
        raise BadRequest(f"name: must be a text of 1 to {LONGEST_NAME} characters")
    return value


def _texts(key: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise BadRequest(f"{key}: must be a list of texts")
    return tuple(found)


def write(rows: Iterable[EndpointRow], *, with_values: bool) -> str:
    """The text of a file with these endpoints; see :func:`ownpod.rules.applied.file_entry`."""
    endpoints = {row.id: file_entry(row, with_values=with_values) for row in rows}
    content = {"endpoints": endpoints}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    # The emitter writes some controls, U+0085 for one, so that they are read as spaces.
    return text if yaml.safe_load(text) == content else yaml.safe_dump(content, sort_keys=False)
