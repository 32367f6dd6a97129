"""The keys of a load-balanced endpoint: ``type: LB`` and what belongs to it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from marshmallow import ValidationError, post_load, validates_schema

from ownpod.configuration.fields import Parsed, choice, flag, whole
from ownpod.configuration.templates import INIT_TIMEOUT, ManagedSchema
from ownpod.rules.balancing import (
    DEFAULT_HEALTH_PATH,
    DEFAULT_INIT_TIMEOUT_S,
    DEFAULT_PORT,
    DEFAULT_REQUEST_COUNT,
    Balancing,
)
from ownpod.rules.templates import Protocol, ScalerType, Template

PORT, HEALTH_PORT, HEALTH_PATH = "PORT", "PORT_HEALTH", "HEALTH_CHECK_PATH"
"""RunPod's variables of a worker; ``env`` of the template may have them instead of the endpoint's keys."""

LARGEST_PORT = 65_535

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]{0,511}")


class _Type(StrEnum):
    """RunPod's two types of serverless endpoints, in the words of its GraphQL API."""

    QUEUE = "QB"
    LOAD_BALANCER = "LB"


def _path(value: Any) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        raise ValueError
    return value


class BalancingSchema(ManagedSchema):
    """The keys of an endpoint of either type."""

    type = choice(_Type, load_default=_Type.QUEUE)
    capacity = whole(1, 100_000, " of requests")
    port = whole(1, LARGEST_PORT)
    health_port = whole(1, LARGEST_PORT, data_key="healthPort")
    health_path = Parsed(_path, "a path such as /ping", data_key="healthPath")
    hold_s = whole(1, 3600, " of seconds", data_key="holdTimeout")
    limit_s = whole(0, 604_800, " of seconds, 0 for none,", data_key="requestTimeout")
    body_mb = whole(1, 100_000, " of MiB", data_key="maxBody")
    passes_authorization = flag(data_key="passAuthorization")

    @validates_schema(pass_original=True)
    def _fit_type(self, values: dict[str, Any], original: Any, **_: Any) -> None:
        template = original.get("template") if isinstance(original, dict) else None
        given = template.get("protocol") if isinstance(template, dict) else None
        if values.get("type") is not _Type.LOAD_BALANCER:
            for name in _BALANCED_ONLY:
                if name in values:
                    key = self.fields[name].data_key or name
                    raise ValidationError({key: ["has no effect without `type: LB`"]})
            if given == Protocol.HTTP:
                problem = "http is the protocol of load-balanced endpoints: set `type: LB`"
                raise ValidationError({"template": {"protocol": [problem]}})
            return
        if given not in {None, Protocol.HTTP}:
            problem = "workers of a load-balanced endpoint get no jobs: leave it out"
            raise ValidationError({"template": {"protocol": [problem]}})
        if values.get("scaler") is ScalerType.QUEUE_DELAY:
            problem = "must be REQUEST_COUNT for a load-balanced endpoint, which has no queue"
            raise ValidationError({"scalerType": [problem]})
        _variables(values)
        for number, worker in enumerate(values.get("workers", ())):
            try:
                check_balanced_worker(worker)
            except ValidationError as error:
                raise ValidationError({"workers": {number: error.messages}}) from None

    @post_load(pass_original=True)
    def _balanced(self, values: dict[str, Any], original: Any, **_: Any) -> dict[str, Any]:
        if values["type"] is not _Type.LOAD_BALANCER:
            return values
        values.setdefault("scaler", ScalerType.REQUEST_COUNT)
        values.setdefault("scaler_value", float(DEFAULT_REQUEST_COUNT))
        if "template" in values:
            template: Template = values["template"]
            timed = "initTimeout" in original["template"] or INIT_TIMEOUT in template.env
            values["template"] = replace(
                template,
                protocol=Protocol.HTTP,
                init_timeout_s=template.init_timeout_s if timed else DEFAULT_INIT_TIMEOUT_S,
            )
        return values


_BALANCED_ONLY = (
    *("capacity", "port", "health_port", "health_path", "hold_s", "limit_s", "body_mb"),
    "passes_authorization",
)
"""Fields that need ``type: LB``."""

BALANCED_KEYS: Mapping[str, str] = {
    name: BalancingSchema().fields[name].data_key or name for name in _BALANCED_ONLY
}
"""The keys that need ``type: LB``, by field of :class:`ownpod.rules.balancing.Balancing`."""


def check_balanced_worker(values: Mapping[str, Any]) -> None:
    """Checks a worker, given by its URL, of a load-balanced endpoint. Raises: ValidationError."""
    if "cloud" in values:
        problem = "a load-balanced endpoint has no jobs, so none can go to a cloud worker"
        raise ValidationError({"cloud": [problem]})
    if urlsplit(values["url"]).path.rstrip("/"):
        problem = "the URL of a load-balanced endpoint's worker has no path, because clients' paths reach it unchanged"
        raise ValidationError({"url": [problem]})
    if values.get("headers"):
        problem = "have no effect for a load-balanced endpoint, whose clients send the headers"
        raise ValidationError({"headers": [problem]})


def balancing_of(values: Mapping[str, Any]) -> Balancing | None:
    """What makes an endpoint load-balanced, from values that :class:`BalancingSchema` has loaded; None: it has a queue."""
    if values["type"] is not _Type.LOAD_BALANCER:
        return None
    port, health_port, health_path = _variables(values)
    given = {name: values[name] for name in _BALANCED_ONLY if name in values}
    return Balancing(
        **{**given, "port": port, "health_port": health_port, "health_path": health_path}
    )


def _variables(values: Mapping[str, Any]) -> tuple[int, int | None, str]:
    """Port, port of the health check, and its path: the endpoint's keys, else the template's variables, else RunPod's
    defaults. Raises: ValidationError.
    """
    template = values.get("template")
    env = template.env if isinstance(template, Template) else {}

    def port(name: str, variable: str) -> int | None:
        if name in values:
            return int(values[name])
        text = env.get(variable)
        if text is None:
            return None
        if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= LARGEST_PORT:
            problem = f"must be a port from 1 to {LARGEST_PORT}"
            raise ValidationError({"template": {"env": {variable: [problem]}}})
        return int(text)

    path = values.get("health_path") or env.get(HEALTH_PATH) or DEFAULT_HEALTH_PATH
    if not _PATH.fullmatch(path):
        problem = "must be a path such as /ping"
        raise ValidationError({"template": {"env": {HEALTH_PATH: [problem]}}})
    return port("port", PORT) or DEFAULT_PORT, port("health_port", HEALTH_PORT), path
