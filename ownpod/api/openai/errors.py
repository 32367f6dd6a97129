"""The shape of OwnPod's own errors below ``/v2/{endpoint}/openai``: OpenAI's, with the headers by which its clients repeat requests.

OpenAI's clients repeat a request twice after 408, 409, 429 and 5xx, unless ``x-should-retry`` says otherwise, and wait for
``Retry-After`` (openai-python, ``_base_client.py``).
"""

import json
from typing import Any

from flask import Flask, Response, request

from ownpod.api.management.v2 import is_managing
from ownpod.rules.openai_replies import error_body

RETRY_AFTER_S = {429: "5", 503: "2"}
"""Whole seconds for ``Retry-After`` of refusals before a job was made, by the status. Repeating others changes nothing."""

CODES = {401: "invalid_api_key"}


def shape_errors(app: Flask) -> None:
    """Gives every error below these paths its shape, wherever it was refused: by a view, the check of keys, or the routing."""
    app.after_request(_shape)


def is_below(path: str) -> bool:
    """Whether a path is one of OpenAI's clients."""
    parts = path.split("/", 4)
    return parts[1:2] == ["v2"] and parts[3:4] == ["openai"] and not is_managing(path)


def _shape(response: Response) -> Response:
    if response.status_code < 400 or response.is_streamed or not is_below(request.path):
        return response
    body, status = _body(response), response.status_code
    if not isinstance(body.get("error"), dict):
        text = body.get("detail") or body.get("error") or response.status
        code = body.get("reason") or body.get("code") or CODES.get(status)
        response.set_data(error_body(status, str(text), code=code and str(code).lower()))
        response.mimetype = "application/json"
    if "x-should-retry" in response.headers:
        return response
    repeat = status in RETRY_AFTER_S
    response.headers["x-should-retry"] = "true" if repeat else "false"
    if repeat:
        response.headers.setdefault("Retry-After", RETRY_AFTER_S[status])
    return response


def _body(response: Response) -> dict[str, Any]:
    try:
        found = json.loads(response.get_data())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
