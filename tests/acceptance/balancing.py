"""An OwnPod with load-balanced endpoints behind its front, and their workers, for the tests of clients."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme
from helpers import OwnPod, Process, answers, wait_until

from ownpod.processes import free_port

DOMAIN = "lb.test"
"""A domain of the reserved top-level name ``test``, whose names the tests resolve by themselves."""

WORKER = Path(__file__).with_name("balanced_worker.py")


class Balanced(OwnPod):
    """An OwnPod with the endpoint ``web``, whose only worker is :data:`WORKER`, over HTTP and HTTPS.

    ``authority``: the file with the certificate of the CA. ``tls_port``: of HTTPS.
    """

    authority: Path
    tls_port: int
    worker_url: str

    @property
    def root(self) -> str:
        """OwnPod's URL without a path."""
        return self.base.removesuffix("/v2")


def certificate(directory: Path, *names: str) -> tuple[Path, Path]:
    """Files with the certificate of a new CA, and with a certificate for these names, its chain and its key."""
    ca = trustme.CA()
    authority, own = directory / "authority.pem", directory / "own.pem"
    ca.cert_pem.write_to_path(authority)
    ca.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(own)
    return authority, own


@contextmanager
def balancing(directory: Path, domain: str = DOMAIN, **environ: object) -> Iterator[Balanced]:
    """Starts a worker and an OwnPod, and waits until the front sends it requests."""
    port, tls_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    worker = Process(sys.executable, WORKER, log=directory / "worker.log", PORT=port)
    ownpod = None
    try:
        wait_until(lambda: answers(f"{url}/ping"), 40, "the worker")
        (directory / "workers.yaml").write_text(
            f"endpoints: {{web: {{type: LB, workers: [{{id: w1, url: '{url}'}}]}}}}\n"
        )
        # The wildcard of one label, which no library accepts, would not do for names below localhost.
        authority, own = certificate(directory, f"*.{DOMAIN}", DOMAIN)
        ownpod = Balanced(
            directory,
            OWNPOD_WORKERS_FILE=directory / "workers.yaml",
            OWNPOD_FRONT="on",
            OWNPOD_LB_DOMAIN=domain,
            OWNPOD_TLS_CERTIFICATE=own,
            OWNPOD_TLS_PORT=tls_port,
            **environ,
        )
        ownpod.authority, ownpod.tls_port, ownpod.worker_url = authority, tls_port, url
        yield ownpod
    finally:
        if ownpod is not None:
            ownpod.stop()
            print(ownpod.output)
        worker.kill()
        print(worker.output)
