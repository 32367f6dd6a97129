"""The keys of an endpoint whose workers OwnPod starts: its template, its devices, and how many workers it has.

Names, limits and defaults are those of RunPod's REST API where RunPod has them.
"""

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, post_load, validates_schema

from ownpod.configuration import template_fields
from ownpod.configuration.fields import Keys, Parsed, choice, flag, listing, nested, number, whole
from ownpod.configuration.hours import HoursField, MomentField, TimeZoneField, check_hours
from ownpod.configuration.template_fields import EnvironmentField, VolumesField
from ownpod.rules import sizes
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

INIT_TIMEOUT = "RUNPOD_INIT_TIMEOUT"
"""RunPod's variable for ``initTimeout``, which a template may have in its ``env`` instead."""

_POOL = re.compile(r"[!-+\--~](?:[ -+\--~]{0,126}[!-+\--~])?")
"""Visible ASCII without a comma, with spaces within, because names of GPUs have them."""


def _size(low: int, **options: Any) -> Parsed:
    """A size in bytes, from ``low`` MiB on."""
    return Parsed(lambda value: sizes.parse(value, low), sizes.allowed(low), **options)


def parse_pools(value: Any) -> tuple[str, ...]:
    """The pools of a list, or of one text with commas. Raises: ValueError."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list) or not 1 <= len(value) <= 100:
        raise ValueError
    if not all(isinstance(pool, str) and _POOL.fullmatch(pool) for pool in value):
        raise ValueError
    return tuple(dict.fromkeys(value))


class LimitFields(Keys):
    """The limits of one worker."""

    memory = _size(6)
    cpus = number(0.01, 1024)
    shm = _size(1)
    pids = whole(1, 4_194_304)


class LimitsSchema(LimitFields):
    error_messages = listing("memory", "cpus", "shm", "pids")

    @post_load
    def _make(self, values: dict[str, Any], **_: Any) -> Limits:
        return limits_of(values)


def limits_of(values: Mapping[str, Any]) -> Limits:
    """The limits from values that :class:`LimitFields` has loaded."""
    return Limits(
        memory_bytes=values.get("memory"),
        cpus=values.get("cpus"),
        shm_bytes=values.get("shm"),
        pids=values.get("pids"),
    )


class GpuSchema(Keys):
    error_messages = listing("pools", "count")

    pools = Parsed(
        parse_pools,
        "a list of pools, GPU names or GPU ids in order of preference, or one text with commas",
        load_default=(),
    )
    count = whole(1, 64, load_default=1)

    @post_load
    def _make(self, values: dict[str, Any], **_: Any) -> GpuNeed:
        return GpuNeed(pools=values["pools"], count=values["count"])


_INIT_S = (1, 86_400)


class TemplateSchema(Keys):
    error_messages = listing(
        *("image", "command", "entrypoint", "env", "limits", "protocol", "initTimeout"),
        *("evictable", "pinned", "weight", "residency"),
        *("volumes", "registry", "egress"),
    )

    image = template_fields.image()
    command = template_fields.command(load_default=())
    entrypoint = template_fields.command(load_default=())
    env = EnvironmentField(load_default=dict)
    limits = nested(LimitsSchema, load_default=Limits())
    protocol = choice(Protocol, without=Protocol.CONTAINER)
    init_timeout_s = whole(*_INIT_S, " of seconds", data_key="initTimeout")
    evictable = flag(load_default=Sharing.evictable)
    pinned = flag(load_default=Sharing.pinned)
    weight = number(0.01, 1000, load_default=Sharing.weight)
    residency_s = number(0, 86_400, data_key="residency", load_default=Sharing.residency_s)
    volumes = VolumesField(load_default=())
    registry = template_fields.registry(load_default="")
    egress = flag(load_default=True)

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
            egress=values["egress"],
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

    template = nested(TemplateSchema)
    gpu = nested(GpuSchema)
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
