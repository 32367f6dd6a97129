"""Every environment variable of OwnPod, grouped by noun: name, type, default, limits, purpose, and whether it is secret.

``make fix`` writes README's table from this module. A test compares the lists in docker-compose.yml with it.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ownpod.errors import ConfigurationError
from ownpod.rules.credentials import Credential
from ownpod.settings import kinds
from ownpod.settings.agent_variables import Agent
from ownpod.settings.declare import Alias, variable
from ownpod.settings.front_variables import Front
from ownpod.settings.preset_variables import Presets
from ownpod.validation import check_file

DAY_S = 86_400

CLIENT_VARIABLES = ("OWNPOD_URL", "OWNPOD_API_KEY", "OWNPOD_ENDPOINT")
"""Variables of commands and examples that are clients of the API. They are no settings of OwnPod's processes."""

REDIS_URL_FILE = "redis.url"
"""A file in the data directory: the address of the embedded Redis while it runs."""

SECRETS_KEY_FILE = "secrets.key"
"""A file in the data directory: the key of the secrets in Redis."""


@dataclass(frozen=True, kw_only=True)
class Redis:
    """The Redis in use: one of its own, or the embedded one."""

    redis_url: str | None = variable(
        "REDIS_URL",
        check=kinds.check_redis_url,
        secret=True,
        masked=kinds.mask_redis_url,
        purpose="URL of the Redis: `redis://`, `rediss://` or `unix:///path?db=0`. When unset, `ownpod up` starts "
        "an embedded Redis",
    )
    data_dir: Path = variable(
        "OWNPOD_DATA_DIR", "./var", purpose="directory with the files of the embedded Redis"
    )
    secrets_key_file: Path | None = variable(
        "OWNPOD_SECRETS_KEY_FILE",
        unset="unset: `secrets.key` in `OWNPOD_DATA_DIR`",
        purpose="file with the key of the secrets that `ownpod secrets set` stores. Each host with an agent needs the same "
        "file, readable by its user only",
    )
    appendfsync: str = variable(
        "OWNPOD_APPENDFSYNC",
        "everysec",
        choices=("everysec", "always"),
        purpose="when the embedded Redis writes its append-only file to disk. `everysec`: a power cut can lose the last "
        "one or two seconds. `always`: it loses nothing, and Redis does a third fewer writes per second",
    )

    def broker_url(self) -> str:
        """URL of the Redis in use: ``REDIS_URL``, or the URL of the embedded Redis that runs in the data directory.

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

    def secrets_key_path(self) -> Path:
        """The file with the keys of the secrets, which need not exist."""
        return self.secrets_key_file or self.data_dir / SECRETS_KEY_FILE


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers, and the requests that nodes send to them."""

    workers: tuple[str, ...] | None = variable(
        "OWNPOD_WORKERS",
        kind=kinds.Urls,
        unset="unset: those of `workers.yaml`, else `http://localhost:18000`",
        purpose="comma-separated base URLs of the workers of the default endpoint `local-ep`, in place of those in "
        "`workers.yaml`",
    )
    workers_file: Path = variable(
        "OWNPOD_WORKERS_FILE", "workers.yaml", purpose="file with the endpoints and their workers"
    )
    worker_headers: Mapping[str, str] = variable(
        "OWNPOD_WORKER_HEADERS",
        kind=kinds.Headers,
        secret=True,
        purpose="JSON object of HTTP headers for every request to a configured worker. Workers that are added at run time "
        "do not get them. They are never logged",
    )
    worker_verify_tls: bool = variable(
        "OWNPOD_WORKER_VERIFY_TLS",
        default=True,
        purpose="whether the TLS certificates of workers are verified",
    )
    worker_ca_bundle: str | None = variable(
        "OWNPOD_WORKER_CA_BUNDLE",
        check=check_file,
        purpose="file with the CA certificates that verify workers. Has precedence over `OWNPOD_WORKER_VERIFY_TLS`",
    )
    worker_connect_timeout_s: float = variable(
        "OWNPOD_WORKER_CONNECT_TIMEOUT_S",
        5,
        limits=(0.1, 300),
        purpose="seconds until a TCP connection to a worker times out",
    )
    worker_run_read_timeout_s: float = variable(
        "OWNPOD_WORKER_RUN_READ_TIMEOUT_S",
        30,
        limits=(0.1, 3600),
        purpose="seconds until a worker's answer to `/run` times out",
    )
    worker_status_timeout_s: float = variable(
        "OWNPOD_WORKER_STATUS_TIMEOUT_S",
        15,
        limits=(0.1, 3600),
        purpose="seconds until a worker's answer to a `/status` poll times out. Workers that answer only when the "
        "job has ended, as RunPod's SDK does, have no such limit",
    )
    worker_cancel_timeout_s: float = variable(
        "OWNPOD_WORKER_CANCEL_TIMEOUT_S",
        10,
        limits=(0.1, 3600),
        purpose="seconds until a worker's answer to `/cancel` times out",
    )
    max_output_mb: int = variable(
        "OWNPOD_MAX_OUTPUT_MB",
        50,
        limits=(1, 500),
        purpose="largest answer of a worker in MiB. A job with a larger one is FAILED",
    )
    callback_url: str | None = variable(
        "OWNPOD_CALLBACK_URL",
        kind=kinds.BaseUrl,
        purpose="base URL at which workers reach the API, like `http://10.0.0.5:8000`. Workers then also post each "
        "result to it, so that a result counts even when the job's node has ended",
    )
    worker_gone_s: float = variable(
        "OWNPOD_WORKER_GONE_S",
        60,
        limits=(10, DAY_S),
        purpose="seconds without a request after which a worker that pulls is removed",
    )
    worker_quota: int = variable(
        "OWNPOD_WORKER_QUOTA",
        0,
        limits=(0, 1_000_000),
        purpose="largest sum of `workersMax` of all endpoints, in their widest `hours`. A configuration above it is refused "
        "in RunPod's words. 0: any",
    )
    device_hold_s: float = variable(
        "OWNPOD_DEVICE_HOLD_S",
        30,
        limits=(0.1, DAY_S),
        purpose="seconds for which an endpoint with work keeps its devices at least while a job of another endpoint waits for "
        "one; three times the time of both loads where that is more",
    )
    images: tuple[str, ...] = variable(
        "OWNPOD_IMAGES",
        "**",
        kind=kinds.Images,
        alias=Alias(name="ALLOWED_DOCKER_IMAGES"),
        purpose="comma-separated images that the engine `docker` may start. `*` is any text without a slash, `**` any text, so "
        "`**` allows all images. This list is the boundary of trust, because a container's limits do not confine a hostile "
        "image with a GPU",
    )


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Jobs and their records."""

    result_ttl_s: int = variable(
        "OWNPOD_RESULT_TTL_SEC",
        1800,
        limits=(1, 30 * DAY_S),
        purpose="seconds after which the record of a job that has ended expires",
    )
    runsync_timeout_ms: int = variable(
        "OWNPOD_RUNSYNC_TIMEOUT_MS",
        30_000,
        limits=(1000, 300_000),
        purpose="longest wait of `/runsync` and `/status-sync` in ms, for requests without `?wait=`",
    )
    openai_timeout_s: int = variable(
        "OWNPOD_OPENAI_TIMEOUT_S",
        600,
        limits=(1, DAY_S),
        purpose="seconds for which a request below `/openai` waits for its job's end, or for the first chunk of a stream. "
        "Then it is answered 504",
    )
    openai_body_mb: int = variable(
        "OWNPOD_OPENAI_BODY_MB",
        20,
        limits=(1, 1024),
        purpose="largest body of a request below `/openai`, in MiB",
    )
    idempotency_ttl_s: int = variable(
        "OWNPOD_IDEMPOTENCY_TTL_SEC",
        DAY_S,
        limits=(1, 30 * DAY_S),
        purpose="seconds after which an `Idempotency-Key` expires",
    )
    retry_same_id: bool = variable(
        "OWNPOD_RETRY_SAME_ID",
        default=False,
        purpose="whether `/retry` keeps the job's id, as RunPod does, or makes a new one",
    )
    lease_s: float = variable(
        "OWNPOD_LEASE_S",
        15,
        limits=(1, 3600),
        purpose="seconds after which a job is requeued, or adopted by a new node, because its node has not renewed the lease",
    )
    shutdown_grace_s: float = variable(
        "OWNPOD_SHUTDOWN_GRACE_S",
        10,
        limits=(0, DAY_S),
        purpose="seconds in which running jobs may finish after SIGTERM",
    )


@dataclass(frozen=True, kw_only=True)
class Webhooks:
    """Webhooks, which clients ask for in ``/run``."""

    webhook_secret: str | None = variable(
        "OWNPOD_WEBHOOK_SECRET",
        secret=True,
        purpose="secret that signs webhooks. `X-OwnPod-Signature` is the HMAC-SHA256, in hex, of "
        "`<X-OwnPod-Timestamp>.<body>`",
    )
    webhook_tries: int = variable(
        "OWNPOD_WEBHOOK_TRIES", 3, limits=(1, 20), purpose="largest number of tries of a webhook"
    )
    webhook_delay_s: float = variable(
        "OWNPOD_WEBHOOK_DELAY_S",
        10,
        limits=(0.1, 3600),
        purpose="seconds between two tries of a webhook. Doubled after each try from the third on",
    )
    webhook_allow: str = variable(
        "OWNPOD_WEBHOOK_ALLOW",
        "any",
        choices=("any", "public"),
        purpose="addresses to which webhooks are sent. `public`: no loopback, private or link-local address, and no "
        "metadata service of a cloud",
    )


@dataclass(frozen=True, kw_only=True)
class Access:
    """The API, and the callers that it allows."""

    api_keys: tuple[Credential, ...] = variable(
        "OWNPOD_API_KEYS",
        kind=kinds.Keys,
        file_kind=kinds.KeyFile,
        secret=True,
        alias=Alias(name="INTERNAL_API_KEY"),
        unset="unset: any caller",
        purpose="comma-separated keys, plain or `sha256:<hex>`. When there is one, every `/v2` request needs a key. Keys of "
        "single endpoints are in `workers.yaml`",
    )
    overflow_never_keys: tuple[Credential, ...] = variable(
        "OWNPOD_OVERFLOW_NEVER_KEYS",
        kind=kinds.Keys,
        secret=True,
        unset="unset: none",
        purpose="comma-separated keys, plain or `sha256:<hex>`, of clients whose jobs never go to a cloud worker. They open nothing: "
        "each is also an API key, or a key of an endpoint",
    )
    admin_keys: tuple[Credential, ...] = variable(
        "OWNPOD_ADMIN_KEYS",
        kind=kinds.Keys,
        file_kind=kinds.KeyFile,
        secret=True,
        purpose="comma-separated keys that also allow Flower, and to add, remove, drain and resume workers",
    )
    worker_keys: tuple[Credential, ...] = variable(
        "OWNPOD_WORKER_KEYS",
        kind=functools.partial(kinds.Keys, bound=True),
        file_kind=functools.partial(kinds.KeyFile, bound=True),
        secret=True,
        unset="unset: any worker, unless there are API keys",
        purpose="comma-separated keys of workers that pull, their `RUNPOD_AI_API_KEY`. "
        "`sha256:<hex>@<endpoint>[/<worker>]` is for one endpoint or worker only",
    )
    cors_origins: tuple[str, ...] = variable(
        "OWNPOD_CORS_ORIGINS",
        kind=kinds.Origins,
        unset="unset: none",
        purpose="comma-separated origins whose pages may call the API, like `https://app.example.com`",
    )
    hosts: tuple[str, ...] = variable(
        "OWNPOD_HOSTS",
        kind=kinds.Hosts,
        purpose="comma-separated host names of this machine that requests without a key may use. Addresses, and names "
        "without a dot, are always allowed",
    )
    trusted_proxies: int = variable(
        "OWNPOD_TRUSTED_PROXIES",
        0,
        limits=(0, 10),
        purpose="number of proxies before the API whose `X-Forwarded-For` gives the caller's address",
    )
    rate_limits: Mapping[str, str] = variable(
        "OWNPOD_RATE_LIMITS",
        kind=kinds.RateLimits,
        purpose='JSON object of rates by operation, like `{"run": "10/second"}`, for each endpoint and caller. '
        "Requests above the rate are answered 429",
    )
    api_processes: int = variable(
        "WEB_CONCURRENCY",
        2,
        limits=(1, 1000),
        purpose="number of API processes. In each of them 2,000 clients may wait",
    )


@dataclass(frozen=True, kw_only=True)
class Managing:
    """RunPod's management APIs."""

    management_strict: bool = variable(
        "OWNPOD_MANAGEMENT_STRICT",
        default=False,
        purpose="whether RunPod's REST APIs refuse a field that they do not know. Otherwise such a field is named in the "
        "response's header `X-OwnPod-Ignored`",
    )


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Logs, and how Flower shows jobs."""

    log_level: str = variable(
        "OWNPOD_LOG_LEVEL",
        "INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        purpose="lowest level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`",
    )
    log_format: str = variable(
        "OWNPOD_LOG_FORMAT",
        "text",
        choices=("text", "json"),
        purpose="format of the log. `json`: one object a line, also for each change of a job's state, with its id, worker "
        "and attempt",
    )
    description_prefix: str = variable(
        "OWNPOD_DESCRIPTION_PREFIX",
        "ownpod",
        purpose="first word of the job descriptions that Flower and `celery` show",
    )
    log_inputs: bool = variable(
        "OWNPOD_LOG_INPUTS",
        default=True,
        purpose="whether job descriptions contain the beginning of the job's input",
    )
    flower_read_only: bool = variable(
        "OWNPOD_FLOWER_READ_ONLY",
        default=False,
        purpose="whether the Flower that `ownpod` starts refuses every change",
    )


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Managing, Front, Access, Webhooks, Jobs, Presets, Agent, Workers, Redis):
    """The values of all variables. The first group is the last base, because dataclasses collect fields in that order.

    ``workers_file_required``: whether ``OWNPOD_WORKERS_FILE`` is set, so that the file must exist.
    ``images_given``: whether ``OWNPOD_IMAGES`` or its alias is set.
    """

    workers_file_required: bool
    images_given: bool
