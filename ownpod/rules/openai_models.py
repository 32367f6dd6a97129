"""The list of models that OpenAI's clients read. Pure."""

import json
from collections.abc import Mapping

NAMES = ("OPENAI_SERVED_MODEL_NAME_OVERRIDE", "SERVED_MODEL_NAME", "MODEL_NAME")
"""Variables of RunPod's workers with the name under which they serve their model; the first one counts."""

OWNER = "ownpod"
"""``owned_by`` of a model in a list that OwnPod has made."""

REFERENCE = "{{"
"""Is in a value that refers to a secret, as RunPod writes it."""


def is_model_list(body: str) -> bool:
    """Whether a JSON text is a list of models. Clients show nothing of any other answer, and no error."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        return False
    return all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in found["data"])


def is_made(body: str) -> bool:
    """Whether a list of models is one of :func:`list_of`. ``body``: JSON text of a list of models."""
    return [model.get("owned_by") for model in json.loads(body)["data"]] == [OWNER]


def list_of(env: Mapping[str, str]) -> str | None:
    """The list of a worker that has none, from the environment of its template; None: that names no model."""
    name = next((env[name] for name in NAMES if env.get(name)), None)
    if name is None or REFERENCE in name:
        return None
    model = {"id": name, "object": "model", "created": 0, "owned_by": OWNER}
    return json.dumps({"object": "list", "data": [model]})
