"""The keys of an endpoint, and the endpoints that they make."""

from dataclasses import replace
from typing import Any

from marshmallow import RAISE, ValidationError, fields, validate

from ownpod.configuration.balancing import BalancingSchema, balancing_of
from ownpod.configuration.fields import choice
from ownpod.configuration.templates import managed_spec
from ownpod.rules import credentials
from ownpod.rules.credentials import Credential
from ownpod.rules.endpoints import DEFAULT_MAX_WORKERS, Endpoint, OnDisconnect, Overflow, WorkerSpec
from ownpod.rules.jobs import DEFAULT_EXECUTION_TIMEOUT_MS, DEFAULT_MAX_ATTEMPTS, DEFAULT_TTL_MS

EXECUTION_TIMEOUT_MS = (5_000, 7 * 86_400_000)
"""RunPod's documented limits of ``executionTimeout``."""

TTL_MS = (10_000, 7 * 86_400_000)
"""RunPod's documented limits of ``ttl``."""


class _ApiKey(fields.Field[Credential]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Credential:
        if not isinstance(value, str):
            raise ValidationError(f"must be a text: {credentials.ALLOWED}")
        try:
            return credentials.parse(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class AddedEndpointSchema(BalancingSchema):
    """An endpoint that was added at run time. Its workers have entries of their own."""

    class Meta:
        unknown = RAISE

    execution_timeout_ms = fields.Integer(
        data_key="executionTimeout",
        strict=True,
        load_default=DEFAULT_EXECUTION_TIMEOUT_MS,
        validate=validate.Range(
            *EXECUTION_TIMEOUT_MS, error="must be a whole number of ms from {min} to {max}"
        ),
    )
    ttl_ms = fields.Integer(
        data_key="ttl",
        strict=True,
        load_default=DEFAULT_TTL_MS,
        validate=validate.Range(*TTL_MS, error="must be a whole number of ms from {min} to {max}"),
    )
    max_queue_depth = fields.Integer(
        data_key="maxQueueDepth",
        strict=True,
        load_default=0,
        validate=validate.Range(0, error="must be a whole number, 0 for any"),
    )
    overflow = choice(Overflow, load_default=Overflow.ALLOWED)
    on_disconnect = choice(OnDisconnect, data_key="onDisconnect", load_default=OnDisconnect.CANCEL)
    api_keys = fields.List(_ApiKey(), data_key="apiKeys", load_default=list)
    max_workers = fields.Integer(
        data_key="maxWorkers",
        strict=True,
        load_default=DEFAULT_MAX_WORKERS,
        validate=validate.Range(0, 10_000, error="must be a whole number from 0 to 10000"),
        error_messages={"invalid": "must be a whole number from 0 to 10000"},
    )
    max_attempts = fields.Integer(
        data_key="maxAttempts",
        strict=True,
        load_default=DEFAULT_MAX_ATTEMPTS,
        validate=validate.Range(1, 100, error="must be a whole number from 1 to 100"),
    )


_ADDED = AddedEndpointSchema()


def make_endpoint(endpoint_id: str, values: dict[str, Any]) -> Endpoint:
    """An endpoint that was added at run time, without workers.

    Raises:
        ValidationError: a value cannot be used.
    """
    return endpoint_of(endpoint_id, _ADDED.load(values), ())


def endpoint_entry(values: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The values of an endpoint as they are stored: with the digests of its keys instead of plain keys."""
    if not endpoint.api_keys:
        return values
    return {**values, "apiKeys": [f"{credentials.PREFIX}{k.digest}" for k in endpoint.api_keys]}


def endpoint_of(
    endpoint_id: str, values: dict[str, Any], workers: tuple[WorkerSpec, ...]
) -> Endpoint:
    managed, balancing = managed_spec(values), balancing_of(values)
    return Endpoint(
        id=endpoint_id,
        workers=workers,
        execution_timeout_ms=values["execution_timeout_ms"],
        ttl_ms=values["ttl_ms"],
        max_attempts=values["max_attempts"],
        max_queue_depth=values["max_queue_depth"],
        api_keys=tuple(values["api_keys"]),
        max_workers=values["max_workers"],
        managed=None if managed is None else replace(managed, balancing=balancing),
        balancing=balancing,
        on_disconnect=values["on_disconnect"],
        overflow=values["overflow"],
    )
