"""The mutations of GraphQL: each is one managing call."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ownpod.errors import CatalogNotFound, CatalogRefused
from ownpod.management.graphql import rows
from ownpod.management.graphql.context import Info, shown
from ownpod.rules.catalog import EndpointRow, Kind, TemplateRow, VolumeRow, new_id
from ownpod.store.catalog import Snapshot

PODS_ARE_NOT_SERVED = "pods are not served by OwnPod, only serverless endpoints"


def _save_template(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    context = info.context
    if input.get("id"):
        outcome = context.management.templates.update(
            input["id"],
            lambda _snapshot, row: rows.apply_template(row, input),
            context.caller,
            reaches_endpoints=True,
        )
    else:
        outcome = context.management.templates.create(
            lambda _snapshot, made_id: rows.empty_template(made_id, input), context.caller
        )
    return rows.template(outcome.row)


def _delete_template(_root: Any, info: Info, templateName: str) -> None:  # noqa: N803
    found = info.context.management.catalog.read().templates.values()
    row = next((row for row in found if row.name == templateName), None)
    if row is None:
        raise CatalogNotFound(Kind.TEMPLATE, templateName)
    info.context.management.templates.delete(row.id, info.context.caller)


def _save_endpoint(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    context = info.context
    if input.get("template") and input.get("templateId"):
        raise CatalogRefused("only one of template and templateId may be given")
    if input.get("id"):
        outcome = context.management.endpoints.update(
            input["id"], lambda snapshot, row: _changed(snapshot, row, input), context.caller
        )
    else:
        outcome = context.management.endpoints.create(
            lambda snapshot, made_id: _made(snapshot, made_id, input), context.caller
        )
    return shown(outcome.row, context.management.catalog.read(), context)


def _made(snapshot: Snapshot, made_id: str, values: Any) -> tuple[EndpointRow, TemplateRow | None]:
    rows.check_new_endpoint(values)
    if values.get("template"):
        given = {**values["template"], "isServerless": True}
        given["name"] = given.get("name") or f"{values.get('name')}__template__{made_id}"
        own = rows.empty_template(new_id(Kind.TEMPLATE, snapshot.templates), given)
        return replace(rows.new_endpoint(made_id, values, own), own_template=True), own
    return rows.new_endpoint(made_id, values, _template(snapshot, values.get("templateId"))), None


def _changed(snapshot: Snapshot, row: EndpointRow, values: Any) -> EndpointRow:
    if values.get("template"):
        bound = TemplateRow("", "", row.container)
        row = replace(row, container=rows.apply_template(bound, values["template"]).container)
    elif values.get("templateId") not in {None, "", row.template_id}:
        found = _template(snapshot, values["templateId"])
        row = replace(row, template_id=found.id, container=found.container)
    return rows.apply_endpoint(row, values)


def _template(snapshot: Snapshot, template_id: str | None) -> TemplateRow:
    row = snapshot.templates.get(template_id or "")
    if row is None:
        raise CatalogRefused(f"template {template_id!r} not found")
    return row


def _update_endpoint_template(_root: Any, info: Info, input: Any) -> Any:  # noqa: A002
    values = {"templateId": input["templateId"]}
    outcome = info.context.management.endpoints.update(
        input["endpointId"],
        lambda snapshot, row: _changed(snapshot, row, values),
        info.context.caller,
    )
    return shown(outcome.row, info.context.management.catalog.read(), info.context)


def _delete_endpoint(_root: Any, info: Info, id: str) -> None:  # noqa: A002
    info.context.management.endpoints.delete(id, info.context.caller)


def _create_volume(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    outcome = info.context.management.volumes.create(
        lambda _snapshot, made_id: VolumeRow(
            made_id, input["name"], input["size"], input["dataCenterId"]
        ),
        info.context.caller,
    )
    return rows.volume(outcome.row)


def _update_volume(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    def change(row: VolumeRow) -> VolumeRow:
        size = input.get("size")
        name = input.get("name") or row.name
        return replace(row, name=name, size_gb=row.size_gb if size is None else size)

    return rows.volume(
        info.context.management.volumes.update(input["id"], change, info.context.caller).row
    )


def _delete_volume(_root: Any, info: Info, input: Any) -> None:  # noqa: A002
    info.context.management.volumes.delete(input["id"], info.context.caller)


def _save_registry(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    row = info.context.management.registries.save(
        input.get("name") or "",
        input["username"],
        input["password"],
        info.context.caller,
        registry_id=input.get("id"),
    ).row
    return {"id": row.id, "name": row.name}


def _delete_registry(_root: Any, info: Info, registryAuthId: str) -> None:  # noqa: N803
    info.context.management.registries.delete(registryAuthId, info.context.caller)


def _create_secret(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    row = info.context.management.secrets.create(
        input["name"], input["value"], input.get("description") or "", info.context.caller
    ).row
    return {"id": row.id, "name": row.id, "description": row.description}


def _delete_secret(_root: Any, info: Info, id: str) -> None:  # noqa: A002
    info.context.management.secrets.delete(id, info.context.caller)


def _pod_stop(_root: Any, info: Info, input: Any) -> dict[str, Any]:  # noqa: A002
    if not info.context.stop_worker(input["podId"]):
        raise CatalogNotFound("pod", input["podId"])
    return {"id": input["podId"], "desiredStatus": "EXITED"}


def _pod_terminate(root: Any, info: Info, input: Any) -> None:  # noqa: A002
    _pod_stop(root, info, input)


def _no_pods(*_: Any, **__: Any) -> None:
    raise CatalogRefused(PODS_ARE_NOT_SERVED)


MUTATIONS: Mapping[str, Any] = {
    "saveTemplate": _save_template,
    "deleteTemplate": _delete_template,
    "saveEndpoint": _save_endpoint,
    "updateEndpointTemplate": _update_endpoint_template,
    "deleteEndpoint": _delete_endpoint,
    "createNetworkVolume": _create_volume,
    "updateNetworkVolume": _update_volume,
    "deleteNetworkVolume": _delete_volume,
    "saveRegistryAuth": _save_registry,
    "updateRegistryAuth": _save_registry,
    "deleteRegistryAuth": _delete_registry,
    "secretCreate": _create_secret,
    "secretDelete": _delete_secret,
    "podStop": _pod_stop,
    "podTerminate": _pod_terminate,
    "podFindAndDeployOnDemand": _no_pods,
    "podRentInterruptable": _no_pods,
    "deployCpuPod": _no_pods,
    "podResume": _no_pods,
}
