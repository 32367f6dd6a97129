"""The keys of presets, and the endpoints that they make: ``models:`` of ``workers.yaml``, and the GPU service's file.

In ``workers.yaml`` a model has a ``source`` and ``presets``; in the GPU service's ``model_presets.yaml`` the presets are the
keys of the model. Both forms, and both spellings of keys, are allowed in both files.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from marshmallow import Schema, ValidationError, fields, validates_schema

from ownpod.configuration import template_fields
from ownpod.configuration.endpoints import AddedEndpointSchema
from ownpod.configuration.fields import (
    Keys,
    Parsed,
    choice,
    flag,
    listing,
    matching,
    nested,
    number,
    one_of,
    whole,
)
from ownpod.configuration.template_fields import EnvironmentField, VolumesField
from ownpod.configuration.templates import LimitFields, parse_pools
from ownpod.rules.presets import DIFFICULTIES, OutputMode, endpoint_id
from ownpod.rules.templates import Protocol, ScalerType
from ownpod.validation import NAME

DAY_S = 86_400

DEFAULT_START_TIMEOUT_S = 600
"""Seconds from the start of a session's worker to ready: models load meanwhile."""

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_PRESET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIFFICULTY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SOURCE = re.compile(
    rf"(?:hf://{_NAME}(?:/{_NAME})?(?:@[A-Za-z0-9][A-Za-z0-9._/-]{{0,199}})?"
    r"|(?:https?|s3|gs|gcs|az|abfs|sftp|ftp)://[!-~]{1,4000}|file:///[!-~]{0,4000}|file-service:[!-~]{0,4000})"
)
"""As :func:`ownpod.rules.models.check_source` has it, and a revision behind the repository of ``hf://``."""


class _Lifetime(StrEnum):
    READY = "ready"
    CREATED = "created"


_PROTOCOLS = {
    "runpod": Protocol.PULL,
    "pull": Protocol.PULL,
    "runpod-push": Protocol.PUSH,
    "push": Protocol.PUSH,
    "stdout": Protocol.CONTAINER,
}
"""How the workers of a preset get their tasks."""


class _Switch(fields.Field[Any]):
    """An object with keys, or ``false`` for none."""

    def __init__(self, schema: type[Keys], **options: Any) -> None:
        self._schema = schema
        must, problem = "must be ", schema.error_messages["type"]
        self._problem = f"must be false, or {problem.removeprefix(must)}"
        super().__init__(error_messages={"null": self._problem}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        if value is False:
            return None
        if not isinstance(value, dict):
            raise ValidationError(self._problem)
        return self._schema().load(value)


class LimitsSchema(LimitFields):
    error_messages = listing("memory", "cpus", "shm", "pids", "gpus")

    gpus = whole(0, 64, load_default=1)


class SessionSchema(Keys):
    error_messages = listing(
        *("idleTimeout", "maxLifetime", "queue", "startTimeout"),
        *("hardLifetime", "lifetimeFrom", "evictable"),
    )

    idle_timeout_s = whole(0, DAY_S, " of seconds, 0 for never,", data_key="idleTimeout")
    max_lifetime_s = whole(0, 30 * DAY_S, " of seconds, 0 for never,", data_key="maxLifetime")
    queue = whole(0, 10_000, " of tasks")
    start_timeout_s = whole(1, DAY_S, " of seconds", data_key="startTimeout")
    hard_lifetime = flag(data_key="hardLifetime", load_default=False)
    lifetime_from = choice(_Lifetime, data_key="lifetimeFrom", load_default=_Lifetime.READY)
    evictable = flag(load_default=False)


class OneOffSchema(Keys):
    error_messages = listing("image", "command", "entrypoint")

    image = template_fields.image()
    command = template_fields.command()
    entrypoint = template_fields.command()


class WorkersSchema(Keys):
    error_messages = listing("min", "max", "idleTimeout", "scalerType", "scalerValue")

    min = whole(0, 10_000, load_default=0)
    max = whole(0, 10_000, load_default=0)
    idle_timeout_s = whole(1, 3600, " of seconds", data_key="idleTimeout")
    scaler = choice(ScalerType, data_key="scalerType")
    scaler_value = number(1, 100_000, data_key="scalerValue")

    @validates_schema
    def _fit(self, values: dict[str, Any], **_: Any) -> None:
        if values.get("min", 0) > values.get("max", 0):
            raise ValidationError({"min": [f"must be at most max, which is {values['max']}"]})


class ResidencySchema(Keys):
    error_messages = listing("min", "weight", "pinned", "evictable")

    min = number(0, DAY_S)
    weight = number(0.01, 1000)
    pinned = flag()
    evictable = flag()


def _endpoint_field(name: str) -> fields.Field[Any]:
    """A key that a preset has in common with other endpoints."""
    found: fields.Field[Any] = AddedEndpointSchema._declared_fields[name]  # noqa: SLF001 - marshmallow has no other way
    return found


class PresetSchema(Keys):
    """A preset, in both spellings."""

    error_messages = listing(
        *("image", "command", "entrypoint", "env", "protocol", "output", "difficulty", "limits"),
        *("session", "oneOff", "workers", "residency", "volumes", "registry", "egress"),
        *("timeout", "ttl", "maxAttempts", "maxQueueDepth", "onDisconnect", "apiKeys"),
        "or docker_image, env_vars and class, the GPU service's words",
    )

    image = template_fields.image()
    docker_image = template_fields.image()
    command = template_fields.command(load_default=())
    entrypoint = template_fields.command(load_default=())
    env = EnvironmentField()
    env_vars = EnvironmentField()
    protocol = one_of(_PROTOCOLS)
    output = choice(OutputMode, load_default=OutputMode.AUTO)
    difficulty = matching(_DIFFICULTY, "the name of a difficulty, like low")
    class_ = matching(_DIFFICULTY, "the name of a difficulty, like low", data_key="class")
    limits = nested(LimitsSchema)
    session = _Switch(SessionSchema)
    one_off = _Switch(OneOffSchema, data_key="oneOff")
    workers = nested(WorkersSchema)
    residency = nested(ResidencySchema)
    volumes = VolumesField(load_default=())
    registry = template_fields.registry(load_default="")
    egress = flag(load_default=True)
    timeout_s = whole(5, 7 * DAY_S, " of seconds", data_key="timeout")
    ttl_ms = _endpoint_field("ttl_ms")
    max_attempts = whole(1, 100, data_key="maxAttempts", load_default=1)
    max_queue_depth = _endpoint_field("max_queue_depth")
    on_disconnect = _endpoint_field("on_disconnect")
    api_keys = _endpoint_field("api_keys")

    @validates_schema
    def _fit(self, values: dict[str, Any], **_: Any) -> None:
        for name, other in (("image", "docker_image"), ("env", "env_vars")):
            if name in values and other in values:
                raise ValidationError({other: [f"is another word for {name}: leave one out"]})
        if "difficulty" in values and "class_" in values:
            raise ValidationError({"class": ["is another word for difficulty: leave one out"]})
        image = values.get("image") or values.get("docker_image")
        if not image and not values.get("command"):
            problem = (
                "needs an `image`, for the engine docker, or a `command`, for the engine process"
            )
            raise ValidationError({"image": [problem]})
        if values.get("session", ...) is None and values.get("one_off", ...) is None:
            raise ValidationError({"session": ["and oneOff are false: one of them is needed"]})
        if values.get("protocol") is Protocol.CONTAINER and values.get("session"):
            raise ValidationError(
                {"session": ["needs the protocol runpod or runpod-push, not stdout"]}
            )


@dataclass(frozen=True)
class Difficulties:
    """The difficulties of a configuration: their pools, and where a task of each may also run."""

    pools: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DIFFICULTIES))
    spill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spill_after: Mapping[str, int] = field(default_factory=dict)


class DifficultySchema(Keys):
    error_messages = listing("pools", "spill", "spillAfter")

    pools = Parsed(parse_pools, "a list of pools, GPU names or least memories, like 40GB")
    spill = Parsed(parse_pools, "a list of difficulties", load_default=())
    spill_after_s = whole(0, DAY_S, " of seconds", data_key="spillAfter", load_default=0)


def parse_difficulties(content: Any) -> Difficulties:
    """The difficulties of ``difficulties:``, low and high included. Raises: ValidationError."""
    if content is None:
        return Difficulties()
    if not isinstance(content, dict):
        raise ValidationError(
            "must be an object of difficulties by name, like `low: {spill: [high]}`"
        )
    pools, spill, after = dict(DIFFICULTIES), {}, {}
    for name, given in content.items():
        if not isinstance(name, str) or not _DIFFICULTY.fullmatch(name):
            problem = "a difficulty's name must be letters, digits, dots, - and _, at most 63"
            raise ValidationError({str(name)[:80]: [problem]})
        values = _at(name, DifficultySchema(), {} if given is None else given)
        pools[name] = values.get("pools", (name,))
        spill[name], after[name] = values["spill"], values["spill_after_s"]
        if after[name] and not spill[name]:
            raise ValidationError({name: {"spillAfter": ["belongs to a difficulty with spill"]}})
    for name, others in spill.items():
        for other in others:
            if other not in pools or other == name:
                allowed = ", ".join(sorted(pools.keys() - {name}))
                raise ValidationError(
                    {
                        name: {
                            "spill": [
                                f"{other!r} is no other difficulty: must be some of {allowed}"
                            ]
                        }
                    }
                )
    return Difficulties(
        pools,
        {name: others for name, others in spill.items() if others},
        {name: seconds for name, seconds in after.items() if seconds},
    )


@dataclass(frozen=True)
class GivenPreset:
    """A preset as it is written. ``model``: the values of its model, and ``values`` its own, both loaded."""

    model_id: str
    name: str
    model: Mapping[str, Any] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    place: str

    @property
    def endpoint_id(self) -> str:
        """The id of its endpoint."""
        return endpoint_id(self.model_id, self.name)


class ModelSchema(Keys):
    error_messages = listing("source", "revision", "layout", "offline", "presets")

    source = matching(
        _SOURCE,
        "hf://owner/name[@revision], s3://..., gs://..., https://..., file:///... or file-service:",
    )
    revision = matching(re.compile(r"[A-Za-z0-9._/-]{1,200}"), "a commit, tag or branch")
    flat = one_of({"flat": True, "cache": False}, data_key="layout")
    offline = flag()
    presets = fields.Raw(required=True)

    @validates_schema
    def _fit(self, values: dict[str, Any], **_: Any) -> None:
        source = values.get("source", "")
        if "revision" in values and (not source.startswith("hf://") or "@" in source):
            problem = "belongs to a source hf://owner/name without another revision"
            raise ValidationError({"revision": [problem]})


def parse_models(content: Any) -> Iterator[GivenPreset]:
    """The presets of ``models:``, in the order of the file. Raises: ValidationError, with the place within."""
    if content is None:
        return
    if not isinstance(content, dict):
        raise ValidationError("must be an object of models by id")
    for model_id, given in content.items():
        if not isinstance(model_id, str) or not _MODEL.fullmatch(model_id):
            problem = "a model's id must be a text of letters, digits and ._:/@+-, at most 200"
            raise ValidationError({str(model_id)[:80]: [problem]})
        if not isinstance(given, dict) or not given:
            raise ValidationError({model_id: ["must be an object with presets"]})
        own = "presets" in given or "source" in given
        model = _at(model_id, ModelSchema(), given if own else {"presets": given})
        presets = model.pop("presets")
        place = f"{model_id}.presets" if own else model_id
        if not isinstance(presets, dict) or not presets:
            raise ValidationError({place: ["must be an object of presets by name"]})
        for name, values in presets.items():
            if not isinstance(name, str) or not _PRESET.fullmatch(name):
                problem = (
                    "a preset's name must be a text of letters, digits, dots, - and _, at most 64"
                )
                raise ValidationError({place: {str(name)[:80]: [problem]}})
            loaded = _at(f"{place}.{name}", PresetSchema(), values)
            found = GivenPreset(model_id, name, model, loaded, f"{place}.{name}")
            if not NAME.fullmatch(found.endpoint_id):
                raise ValidationError({found.place: ["its id is too long: at most 255 characters"]})
            yield found


def _at(place: str, schema: Schema, values: Any) -> dict[str, Any]:
    """The loaded values; an error has the place before its own."""
    try:
        loaded: dict[str, Any] = schema.load(values)
    except ValidationError as error:
        raise ValidationError({place: error.normalized_messages()}) from None
    return loaded
