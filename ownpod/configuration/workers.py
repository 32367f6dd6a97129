"""The keys of a worker, and the workers that they make."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from marshmallow import RAISE, Schema, fields, validate

from ownpod.errors import ConfigurationError
from ownpod.rules.balancing import Balancing
from ownpod.rules.endpoints import HOUSEKEEPING, WorkerKind, WorkerSource, WorkerSpec
from ownpod.settings import Settings
from ownpod.validation import (
    FRAMING_HEADERS,
    HEADER_NAME,
    HEADER_VALUE,
    HTTP_URL,
    LONGEST_URL,
    NAME,
    Flag,
    WholeNumber,
    check_file,
    check_http_url,
)

LONGEST_ID = 255
"""Characters of an id that is made from a URL; see :data:`ownpod.validation.NAME`."""

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

    error_messages = {  # noqa: RUF012 - marshmallow's own name
        "type": "must be an object with a url, like {url: http://localhost:18000}"
    }

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
        validate=validate.Range(1, 1000, error="must be a whole number from 1 to 1000"),
        error_messages={"invalid": "must be a whole number from 1 to 1000"},
    )
    headers = fields.Dict(keys=_HEADER_NAME, values=_HEADER_VALUE, load_default=dict)
    verify_tls = Flag(data_key="verifyTls")
    ca_bundle = fields.String(data_key="caBundle", validate=check_file)


class AddedWorkerSchema(WorkerSchema):
    """A worker that was added at run time. Its node checks its files, because each host has its own."""

    ca_bundle = fields.String(data_key="caBundle")


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
    endpoint_id: str,
    values: dict[str, Any],
    settings: Settings,
    *,
    configured: bool = True,
    balancing: Balancing | None = None,
) -> WorkerSpec:
    """A worker from the values that :class:`WorkerSchema` has loaded; of a load-balanced endpoint, with its ``balancing``.

    Only workers of the configuration get ``OWNPOD_WORKER_HEADERS``, because these may be secrets, and the URL of
    an added worker is chosen by a caller.
    """
    common = settings.worker_headers if configured and balancing is None else {}
    ca_bundle = values.get("ca_bundle", settings.worker_ca_bundle)
    return WorkerSpec(
        id=values.get("id") or worker_id_of(values["url"]),
        endpoint=endpoint_id,
        url=values["url"].rstrip("/"),
        capacity=values.get("capacity") or (1 if balancing is None else balancing.capacity),
        headers={**common, **values["headers"]},
        verify_tls=values.get("verify_tls", settings.worker_verify_tls),
        ca_bundle=ca_bundle,
        kind=WorkerKind.PUSH if balancing is None else WorkerKind.HTTP,
        source=WorkerSource.FILE if configured else WorkerSource.ADDED,
        health_port=None if balancing is None else balancing.health_port,
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
