"""The endpoint of custom tasks, which clients make from images of their own where the settings allow that."""

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.jobs import DEFAULT_TTL_MS
from ownpod.rules.presets import LOW, Preset
from ownpod.rules.templates import GpuNeed, Limits, ManagedSpec, Protocol, Scaling, Template
from ownpod.settings import Settings

CUSTOM = "custom"
"""The id of the endpoint, of its model and of its preset."""


def custom_endpoint(settings: Settings) -> Endpoint:
    """The endpoint of custom tasks: one-off tasks on one device, which are lost with their container."""
    template = Template(
        limits=Limits(memory_bytes=settings.task_memory, cpus=settings.task_cpus),
        protocol=Protocol.CONTAINER,
    )
    spec = ManagedSpec(template, Scaling(workers_max=0), GpuNeed(pools=(LOW,)))
    return Endpoint(
        id=CUSTOM,
        workers=(),
        execution_timeout_ms=settings.task_timeout_s * 1000,
        ttl_ms=DEFAULT_TTL_MS,
        max_attempts=1,
        max_queue_depth=0,
        managed=spec,
        preset=Preset(CUSTOM, CUSTOM, one_off=spec, session=None),
    )
