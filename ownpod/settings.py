"""The environment, checked once: the only module that knows ``os.environ``.

The table in README.md is tested against :class:`SettingsSchema`.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import limits
from marshmallow import EXCLUDE, ValidationError, fields, validate

from ownpod.access import SECRET, Access, AccessSchema
from ownpod.errors import ConfigurationError
from ownpod.validation import FRAMING_HEADERS, HEADER_NAME, HEADER_VALUE, check_file, check_http_url

DEFAULT_ENDPOINT = "local-ep"
REDIS_URL_FILE = "redis.url"
"""In the data directory; the embedded Redis's address while it runs."""


OPERATIONS = (
    "run",
    "runsync",
    "status",
    "stream",
    "cancel",
    "retry",
    "purge-queue",
    "requests",
    "health",
)
"""What rate limits can be set for; ``status`` counts ``status-sync`` too."""


@dataclass(frozen=True, kw_only=True)
class Settings(Access):
    """What the environment says; see the field of the same name in :class:`SettingsSchema`."""

    workers: tuple[str, ...] | None
    redis_url: str | None = field(repr=False)
    data_dir: Path
    appendfsync: str
    workers_file: Path
    workers_file_required: bool
    result_ttl_s: int
    runsync_timeout_ms: int
    description_prefix: str
    log_inputs: bool
    worker_verify_tls: bool
    worker_ca_bundle: str | None
    worker_headers: Mapping[str, str] = field(repr=False)
    worker_connect_timeout_s: float
    worker_run_read_timeout_s: float
    worker_status_timeout_s: float
    worker_cancel_timeout_s: float
    max_output_mb: int
    idempotency_ttl_s: int
    retry_same_id: bool
    webhook_secret: str | None = field(repr=False)
    webhook_tries: int
    webhook_delay_s: float
    webhook_allow: str
    rate_limits: Mapping[str, str]
    callback_url: str | None
    worker_gone_s: float
    lease_s: float
    shutdown_grace_s: float
    log_level: str
    log_format: str
    flower_read_only: bool

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


class _Urls(fields.Field[tuple[str, ...]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        urls = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not urls:
            raise ValidationError("must be a comma-separated list of worker URLs")
        for url in urls:
            check_http_url(url)
        return urls


class _RateLimits(fields.Field[dict[str, str]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        operations = ", ".join(OPERATIONS)
        problem = f'must be a JSON object like {{"run": "10/second"}}, of {operations}'
        try:
            rates = json.loads(value)
            if not isinstance(rates, dict) or not rates.keys() <= set(OPERATIONS):
                raise ValidationError(problem)
            for rate in rates.values():
                limits.parse_many(rate)
        except (ValueError, TypeError):
            raise ValidationError(problem) from None
        return rates


class _Headers(fields.Field[dict[str, str]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        problem = 'must be a JSON object of strings, like {"Authorization": "Bearer ..."}'
        try:
            headers = json.loads(value)
        except ValueError:
            raise ValidationError(problem) from None
        if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
            raise ValidationError(problem)
        for name, text in headers.items():
            if not re.fullmatch(HEADER_NAME, name):
                raise ValidationError(
                    f"{problem}; a header's name has letters, digits and -, and is "
                    f"none of {', '.join(FRAMING_HEADERS)}"
                )
            if not re.fullmatch(HEADER_VALUE, text):
                raise ValidationError(f"{problem}; a header's value must be one line of ASCII")
        return headers


def _check_redis_url(value: str) -> None:
    if not value.startswith(("redis://", "rediss://", "unix:///")):
        raise ValidationError("must be a redis://, rediss:// or unix:/// URL")


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


class SettingsSchema(AccessSchema):
    """Every variable, its default, its limits and its purpose. An empty value counts as unset."""

    class Meta:
        unknown = EXCLUDE

    secret: ClassVar[set[str]] = {
        "REDIS_URL",
        "OWNPOD_WORKER_HEADERS",
        "OWNPOD_WEBHOOK_SECRET",
        *SECRET,
    }
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
        metadata={
            "purpose": "Redis to use, `redis://`, `rediss://` or `unix:///path?db=0`; when unset `ownpod up` "
            "runs one of its own"
        },
    )
    data_dir = fields.String(
        data_key="OWNPOD_DATA_DIR",
        load_default="./var",
        metadata={"purpose": "where the embedded Redis keeps its files"},
    )
    appendfsync = fields.String(
        data_key="OWNPOD_APPENDFSYNC",
        load_default="everysec",
        validate=validate.OneOf(["everysec", "always"], error="must be one of {choices}"),
        metadata={
            "purpose": "when the embedded Redis makes sure that its file is on disk; `always` loses "
            "nothing in a power cut, and takes a third of the throughput"
        },
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
    log_inputs = fields.Boolean(
        data_key="OWNPOD_LOG_INPUTS",
        load_default=True,
        error_messages={"invalid": "must be true or false"},
        metadata={"purpose": "descriptions have the beginning of the job's input"},
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
        validate=check_file,
        metadata={"purpose": "CA bundle for https workers; wins over the line above"},
    )
    worker_headers = _Headers(
        data_key="OWNPOD_WORKER_HEADERS",
        load_default=dict,
        metadata={
            "purpose": "JSON object of extra headers sent to configured workers, not to those "
            "that are added at run time; never logged"
        },
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
    max_output_mb = _whole(
        "OWNPOD_MAX_OUTPUT_MB", 50, 1, 500, "MiB of a worker's answer; a larger one is FAILED"
    )
    idempotency_ttl_s = _whole(
        "OWNPOD_IDEMPOTENCY_TTL_SEC",
        86400,
        1,
        30 * 86400,
        "s an `Idempotency-Key` is remembered",
    )
    retry_same_id = fields.Boolean(
        data_key="OWNPOD_RETRY_SAME_ID",
        load_default=False,
        error_messages={"invalid": "must be true or false"},
        metadata={"purpose": "`/retry` keeps the job's id, as RunPod does, instead of a new one"},
    )
    webhook_secret = fields.String(
        data_key="OWNPOD_WEBHOOK_SECRET",
        load_default=None,
        metadata={
            "purpose": "signs webhooks: `X-OwnPod-Signature`, HMAC-SHA256 in hex of "
            "`<X-OwnPod-Timestamp>.<body>`"
        },
    )
    webhook_tries = _whole("OWNPOD_WEBHOOK_TRIES", 3, 1, 20, "tries of a webhook")
    webhook_delay_s = _number(
        "OWNPOD_WEBHOOK_DELAY_S", 10, 0.1, 3600, "s between them; doubled each time after the third"
    )
    webhook_allow = fields.String(
        data_key="OWNPOD_WEBHOOK_ALLOW",
        load_default="any",
        validate=validate.OneOf(["any", "public"], error="must be one of {choices}"),
        metadata={
            "purpose": "addresses that webhooks are sent to: `any`, or `public`: none that is loopback, "
            "private, link-local or a cloud's metadata service"
        },
    )
    rate_limits = _RateLimits(
        data_key="OWNPOD_RATE_LIMITS",
        load_default=dict,
        metadata={
            "purpose": "JSON object of most calls by operation, for each endpoint and caller, like "
            '`{"run": "10/second"}`; then 429',
        },
    )
    callback_url = fields.String(
        data_key="OWNPOD_CALLBACK_URL",
        load_default=None,
        validate=check_http_url,
        metadata={
            "purpose": "the API's base URL as workers reach it, like `http://10.0.0.5:8000`: they post "
            "results there too, so that one that comes while no node waits for it counts"
        },
    )
    worker_gone_s = _number(
        "OWNPOD_WORKER_GONE_S",
        60,
        10,
        86400,
        "s after which a worker that pulled, and asks for nothing any more, is forgotten",
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
    log_format = fields.String(
        data_key="OWNPOD_LOG_FORMAT",
        load_default="text",
        validate=validate.OneOf(["text", "json"], error="must be one of {choices}"),
        metadata={
            "purpose": "`json`: an object a line, one for each move of a job with its id, worker and "
            "attempt"
        },
    )
    flower_read_only = fields.Boolean(
        data_key="OWNPOD_FLOWER_READ_ONLY",
        load_default=False,
        error_messages={"invalid": "must be true or false"},
        metadata={"purpose": "Flower, started by `ownpod`, shows and changes nothing"},
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
    if values["callback_url"] is not None:
        values["callback_url"] = values["callback_url"].rstrip("/")
    values["data_dir"] = Path(values["data_dir"])
    values["workers_file"] = Path(values["workers_file"])
    return Settings(**values, workers_file_required=required)


@functools.cache
def current() -> Settings:
    """The settings of this process. Raises: ConfigurationError, see :func:`load`."""
    return load(os.environ)


def reload() -> None:
    """Reads the environment and the files that it names again, for :func:`current`.

    Raises:
        ConfigurationError: see :func:`load`; the settings stay as they were.
    """
    load(os.environ)
    current.cache_clear()
    current()


def exit_on(error: Exception) -> NoReturn:
    """End the process with the error in one line and exit code 2, as wrong usage does."""
    sys.stderr.write(f"ownpod: {error}\n")
    raise SystemExit(2)
