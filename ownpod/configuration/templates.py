"""The keys of an endpoint whose workers OwnPod starts: its template, its devices, and how many workers it has.

Names, limits and defaults are those of RunPod's REST API where RunPod has them.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validates_schema

from ownpod.configuration.fields import Parsed, choice, flag, number, whole
from ownpod.configuration.hours import HoursField, MomentField, TimeZoneField, check_hours
from ownpod.configuration.template_fields import (
    MOST_BYTES,
    EnvironmentField,
    VolumesField,
    as_text,
    can_be_passed,
)
from ownpod.rules.templates import (
    DEFAULT_IDLE_TIMEOUT_S,
    DEFAULT_INIT_TIMEOUT_S,
    DEFAULT_WORKERS_MAX,
    GpuNeed,
    Limits,
    ManagedSpec,
    Protocol,
    ScalerType,
    Scaling,
    Sharing,
    Template,
)
from ownpod.validation import NAME

MIB = 1024**2
LARGEST_SIZE = 1024**5
"""Bytes of the largest size that is accepted, 1 PiB."""

MOST_WORDS = 1000
"""Maximum number of words of a command."""

INIT_TIMEOUT = "RUNPOD_INIT_TIMEOUT"
"""RunPod's variable for ``initTimeout``, which a template may have in its ``env`` instead."""

_SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,6})?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_POOL = re.compile(r"[!-+\--~](?:[ -+\--~]{0,126}[!-+\--~])?")
"""Visible ASCII without a comma, with spaces within, because names of GPUs have them."""

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?=.{{1,512}}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""An image's reference, from the grammar of the OCI distribution specification: it cannot begin with a dash, so no
program reads it as an option."""


def _size(low: int, **options: Any) -> Parsed:
    """A size in bytes, from ``low`` MiB on."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError
        if isinstance(value, str):
            match = _SIZE.fullmatch(value.strip())
            if match is None:
                raise ValueError
            power = " kmgt".index(match[2].lower() or " ")
            value = float(match[1]) * 1024**power
        if not low * MIB <= value <= LARGEST_SIZE:
            raise ValueError
        return int(value)

    return Parsed(
        parse, f"a size such as 512m or 16g, or a number of bytes, at least {low}m", **options
    )


def _words(value: Any) -> tuple[str, ...]:
    """A command's words. A single text is split as a shell would split it."""
    if isinstance(value, str):
        value = shlex.split(value)
    if not isinstance(value, list) or len(value) > MOST_WORDS:
        raise ValueError
    words = tuple(as_text(word) for word in value)
    if not all(map(can_be_passed, words)) or sum(map(len, words)) > MOST_BYTES:
        raise ValueError
    return words


def _image(value: Any) -> str:
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise ValueError
    return value


def _registry(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError
    return value


def _pools(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list) or not 1 <= len(value) <= 100:
        raise ValueError
    if not all(isinstance(pool, str) and _POOL.fullmatch(pool) for pool in value):
        raise ValueError
    return tuple(dict.fromkeys(value))


class _Keys(Schema):
    """An object whose errors list its keys. The class that inherits sets ``error_messages`` with :func:`_listing`."""

    class Meta:
        unknown = RAISE


def _listing(*names: str) -> dict[str, str]:
    keys = ", ".join(names)
    return {
        "unknown": f"is not a key here; the keys are {keys}",
        "type": f"must be an object with the keys {keys}",
    }


def _nested(schema: type[_Keys], **options: Any) -> fields.Nested:
    problem = schema.error_messages["type"]
    return fields.Nested(schema, error_messages={"null": problem}, **options)


class LimitsSchema(_Keys):
    error_messages = _listing("memory", "cpus", "shm", "pids")

    memory = _size(6)
    cpus = number(0.01, 1024)
    shm = _size(1)
    pids = whole(1, 4_194_304)

    @post_load
    def _make(self, values: dict[str, Any], **_: Any) -> Limits:
        return Limits(
            memory_bytes=values.get("memory"),
            cpus=values.get("cpus"),
            shm_bytes=values.get("shm"),
            pids=values.get("pids"),
        )


class GpuSchema(_Keys):
    error_messages = _listing("pools", "count")

    pools = Parsed(
        _pools,
        "a list of pools, GPU names or GPU ids in order of preference, or one text with commas",
        load_default=(),
    )
    count = whole(1, 64, load_default=1)

    @post_load
    def _make(self, values: dict[str, Any], **_: Any) -> GpuNeed:
        return GpuNeed(pools=values["pools"], count=values["count"])


_INIT_S = (1, 86_400)
_COMMAND = "a list of texts, or one text that a shell would split into words"


class TemplateSchema(_Keys):
    error_messages = _listing(
        *("image", "command", "entrypoint", "env", "limits", "protocol", "initTimeout"),
        *("evictable", "pinned", "weight", "residency"),
        *("volumes", "registry"),
    )

    image = Parsed(_image, "the reference of an image, for example runpod/worker-x:1.0")
    command = Parsed(_words, _COMMAND, load_default=())
    entrypoint = Parsed(_words, _COMMAND, load_default=())
    env = EnvironmentField(load_default=dict)
    limits = _nested(LimitsSchema, load_default=Limits())
    protocol = choice(Protocol)
    init_timeout_s = whole(*_INIT_S, " of seconds", data_key="initTimeout")
    evictable = flag(load_default=Sharing.evictable)
    pinned = flag(load_default=Sharing.pinned)
    weight = number(0.01, 1000, load_default=Sharing.weight)
    residency_s = number(0, 86_400, data_key="residency", load_default=Sharing.residency_s)
    volumes = VolumesField(load_default=())
    registry = Parsed(
        _registry, "the id of registry credentials, see `ownpod registries`", load_default=""
    )

    @post_load
    def _make(self, values: dict[str, Any], **_: Any) -> Template:
        if not values.get("image") and not values["command"]:
            raise ValidationError(
                "needs an `image`, for the engine docker, or a `command`, for the engine process"
            )
        init_timeout_s = values.get("init_timeout_s") or _init_timeout_of(values["env"])
        return Template(
            image=values.get("image"),
            entrypoint=values["entrypoint"],
            command=values["command"],
            env=values["env"],
            limits=values["limits"],
            protocol=values.get("protocol", Protocol.PULL),
            init_timeout_s=init_timeout_s,
            sharing=Sharing(
                evictable=values["evictable"],
                pinned=values["pinned"],
                weight=values["weight"],
                residency_s=values["residency_s"],
            ),
            volumes=values["volumes"],
            registry=values["registry"],
        )


def _init_timeout_of(env: Mapping[str, str]) -> int:
    """Seconds of RunPod's variable, or the default. Raises: ValidationError."""
    text = env.get(INIT_TIMEOUT)
    if text is None:
        return DEFAULT_INIT_TIMEOUT_S
    low, high = _INIT_S
    if not re.fullmatch(r"[0-9]{1,5}", text) or not low <= int(text) <= high:
        problem = f"must be a whole number of seconds from {low} to {high}"
        raise ValidationError({"env": {INIT_TIMEOUT: [problem]}})
    return int(text)


class ManagedSchema(Schema):
    """The keys of an endpoint with a template, all of them optional."""

    template = _nested(TemplateSchema)
    gpu = _nested(GpuSchema)
    workers_min = whole(0, 10_000, data_key="workersMin")
    workers_max = whole(0, 10_000, data_key="workersMax")
    idle_timeout_s = whole(1, 3600, " of seconds", data_key="idleTimeout")
    scaler = choice(ScalerType, data_key="scalerType")
    scaler_value = number(1, 100_000, data_key="scalerValue")
    hours = HoursField()
    timezone = TimeZoneField()
    expires_ms = MomentField(data_key="expires")
    auto_rollback = flag(data_key="autoRollback")

    @validates_schema
    def _fit(self, values: dict[str, Any], **_: Any) -> None:
        if "template" not in values:
            for name in _SCALING:
                if name in values:
                    key = self.fields[name].data_key or name
                    problem = "has no effect without a `template`, from which OwnPod starts workers"
                    raise ValidationError({key: [problem]})
        most = values.get("workers_max", DEFAULT_WORKERS_MAX)
        if values.get("workers_min", 0) > most:
            problem = f"must be at most workersMax, which is {most}"
            raise ValidationError({"workersMin": [problem]})
        if "timezone" in values and not values.get("hours"):
            raise ValidationError({"timezone": ["has no effect without `hours`"]})
        check_hours(values.get("hours", ()), most)


_SCALING = (
    *("gpu", "workers_min", "workers_max", "idle_timeout_s", "scaler", "scaler_value"),
    *("hours", "timezone", "expires_ms"),
    "auto_rollback",
)
"""Fields that need a template."""


def managed_spec(values: dict[str, Any]) -> ManagedSpec | None:
    """The spec from values that :class:`ManagedSchema` has loaded; None: they have no template."""
    if "template" not in values:
        return None
    scaling = Scaling(
        workers_min=values.get("workers_min", 0),
        workers_max=values.get("workers_max", DEFAULT_WORKERS_MAX),
        idle_timeout_s=values.get("idle_timeout_s", DEFAULT_IDLE_TIMEOUT_S),
        scaler=values.get("scaler", Scaling.scaler),
        scaler_value=values.get("scaler_value", Scaling.scaler_value),
    )
    return ManagedSpec(
        values["template"],
        scaling,
        values.get("gpu"),
        hours=values.get("hours", ()),
        timezone=values.get("timezone", ""),
        expires_ms=values.get("expires_ms"),
        auto_rollback=values.get("auto_rollback", ManagedSpec.auto_rollback),
    )
