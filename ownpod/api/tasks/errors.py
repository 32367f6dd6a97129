"""The shape of errors below ``/api``: ``{"detail", "error", "code"}``, because the GPU service's clients read ``detail`` and
OwnPod's read ``error``.
"""

import json
from typing import Any

from flask import Flask, Response, request

PREFIXES = ("/api/", "/health/")
"""Beginnings of the paths of tasks, sessions and models, and of the resources."""

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    501: "not_installed",
    503: "unavailable",
}
"""The word of an error that has none of its own, by its status."""

RETRY_AFTER_S = {"full": "10", "queue_full": "5"}
"""Whole seconds for ``Retry-After`` of a refusal for want of a device, or of a place in a queue."""


def shape_errors(app: Flask) -> None:
    """Gives every error below :data:`PREFIXES` its shape, wherever it was refused: by a view, the check of keys, or the routing."""
    app.after_request(_shape)


def _shape(response: Response) -> Response:
    if response.status_code < 400 or not request.path.startswith(PREFIXES):
        return response
    body = _body(response)
    text = body.get("detail") or body.get("error") or response.status
    code = body.get("code") or CODES.get(response.status_code, "error")
    response.set_data(json.dumps({**body, "detail": text, "error": text, "code": code}))
    response.mimetype = "application/json"
    if code in RETRY_AFTER_S:
        response.headers["Retry-After"] = RETRY_AFTER_S[code]
    return response


def _body(response: Response) -> dict[str, Any]:
    if response.is_streamed:
        return {}
    try:
        found = json.loads(response.get_data())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
