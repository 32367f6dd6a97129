"""The environment variables of presets, sessions and one-off tasks, see :mod:`ownpod.settings.variables`.

Their aliases are the names that the GPU service had, so that its ``.env`` works here.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ownpod.rules.credentials import Credential
from ownpod.settings import kinds
from ownpod.settings.declare import Alias, variable

DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Presets of models, and the defaults of their sessions and one-off tasks."""

    presets_file: Path | None = variable(
        "OWNPOD_PRESETS_FILE",
        unset="unset: none",
        purpose="file with presets of models, in the form of the GPU service's `model_presets.yaml`. `workers.yaml` may have "
        "presets, too: see [presets](docs/presets.md)",
    )
    difficulties: Mapping[str, str] = variable(
        "OWNPOD_DIFFICULTIES",
        kind=kinds.DeviceDifficulties,
        unset="unset: `low`, where there are presets",
        alias=Alias(name="GPU_DEVICE_DIFFICULTY"),
        purpose="comma-separated difficulties of this host's devices, by index or UUID, like `0:low,1:high`. A name alone is for "
        "all others, which are `low` otherwise. A difficulty is a pool, so the label `pool` of a device replaces it",
    )
    session_idle_s: int = variable(
        "OWNPOD_SESSION_IDLE_S",
        300,
        limits=(0, DAY_S),
        alias=Alias(name="SESSION_IDLE_TIMEOUT_SECONDS"),
        purpose="seconds without work after which a session ends. 0: never",
    )
    session_lifetime_s: int = variable(
        "OWNPOD_SESSION_LIFETIME_S",
        3600,
        limits=(0, 30 * DAY_S),
        alias=Alias(name="SESSION_MAX_LIFETIME_SECONDS"),
        purpose="seconds from ready after which a session takes no more tasks, and ends. 0: never",
    )
    session_queue: int = variable(
        "OWNPOD_SESSION_QUEUE",
        5,
        limits=(0, 10_000),
        alias=Alias(name="SESSION_QUEUE_MAX_SIZE"),
        purpose="tasks that may wait for a session besides the one that runs",
    )
    task_timeout_s: int = variable(
        "OWNPOD_TASK_TIMEOUT_S",
        300,
        limits=(5, 7 * DAY_S),
        alias=Alias(name="DEFAULT_TASK_TIMEOUT"),
        purpose="seconds that a task may run when neither it nor its preset has a time-out",
    )
    max_task_timeout_s: int = variable(
        "OWNPOD_MAX_TASK_TIMEOUT_S",
        1800,
        limits=(5, 7 * DAY_S),
        alias=Alias(name="MAX_TASK_TIMEOUT"),
        purpose="largest `timeout_seconds` of a task",
    )
    task_memory: int | None = variable(
        "OWNPOD_TASK_MEMORY",
        kind=functools.partial(kinds.Size, least=6),
        unset="unset: no limit",
        alias=Alias(name="TASK_MEMORY_LIMIT"),
        purpose="memory of each session and one-off task whose preset has no limit, like `16g`",
    )
    task_cpus: float | None = variable(
        "OWNPOD_TASK_CPUS",
        limits=(0.01, 1024),
        unset="unset: no limit",
        alias=Alias(name="TASK_CPU_QUOTA", kind=kinds.CpuQuota),
        purpose="CPUs of each session and one-off task whose preset has no limit. `TASK_CPU_QUOTA` has microseconds in each "
        "100 ms instead",
    )
    models_dir: Path | None = variable(
        "OWNPOD_MODELS_DIR",
        unset="unset: `models` in `OWNPOD_DATA_DIR`",
        alias=Alias(name="MODEL_CACHE_DIR"),
        purpose="directory of this host with the models, which workers get read-only",
    )
    fetch_models: bool = variable(
        "OWNPOD_FETCH_MODELS",
        default=True,
        alias=Alias(name="AUTO_FETCH_MODELS"),
        purpose="whether a model that this host does not have is fetched before a worker starts",
    )
    models_quota: int | None = variable(
        "OWNPOD_MODELS_QUOTA",
        kind=kinds.Size,
        unset="unset: no limit",
        purpose="size that all models of this host may have, like `500g`. The least recently used ones make room for a new one",
    )
    models_host_dir: str | None = variable(
        "OWNPOD_MODELS_HOST_DIR",
        unset="unset: found by itself",
        purpose="where the engine's host has the directory of models, if the agent runs in a container",
    )
    file_service_url: str | None = variable(
        "OWNPOD_FILE_SERVICE_URL",
        kind=kinds.BaseUrl,
        unset="unset: none",
        alias=Alias(name="FILE_SERVICE_URL"),
        purpose="base URL of the file service, from which models without a `source` are fetched",
    )
    file_service_key: str | None = variable(
        "OWNPOD_FILE_SERVICE_KEY",
        secret=True,
        alias=Alias(name="FILE_SERVICE_INTERNAL_KEY"),
        purpose="key of the file service",
    )
    file_service_bucket: str = variable(
        "OWNPOD_FILE_SERVICE_BUCKET",
        "models",
        alias=Alias(name="FILE_SERVICE_BUCKET"),
        purpose="the file service's bucket with the models, if the service lists files instead of sending models",
    )
    gpu_wait_s: int | None = variable(
        "OWNPOD_GPU_WAIT_S",
        limits=(0, DAY_S),
        unset="unset: 60 for a session, the job's `ttl` for a one-off task",
        purpose="seconds for which a new session, or the container of a one-off task, waits for a device where the request has no "
        "`wait_seconds`. 0: the request is answered 503 if no device is free or freeable",
    )
    custom_tasks: bool = variable(
        "OWNPOD_CUSTOM_TASKS",
        default=False,
        purpose="whether one-off tasks may have images of their clients' choice, among those of presets and of `OWNPOD_IMAGES`, if that is "
        "set; with an admin key or one of `OWNPOD_CUSTOM_TASK_KEYS`",
    )
    custom_task_keys: tuple[Credential, ...] = variable(
        "OWNPOD_CUSTOM_TASK_KEYS",
        kind=kinds.Keys,
        secret=True,
        unset="unset: admin keys only",
        purpose="comma-separated keys, plain or `sha256:<hex>`, that may submit custom tasks and read "
        "their events",
    )
