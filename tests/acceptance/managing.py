"""An OwnPod whose endpoints are made through RunPod's management APIs, for the tests of their clients."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import OwnPod

ADMIN = "the-admin-key"
POOL = "AMPERE_24"
"""The pool of the host's only device."""

HANDLERS = Path(__file__).with_name("handlers.py")
START = [sys.executable, str(HANDLERS)]
"""The command of a template whose workers run the handlers of these tests."""

ENV = {"HANDLER": "sync", "PYTHONUNBUFFERED": "1"}


@contextmanager
def managing(directory: Path) -> Iterator[OwnPod]:
    """Starts an OwnPod with an admin key and one device that stands in for a GPU of :data:`POOL`."""
    (directory / "workers.yaml").write_text("endpoints: {}\n")
    ownpod = OwnPod(
        directory,
        OWNPOD_WORKERS_FILE=directory / "workers.yaml",
        OWNPOD_ADMIN_KEYS=ADMIN,
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:1",
        OWNPOD_LABELS=f"pool={POOL}",
        OWNPOD_SHUTDOWN_GRACE_S=2,
    )
    try:
        yield ownpod
    finally:
        ownpod.stop()
        print(ownpod.output)


def flash_environment(root: str) -> dict[str, str]:
    """The variables with which runpod-flash manages the OwnPod at a URL."""
    return {
        "RUNPOD_API_KEY": ADMIN,
        "RUNPOD_API_BASE_URL": root,
        "RUNPOD_ENDPOINT_BASE_URL": f"{root}/v2",
        "RUNPOD_REST_API_URL": f"{root}/v1",
        "RUNPOD_HAPI_URL": f"{root}/hapi",
        "RUNPOD_CONSOLE_URL": root,
    }


def root_of(ownpod: OwnPod) -> str:
    """OwnPod's URL without a path."""
    return ownpod.base.removesuffix("/v2")
