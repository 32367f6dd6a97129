"""Custom tasks: one-off tasks whose image, command and variables come from the client. Mounts, network and devices never do."""

import re
from dataclasses import replace
from typing import Any

from ownpod.api.services import Services, services
from ownpod.configuration.custom import CUSTOM
from ownpod.configuration.preset_endpoints import custom_images
from ownpod.errors import BadRequest, OwnPodError
from ownpod.rules import secrets
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.images import allowed, normalise
from ownpod.rules.models import ModelSource
from ownpod.rules.templates import ManagedSpec

RESERVED = re.compile(
    r"(?:RUNPOD_|OWNPOD_|NVIDIA_|CUDA_|LD_).*|PATH|TASK_ID|MODEL_PATH|METADATA_.*"
)
"""Names of variables that OwnPod, the engine or the driver of a GPU give a meaning."""


class CustomTasksOff(OwnPodError):
    """Custom tasks are off: OWNPOD_CUSTOM_TASKS=true allows them, with an admin key or one of OWNPOD_CUSTOM_TASK_KEYS."""

    http_status = 403
    code = "custom_tasks_off"


def check_allowed() -> None:
    """Checks that custom tasks are on. Raises: CustomTasksOff."""
    if not services().settings.custom_tasks:
        raise CustomTasksOff


def endpoint_and_spec(body: dict[str, Any]) -> tuple[Endpoint, ManagedSpec]:
    """The endpoint of custom tasks, and what the container of this one is started from.

    Raises:
        BadRequest: the image is not allowed, or a variable or the model cannot be used.
    """
    svc = services()
    endpoint = svc.registry.endpoint(CUSTOM)
    preset = endpoint.preset
    if preset is None or preset.one_off is None:
        raise CustomTasksOff
    image, env = body["docker_image"], body["env_vars"] or {}
    _check_image(svc, image)
    _check_variables(env)
    template = replace(
        preset.one_off.template,
        image=image,
        command=tuple(body["command"] or ()),
        env=dict(env),
        model=_model(svc, body["model_id"]),
    )
    return endpoint, replace(preset.one_off, template=template)


def _check_image(svc: Services, image: str) -> None:
    try:
        reference = normalise(image)
    except ValueError as error:
        raise BadRequest(f"docker_image: {error}") from None
    patterns = custom_images(svc.settings, svc.registry.presets())
    if not allowed(reference, patterns):
        raise BadRequest(
            f"docker_image: {image!r} is not allowed: OWNPOD_IMAGES must have a pattern for it"
        )


def _check_variables(env: dict[str, str]) -> None:
    for name, value in env.items():
        if RESERVED.fullmatch(name.upper()):
            raise BadRequest(f"env_vars: {name!r} is a name that OwnPod or the engine gives itself")
        if secrets.secrets_in({name: value}) or secrets.has_wrong_reference(value):
            # Otherwise a client could read the secrets of the operator's templates.
            raise BadRequest(f"env_vars: {name} must not refer to a secret")


def _model(svc: Services, model_id: str | None) -> ModelSource | None:
    if model_id is None:
        return None
    for endpoint in svc.registry.presets():
        if endpoint.preset is not None and endpoint.preset.model_id == model_id:
            spec = endpoint.managed
            return None if spec is None else spec.template.model
    raise BadRequest(f"model_id: {model_id!r} is no model of a preset")
