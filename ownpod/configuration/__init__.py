"""Endpoints and their workers as they are defined: in ``workers.yaml``, in ``OWNPOD_WORKERS``, and in entries of run time.

Imports the rules, the settings, and the modules below them. It uses neither Redis nor HTTP.
"""

from ownpod.configuration.balancing import BALANCED_KEYS, check_balanced_worker
from ownpod.configuration.endpoints import (
    EXECUTION_TIMEOUT_MS,
    TTL_MS,
    AddedEndpointSchema,
    endpoint_entry,
    make_endpoint,
)
from ownpod.configuration.file import (
    LONGEST_PROBLEM,
    keep_endpoints,
    kept_endpoints,
    load_endpoints,
    yaml_problem,
)
from ownpod.configuration.preset_endpoints import allowed_images, custom_images, device_difficulties
from ownpod.configuration.workers import (
    AddedWorkerSchema,
    WorkerSchema,
    check_unique,
    make_worker,
    parse_headers,
    worker_id_of,
)

__all__ = [
    "BALANCED_KEYS",
    "EXECUTION_TIMEOUT_MS",
    "LONGEST_PROBLEM",
    "TTL_MS",
    "AddedEndpointSchema",
    "AddedWorkerSchema",
    "WorkerSchema",
    "allowed_images",
    "check_balanced_worker",
    "check_unique",
    "custom_images",
    "device_difficulties",
    "endpoint_entry",
    "keep_endpoints",
    "kept_endpoints",
    "load_endpoints",
    "make_endpoint",
    "make_worker",
    "parse_headers",
    "worker_id_of",
    "yaml_problem",
]
