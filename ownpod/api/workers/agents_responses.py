"""Schemas of the responses about hosts: their devices and volumes."""

from marshmallow import Schema, fields, validate

from ownpod.rules.devices import STATES
from ownpod.rules.volumes import DIRECTORY, DOCKER


class DeviceSchema(Schema):
    """A GPU of a host, or a stand-in for one."""

    id = fields.String(required=True)
    index = fields.Integer(required=True)
    name = fields.String(required=True)
    simulated = fields.Boolean(required=True)
    memoryMb = fields.Integer(required=True)  # noqa: N815
    metrics = fields.Dict(
        keys=fields.String(),
        values=fields.Float(),
        required=True,
        metadata={
            "description": "memory_used_mb, utilization_percent, temperature_c, power_w, where known"
        },
    )
    pools = fields.List(fields.String(), required=True)
    slots = fields.Integer(required=True, metadata={"description": "workers that may share it"})
    state = fields.String(required=True, validate=validate.OneOf(STATES))
    workers = fields.List(
        fields.String(), required=True, metadata={"description": "ids of the workers that hold it"}
    )
    next = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "ids of the wanted workers that get it next"},
    )
    idleSeconds = fields.Float(  # noqa: N815
        required=True,
        allow_none=True,
        metadata={
            "description": "seconds since its workers were seen without a job; null: one has a job"
        },
    )
    reason = fields.String(required=True)


class VolumeSchema(Schema):
    """A directory of a host, or a volume of its Docker engine, that its workers may have."""

    name = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf([DIRECTORY, DOCKER]))
    source = fields.String(
        required=True, metadata={"description": "the directory's path, or the Docker volume's name"}
    )
    totalMb = fields.Integer(required=True, allow_none=True)  # noqa: N815
    freeMb = fields.Integer(required=True, allow_none=True)  # noqa: N815
    problem = fields.String(
        required=True, metadata={"description": "why workers cannot use it now; empty if they can"}
    )


class AgentSchema(Schema):
    """A host that starts managed workers."""

    host = fields.String(required=True)
    state = fields.String(
        required=True, validate=validate.OneOf(["ready", "draining", "drained", "silent"])
    )
    engine = fields.String(required=True)
    devices = fields.List(fields.Nested(DeviceSchema), required=True)
    volumes = fields.List(fields.Nested(VolumeSchema), required=True)
    workers = fields.Integer(required=True, metadata={"description": "number of its workers"})
    silentSeconds = fields.Float(  # noqa: N815
        required=True, metadata={"description": "seconds since its agent's last heartbeat"}
    )
    labels = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    problem = fields.String(required=True)


class AgentsSchema(Schema):
    """The response of ``/agents``."""

    agents = fields.List(fields.Nested(AgentSchema), required=True)
