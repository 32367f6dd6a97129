"""The environment, checked once: the only module that knows ``os.environ``.

The table in README.md is tested against :class:`SettingsSchema`.
"""

import functools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from ownpod.errors import ConfigurationError

DEFAULT_ENDPOINT = "local-ep"
REDIS_URL_FILE = "redis.url"
"""In the data directory; the embedded Redis's address while it runs."""


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the field of the same name in :class:`SettingsSchema`."""

    workers: tuple[str, ...] | None
    redis_url: str | None
    data_dir: Path
    workers_file: Path
    workers_file_required: bool
    result_ttl_s: int
    runsync_timeout_ms: int
    description_prefix: str
    worker_verify_tls: bool
    worker_ca_bundle: str | None
    worker_headers: Mapping[str, str]
    worker_connect_timeout_s: float
    worker_run_read_timeout_s: float
    worker_status_timeout_s: float
    worker_cancel_timeout_s: float
    lease_s: float
    shutdown_grace_s: float
    log_level: str

    def broker_url(self) -> str:
        """The Redis to talk to: ``REDIS_URL``, else the embedded one that runs in the data directory.

        Raises:
            ConfigurationError: there is neither.
        """
        if self.redis_url:
            return self.redis_url
        try:
            return (self.data_dir / REDIS_URL_FILE).read_text().strip()
        except OSError:
            raise ConfigurationError(
                f"REDIS_URL is not set and no embedded Redis runs in {self.data_dir}: "
                "set REDIS_URL, or start everything with `ownpod up`"
            ) from None


def check_http_url(value: str) -> None:
    """A worker's base URL: http or https, a host, no query.

    Raises:
        ValidationError: with what is allowed.
    """
    problem = f"must be an http:// or https:// URL of a worker, not {value!r}"
    try:
        url = urlsplit(value)
        valid = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        valid = False
    if not valid or url.query or url.fragment or url.username:
        raise ValidationError(problem)


class _Urls(fields.Field[tuple[str, ...]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        urls = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not urls:
            raise ValidationError("must be a comma-separated list of worker URLs")
        for url in urls:
            check_http_url(url)
        return urls


class _Headers(fields.Field[dict[str, str]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        problem = 'must be a JSON object of strings, like {"Authorization": "Bearer ..."}'
        try:
            headers = json.loads(value)
        except ValueError:
            raise ValidationError(problem) from None
        if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
            raise ValidationError(problem)
        return headers


def _check_redis_url(value: str) -> None:
    if not value.startswith(("redis://", "rediss://")):
        raise ValidationError("must be a redis:// or rediss:// URL")


def _check_file(value: str) -> None:
    if not Path(value).is_file():
        raise ValidationError("must be a file that exists")


def _number(name: str, default: float, least: float, most: float, purpose: str) -> fields.Float:
    problem = f"must be a number from {least:g} to {most:g}"
    return fields.Float(
        data_key=name,
        load_default=default,
        validate=validate.Range(least, most, error=problem),
        metadata={"purpose": purpose},
        error_messages={"invalid": problem, "special": problem},
    )


def _whole(name: str, default: int, least: int, most: int, purpose: str) -> fields.Integer:
    problem = f"must be a whole number from {least} to {most}"
    return fields.Integer(
        data_key=name,
        load_default=default,
        validate=validate.Range(least, most, error=problem),
        metadata={"purpose": purpose},
        error_messages={"invalid": problem},
    )


class SettingsSchema(Schema):
    """Every variable, its default, its limits and its purpose. An empty value counts as unset."""

    class Meta:
        unknown = EXCLUDE

    secret: ClassVar[set[str]] = {"REDIS_URL", "OWNPOD_WORKER_HEADERS"}
    """Variables whose value is never shown."""

    workers = _Urls(
        data_key="OWNPOD_WORKERS",
        load_default=None,
        metadata={
            "default": "`http://localhost:18000`",
            "purpose": "comma-separated worker base URLs of the default endpoint `local-ep`; "
            "when set, they replace those of `workers.yaml`",
        },
    )
    redis_url = fields.String(
        data_key="REDIS_URL",
        load_default=None,
        validate=_check_redis_url,
        metadata={"purpose": "Redis to use; when unset `ownpod up` runs one of its own"},
    )
    data_dir = fields.String(
        data_key="OWNPOD_DATA_DIR",
        load_default="./var",
        metadata={"purpose": "where the embedded Redis keeps its files"},
    )
    workers_file = fields.String(
        data_key="OWNPOD_WORKERS_FILE",
        load_default="workers.yaml",
        metadata={"purpose": "where endpoints and their workers are read"},
    )
    result_ttl_s = _whole(
        "OWNPOD_RESULT_TTL_SEC", 1800, 1, 30 * 86400, "s a finished job's record stays"
    )
    runsync_timeout_ms = _whole(
        "OWNPOD_RUNSYNC_TIMEOUT_MS",
        30000,
        1000,
        300000,
        "longest wait of `/runsync` and `/status-sync` in ms, unless `?wait=` says otherwise",
    )
    description_prefix = fields.String(
        data_key="OWNPOD_DESCRIPTION_PREFIX",
        load_default="ownpod",
        metadata={"purpose": "start of a job's description, shown in Flower and by `celery`"},
    )
    worker_verify_tls = fields.Boolean(
        data_key="OWNPOD_WORKER_VERIFY_TLS",
        load_default=True,
        error_messages={"invalid": "must be true or false"},
        metadata={"purpose": "verify the certificates of https workers"},
    )
    worker_ca_bundle = fields.String(
        data_key="OWNPOD_WORKER_CA_BUNDLE",
        load_default=None,
        validate=_check_file,
        metadata={"purpose": "CA bundle for https workers; wins over the line above"},
    )
    worker_headers = _Headers(
        data_key="OWNPOD_WORKER_HEADERS",
        load_default=dict,
        metadata={"purpose": "JSON object of extra headers sent to workers; never logged"},
    )
    worker_connect_timeout_s = _number(
        "OWNPOD_WORKER_CONNECT_TIMEOUT_S", 5, 0.1, 300, "s for a TCP connection to a worker"
    )
    worker_run_read_timeout_s = _number(
        "OWNPOD_WORKER_RUN_READ_TIMEOUT_S", 30, 0.1, 3600, "s for a worker's answer to `/run`"
    )
    worker_status_timeout_s = _number(
        "OWNPOD_WORKER_STATUS_TIMEOUT_S",
        15,
        0.1,
        3600,
        "s for the answer to a `/status` poll, of workers that answer polls at once",
    )
    worker_cancel_timeout_s = _number(
        "OWNPOD_WORKER_CANCEL_TIMEOUT_S", 10, 0.1, 3600, "s for a worker's answer to `/cancel`"
    )
    lease_s = _number(
        "OWNPOD_LEASE_S",
        15,
        1,
        3600,
        "s after which a job whose node fell silent is taken up again",
    )
    shutdown_grace_s = _number(
        "OWNPOD_SHUTDOWN_GRACE_S", 10, 0, 86400, "s that running jobs get to finish at SIGTERM"
    )
    log_level = fields.String(
        data_key="OWNPOD_LOG_LEVEL",
        load_default="INFO",
        validate=validate.OneOf(
            ["DEBUG", "INFO", "WARNING", "ERROR"], error="must be one of {choices}"
        ),
        metadata={"purpose": "least level that is logged: DEBUG, INFO, WARNING or ERROR"},
    )


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment.

    Raises:
        ConfigurationError: one line that names the variable, its value and what is allowed.
    """
    schema = SettingsSchema()
    given = {name: value for name, value in environ.items() if value != ""}
    required = "OWNPOD_WORKERS_FILE" in given
    try:
        values: dict[str, Any] = schema.load(given)
    except ValidationError as error:
        name, problems = next(iter(error.normalized_messages().items()))
        shown = "..." if name in schema.secret else repr(environ.get(name))
        raise ConfigurationError(f"{name}={shown}: {problems[0]}") from None
    values["data_dir"] = Path(values["data_dir"])
    values["workers_file"] = Path(values["workers_file"])
    return Settings(**values, workers_file_required=required)


@functools.cache
def current() -> Settings:
    """The settings of this process. Raises: ConfigurationError, see :func:`load`."""
    return load(os.environ)


def exit_on(error: Exception) -> NoReturn:
    """End the process with the error in one line and exit code 2, as wrong usage does."""
    sys.stderr.write(f"ownpod: {error}\n")
    raise SystemExit(2)
