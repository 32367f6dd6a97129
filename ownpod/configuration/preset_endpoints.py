"""The endpoints that presets make: each is an endpoint with a template, for sessions and one-off tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ownpod.configuration.presets import (
    DEFAULT_START_TIMEOUT_S,
    Difficulties,
    GivenPreset,
)
from ownpod.configuration.templates import limits_of
from ownpod.errors import ConfigurationError
from ownpod.rules.devices import Difficulties as DeviceDifficulties
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.images import normalise
from ownpod.rules.models import ModelSource
from ownpod.rules.presets import LOW, Preset, SessionLimits
from ownpod.rules.templates import (
    DEFAULT_IDLE_TIMEOUT_S,
    GpuNeed,
    Limits,
    ManagedSpec,
    Protocol,
    Scaling,
    Sharing,
    Template,
)
from ownpod.settings import Settings

FILE_SERVICE = "file-service:"
"""The source of a model that names none, where there is a file service."""


def preset_endpoint(
    given: GivenPreset, difficulties: Difficulties, settings: Settings, where: str
) -> Endpoint:
    """The endpoint of a preset.

    Args:
        given: the preset as it is written.
        difficulties: those of the configuration.
        settings: what the preset's own values default to.
        where: the file, and the place of its presets, for the error.

    Raises:
        ConfigurationError: its difficulty does not exist.
    """
    values = given.values
    difficulty = values.get("difficulty") or values.get("class_") or LOW
    if difficulty not in difficulties.pools:
        key = "difficulty" if "difficulty" in values else "class"
        allowed = ", ".join(sorted(difficulties.pools))
        raise ConfigurationError(
            f"{where}.{given.place}.{key}: {difficulty!r} is unknown: must be one of {allowed}"
        )
    spec = _spec(given, settings)
    one_off = None if _only_sessions(values) else _one_off(spec, values.get("one_off") or {})
    preset = Preset(
        given.model_id,
        given.name,
        difficulty=difficulty,
        output=values["output"],
        session=None if _only_tasks(values) else _session(values.get("session") or {}, settings),
        spill=difficulties.spill,
        spill_after=difficulties.spill_after,
        difficulties=difficulties.pools,
    )
    timeout_s = values.get("timeout_s", settings.task_timeout_s)
    return Endpoint(
        id=given.endpoint_id,
        workers=(),
        execution_timeout_ms=timeout_s * 1000,
        ttl_ms=values["ttl_ms"],
        max_attempts=values["max_attempts"],
        max_queue_depth=values["max_queue_depth"],
        on_disconnect=values["on_disconnect"],
        api_keys=tuple(values["api_keys"]),
        managed=preset.for_difficulty(spec),
        preset=replace(preset, one_off=one_off and preset.for_difficulty(one_off)),
    )


def _only_sessions(values: Mapping[str, Any]) -> bool:
    """Whether a preset has no one-off tasks: ``oneOff`` is false, or its image speaks RunPod's protocol."""
    speaks = values.get("protocol") in {Protocol.PULL, Protocol.PUSH}
    return values.get("one_off", None if speaks else ...) is None


def _only_tasks(values: Mapping[str, Any]) -> bool:
    """Whether a preset has no sessions: ``session`` is false, or its image only writes to its standard output."""
    writes = values.get("protocol") is Protocol.CONTAINER
    return values.get("session", None if writes else ...) is None


def _spec(given: GivenPreset, settings: Settings) -> ManagedSpec:
    """How the workers of sessions are started, without their difficulty."""
    values = given.values
    limits = values.get("limits", {})
    count = limits.get("gpus", 1)
    session, residency = values.get("session") or {}, values.get("residency", {})
    protocol = values.get("protocol", Protocol.PULL)
    template = Template(
        image=values.get("image") or values.get("docker_image"),
        entrypoint=values["entrypoint"],
        command=values["command"],
        env=values.get("env", values.get("env_vars", {})),
        limits=_limits(limits, settings),
        protocol=Protocol.PULL if protocol is Protocol.CONTAINER else protocol,
        init_timeout_s=session.get("start_timeout_s", DEFAULT_START_TIMEOUT_S),
        volumes=values["volumes"],
        sharing=Sharing(
            evictable=residency.get("evictable", Sharing.evictable),
            pinned=residency.get("pinned", Sharing.pinned),
            weight=residency.get("weight", Sharing.weight),
            residency_s=residency.get("min", Sharing.residency_s),
        ),
        registry=values["registry"],
        egress=values["egress"],
        model=_model(given, settings),
    )
    workers = values.get("workers", {})
    scaling = Scaling(
        workers_min=workers.get("min", 0),
        workers_max=workers.get("max", 0),
        idle_timeout_s=workers.get("idle_timeout_s", DEFAULT_IDLE_TIMEOUT_S),
        scaler=workers.get("scaler", Scaling.scaler),
        scaler_value=workers.get("scaler_value", Scaling.scaler_value),
    )
    return ManagedSpec(template, scaling, GpuNeed(count=count) if count else None)


def _limits(given: Mapping[str, Any], settings: Settings) -> Limits:
    limits = limits_of(given)
    return replace(
        limits,
        memory_bytes=limits.memory_bytes or settings.task_memory,
        cpus=limits.cpus or settings.task_cpus,
    )


def _model(given: GivenPreset, settings: Settings) -> ModelSource | None:
    """The model of a preset. One without a ``source`` comes from the file service, if there is one. Otherwise it is what the
    directory of models has under its id, as in the GPU service.
    """
    source = given.model.get("source") or (FILE_SERVICE if settings.file_service_url else "")
    if not source and settings.models_dir is None:
        return None
    base, revision = source, given.model.get("revision", "")
    if source.startswith("hf://"):
        base, _, written = source.partition("@")
        revision = revision or written
    return ModelSource(
        given.model_id,
        base,
        revision,
        flat=given.model.get("flat", False),
        offline=given.model.get("offline", True),
    )


def _session(given: Mapping[str, Any], settings: Settings) -> SessionLimits:
    return SessionLimits(
        idle_timeout_s=given.get("idle_timeout_s", settings.session_idle_s),
        max_lifetime_s=given.get("max_lifetime_s", settings.session_lifetime_s),
        queue=given.get("queue", settings.session_queue),
        hard_lifetime=given.get("hard_lifetime", False),
        from_created=given.get("lifetime_from") == "created",
        evictable=given.get("evictable", False),
    )


def _one_off(spec: ManagedSpec, given: Mapping[str, Any]) -> ManagedSpec:
    """How the container of a one-off task is started: as a session's, but for the preset's ``oneOff``."""
    template = replace(spec.template, protocol=Protocol.CONTAINER, **given)
    return replace(spec, template=template, scaling=Scaling(workers_max=0))


def check_presets(endpoints: Iterable[Endpoint], settings: Settings) -> None:
    """Checks the settings against the presets. Raises: ConfigurationError, if a device has a difficulty that no preset has."""
    presets = [endpoint.preset for endpoint in endpoints if endpoint.preset is not None]
    if not presets:
        return
    allowed = {name for preset in presets for name in preset.difficulties}
    for name in settings.difficulties.values():
        if name not in allowed:
            raise ConfigurationError(
                f"OWNPOD_DIFFICULTIES: the difficulty {name!r} is unknown: must be one of "
                f"{', '.join(sorted(allowed))}, or be defined under `difficulties:`"
            )
    if settings.task_timeout_s > settings.max_task_timeout_s:
        raise ConfigurationError(
            f"OWNPOD_TASK_TIMEOUT_S={settings.task_timeout_s}: must be at most OWNPOD_MAX_TASK_TIMEOUT_S, which is "
            f"{settings.max_task_timeout_s}"
        )


def device_difficulties(settings: Settings, endpoints: Iterable[Endpoint]) -> DeviceDifficulties:
    """What the presets among the endpoints mean for the devices of this host."""
    presets = [endpoint.preset for endpoint in endpoints if endpoint.preset is not None]
    claimed = (
        pool
        for preset in presets
        for name, pools in preset.difficulties.items()
        for pool in pools
        if pool != name
    )
    return DeviceDifficulties(
        settings.difficulties, has_presets=bool(presets), claimed=tuple(dict.fromkeys(claimed))
    )


def allowed_images(patterns: Sequence[str], endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """The patterns, and exactly the images that presets name: the operator has chosen those, so no list need repeat them."""
    presets = [endpoint for endpoint in endpoints if endpoint.preset is not None]
    specs = [spec for e in presets for spec in (e.managed, e.preset and e.preset.one_off) if spec]
    named = (image for spec in specs if (image := _complete(spec.template.image)))
    return tuple(dict.fromkeys((*patterns, *named)))


def custom_images(settings: Settings, endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Patterns of the images that a client may name for a task: those of ``OWNPOD_IMAGES`` where it is set, and the presets'.

    The default of ``OWNPOD_IMAGES``, all images, is for templates, which only operators write.
    """
    return allowed_images(settings.images if settings.images_given else (), endpoints)


def _complete(image: str | None) -> str:
    """The pattern of exactly one image; "": it is no reference."""
    try:
        return str(normalise(image)) if image else ""
    except ValueError:
        return ""
