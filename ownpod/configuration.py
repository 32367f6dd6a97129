"""Endpoints and their workers as they are defined: in ``workers.yaml``, in ``OWNPOD_WORKERS``, and in entries of run time."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import yaml
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from ownpod.errors import ConfigurationError
from ownpod.rules import credentials
from ownpod.rules.credentials import Credential
from ownpod.rules.endpoints import (
    DEFAULT_MAX_WORKERS,
    HOUSEKEEPING,
    Endpoint,
    WorkerSource,
    WorkerSpec,
)
from ownpod.rules.jobs import DEFAULT_EXECUTION_TIMEOUT_MS, DEFAULT_MAX_ATTEMPTS, DEFAULT_TTL_MS
from ownpod.rules.quota import first_over_quota
from ownpod.settings import DEFAULT_ENDPOINT, Settings
from ownpod.templates_schema import ManagedSchema, managed_spec
from ownpod.validation import (
    FRAMING_HEADERS,
    HEADER_NAME,
    HEADER_VALUE,
    HTTP_URL,
    LONGEST_URL,
    NAME,
    WholeNumber,
    check_file,
    check_http_url,
    first_problem,
)

DEFAULT_WORKERS = ("http://localhost:18000",)

LONGEST_PROBLEM = 200
"""Characters of an error of the YAML parser that are shown."""

LONGEST_ID = 255
"""Characters of an id that is made from a URL; see :data:`ownpod.validation.NAME`."""

EXECUTION_TIMEOUT_MS = (5_000, 7 * 86_400_000)
"""RunPod's documented limits of ``executionTimeout``."""

TTL_MS = (10_000, 7 * 86_400_000)
"""RunPod's documented limits of ``ttl``."""


_HEADER_NAME = fields.String(
    validate=validate.Regexp(
        rf"^{HEADER_NAME}\Z",
        error="a header's name has letters, digits and -, and is none of "
        f"{', '.join(FRAMING_HEADERS)}",
    )
)
_HEADER_VALUE = fields.String(
    validate=validate.Regexp(
        rf"^{HEADER_VALUE}\Z", error="a header's value must be one line of ASCII"
    ),
    metadata={"pattern": "^[ -~]*$"},
)


class WorkerSchema(Schema):
    """A worker in ``workers.yaml``, and in a request that adds one."""

    class Meta:
        unknown = RAISE

    url = fields.String(
        required=True,
        validate=check_http_url,
        metadata={"pattern": f"^{HTTP_URL}$", "maxLength": LONGEST_URL},
    )
    id = fields.String(
        validate=validate.Regexp(rf"^{NAME.pattern}\Z", error="must be letters, digits, - and _"),
        metadata={"pattern": f"^{NAME.pattern}$"},
    )
    capacity = WholeNumber(
        strict=True,
        load_default=1,
        validate=validate.Range(1, 1000, error="must be a whole number from 1 to 1000"),
        error_messages={"invalid": "must be a whole number from 1 to 1000"},
    )
    headers = fields.Dict(keys=_HEADER_NAME, values=_HEADER_VALUE, load_default=dict)
    verify_tls = fields.Boolean(data_key="verifyTls", truthy={True}, falsy={False})
    ca_bundle = fields.String(data_key="caBundle", validate=check_file)


class AddedWorkerSchema(WorkerSchema):
    """A worker that was added at run time. Its node checks its files, because each host has its own."""

    ca_bundle = fields.String(data_key="caBundle")


class _ApiKey(fields.Field[Credential]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Credential:
        if not isinstance(value, str):
            raise ValidationError(f"must be a text: {credentials.ALLOWED}")
        try:
            return credentials.parse(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class AddedEndpointSchema(ManagedSchema):
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


class _EndpointSchema(AddedEndpointSchema):
    workers = fields.List(fields.Nested(WorkerSchema), load_default=list)


class _FileSchema(Schema):
    class Meta:
        unknown = RAISE

    endpoints = fields.Dict(
        keys=fields.String(
            validate=validate.Regexp(
                rf"^{NAME.pattern}\Z", error="an endpoint's id must be letters, digits, - and _"
            )
        ),
        values=fields.Nested(_EndpointSchema),
        required=True,
    )


def load_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """The endpoints of the configuration by id, from ``workers.yaml`` and ``OWNPOD_WORKERS``.

    Raises:
        ConfigurationError: one line that names the file, the field and what is allowed.
    """
    given = _read(settings)
    if settings.workers is not None:
        local = given.setdefault(DEFAULT_ENDPOINT, _EndpointSchema().load({}))
        local["workers"] = [{"url": u, "capacity": 1, "headers": {}} for u in settings.workers]
    if not given:
        default = [{"url": url} for url in DEFAULT_WORKERS]
        given[DEFAULT_ENDPOINT] = _EndpointSchema().load({"workers": default})
    endpoints = {
        endpoint_id: _endpoint(
            endpoint_id,
            values,
            tuple(make_worker(endpoint_id, w, settings) for w in values["workers"]),
        )
        for endpoint_id, values in given.items()
    }
    check_unique([worker for endpoint in endpoints.values() for worker in endpoint.workers])
    if over := first_over_quota(endpoints, settings.worker_quota):
        endpoint_id, problem = over
        raise ConfigurationError(
            f"{settings.workers_file}: endpoints.{endpoint_id}.workersMax: {problem}"
        )
    return endpoints


_kept: dict[tuple[object, ...], dict[str, Endpoint]] = {}
"""The endpoints of each source, because forked processes inherit nothing else."""


def _source(settings: Settings) -> tuple[object, ...]:
    """Where settings have their endpoints from."""
    return settings.workers_file.absolute(), settings.workers


def keep_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """Loads the endpoints, also for :func:`kept_endpoints` of this process and of those that it forks later.

    Raises:
        ConfigurationError: as :func:`load_endpoints`; the endpoints that were kept before stay.
    """
    endpoints = _kept[_source(settings)] = load_endpoints(settings)
    return endpoints


def kept_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """The kept endpoints of the same source, so that a process that starts while the file is broken serves those of before;
    without kept ones as :func:`load_endpoints`.
    """
    kept = _kept.get(_source(settings))
    return load_endpoints(settings) if kept is None else kept


def make_endpoint(endpoint_id: str, values: dict[str, Any]) -> Endpoint:
    """An endpoint that was added at run time, without workers.

    Raises:
        ValidationError: a value cannot be used.
    """
    return _endpoint(endpoint_id, AddedEndpointSchema().load(values), ())


def endpoint_entry(values: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The values of an endpoint as they are stored: with the digests of its keys instead of plain keys."""
    if not endpoint.api_keys:
        return values
    return {**values, "apiKeys": [f"{credentials.PREFIX}{k.digest}" for k in endpoint.api_keys]}


def _endpoint(
    endpoint_id: str, values: dict[str, Any], workers: tuple[WorkerSpec, ...]
) -> Endpoint:
    return Endpoint(
        id=endpoint_id,
        workers=workers,
        execution_timeout_ms=values["execution_timeout_ms"],
        ttl_ms=values["ttl_ms"],
        max_attempts=values["max_attempts"],
        max_queue_depth=values["max_queue_depth"],
        api_keys=tuple(values["api_keys"]),
        max_workers=values["max_workers"],
        managed=managed_spec(values),
    )


def _read(settings: Settings) -> dict[str, dict[str, Any]]:
    path = settings.workers_file
    try:
        content = yaml.safe_load(path.read_text())
        return _FileSchema().load(content)["endpoints"]  # type: ignore[no-any-return]
    except FileNotFoundError:
        if not settings.workers_file_required:
            return {}
        raise ConfigurationError(f"OWNPOD_WORKERS_FILE={path}: there is no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {yaml_problem(error)}") from None
    except ValidationError as error:
        place, problem = first_problem(error.normalized_messages())
        raise ConfigurationError(f"{path}: {place}: {problem}") from None
    except (ValueError, RecursionError) as error:
        # Not UTF-8, a date that does not exist, too many digits, too deep.
        problem = " ".join(str(error).split())[:LONGEST_PROBLEM]
        raise ConfigurationError(f"{path}: cannot be read: {problem}") from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """The problem and its place, without the lines of the file that the error quotes: these may have secrets."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def parse_headers(lines: Iterable[str]) -> dict[str, str]:
    """Headers from ``NAME: VALUE`` lines, the options of a command."""
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def worker_id_of(url: str) -> str:
    """A worker's id, made from its URL: readable, and the same on every host."""
    parts = urlsplit(url)
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{parts.netloc}{parts.path}").strip("-")
    return name[:LONGEST_ID] or "worker"


def make_worker(
    endpoint_id: str, values: dict[str, Any], settings: Settings, *, configured: bool = True
) -> WorkerSpec:
    """A worker from the values that :class:`WorkerSchema` has loaded.

    Only workers of the configuration get ``OWNPOD_WORKER_HEADERS``, because these may be secrets, and the URL of
    an added worker is chosen by a caller.
    """
    common = settings.worker_headers if configured else {}
    ca_bundle = values.get("ca_bundle", settings.worker_ca_bundle)
    return WorkerSpec(
        id=values.get("id") or worker_id_of(values["url"]),
        endpoint=endpoint_id,
        url=values["url"].rstrip("/"),
        capacity=values["capacity"],
        headers={**common, **values["headers"]},
        verify_tls=values.get("verify_tls", settings.worker_verify_tls),
        ca_bundle=ca_bundle,
        source=WorkerSource.FILE if configured else WorkerSource.ADDED,
    )


def check_unique(workers: Iterable[WorkerSpec]) -> None:
    """Raises: ConfigurationError, if two workers have the same id or URL."""
    seen: dict[str, WorkerSpec] = {}
    for worker in workers:
        if worker.id == HOUSEKEEPING:
            raise ConfigurationError(
                f"worker id {HOUSEKEEPING!r} is taken; give this one another `id`"
            )
        for name in (worker.id, worker.url):
            other = seen.setdefault(name, worker)
            if other is not worker:
                raise ConfigurationError(
                    f"workers {other.url} of {other.endpoint!r} and {worker.url} of "
                    f"{worker.endpoint!r}: a worker can be listed once only, under an `id` of its own"
                )
