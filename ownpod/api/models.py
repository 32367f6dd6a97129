"""Routes of models: which hosts have them, and what hosts are to fetch, remove and keep."""

from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest

from ownpod.api.services import answer, services
from ownpod.management.models import ModelCalls

blueprint = Blueprint("models", __name__)


def _calls() -> ModelCalls:
    return services().models


@blueprint.get("/api/models")
def listed() -> Response:
    """All models of presets and hosts, with the progress of each host."""
    found = _calls().all()
    return answer({"models": found, "total": len(found)})


@blueprint.post("/api/models/<path:model_id>/fetch")
def fetch(model_id: str) -> Response:
    """Asks a host, or all, to fetch a model."""
    hosts = _calls().fetch(model_id, _host())
    return _done(model_id, hosts, "is being fetched" if hosts else "is fetched by no host")


@blueprint.delete("/api/models/<path:model_id>")
def remove(model_id: str) -> Response:
    """Asks a host, or all that have it, to remove a model."""
    hosts = _calls().remove(model_id, _host())
    return _done(model_id, hosts, "is being removed" if hosts else "is on no host")


@blueprint.post("/api/models/<path:model_id>/pin")
def pin(model_id: str) -> Response:
    """Keeps a model on the hosts that have it."""
    _calls().pin(model_id, pinned=True)
    return _done(model_id, [], "is pinned")


@blueprint.delete("/api/models/<path:model_id>/pin")
def unpin(model_id: str) -> Response:
    """Lets a model give way to others again."""
    _calls().pin(model_id, pinned=False)
    return _done(model_id, [], "is not pinned")


def _host() -> str:
    """The host that the body or the query names; "": all."""
    body: Any = request.get_json(silent=True) if request.data else {}
    if not isinstance(body, dict):
        raise BadRequest('the body must be a JSON object, like {"host": "gpu1"}')
    host = body.get("host", request.args.get("host", ""))
    if not isinstance(host, str):
        raise BadRequest("host must be the name of a host")
    return host


def _done(model_id: str, hosts: list[str], words: str) -> Response:
    where = f" on {', '.join(hosts)}" if hosts else ""
    return answer(
        {
            "success": True,
            "model_id": model_id,
            "hosts": hosts,
            "message": f"model {model_id} {words}{where}",
        }
    )
