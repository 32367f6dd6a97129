"""The environment variables of the front, see :mod:`ownpod.settings.variables`."""

from dataclasses import dataclass

from ownpod.settings import kinds
from ownpod.settings.declare import variable
from ownpod.validation import check_file


@dataclass(frozen=True, kw_only=True)
class Front:
    """The front: HAProxy before the API and before the workers of load-balanced endpoints."""

    front: str = variable(
        "OWNPOD_FRONT",
        "auto",
        choices=("auto", "on", "off"),
        purpose="whether `ownpod up` starts the front, which load-balanced endpoints need, and behind which requests wait while "
        "the API restarts. `auto`: if there is an HAProxy from 2.8 on",
    )
    lb_domain: str = variable(
        "OWNPOD_LB_DOMAIN",
        "localhost",
        check=kinds.check_host,
        purpose="domain whose names `<endpoint>.<domain>` lead to the workers of load-balanced endpoints, beside the path "
        "`/lb/<endpoint>/`",
    )
    lb_timeout_status: int = variable(
        "OWNPOD_LB_TIMEOUT_STATUS",
        400,
        limits=(400, 599),
        purpose="HTTP status of a request for which no worker was ready in time. RunPod's is 400; 503 lets more clients try again",
    )
    front_address: str | None = variable(
        "OWNPOD_FRONT_ADDRESS",
        check=kinds.check_address,
        unset="unset: no other front reaches this one",
        purpose="`<host>:<port>` at which the fronts of other hosts reach this one",
    )
    front_metrics: str | None = variable(
        "OWNPOD_FRONT_METRICS",
        check=kinds.check_address,
        unset="unset: none",
        purpose="`<host>:<port>` on which HAProxy serves its own metrics for Prometheus, at `/metrics`. They need no key, so choose an "
        "address that callers do not reach, like `127.0.0.1:9101`",
    )
    tls_certificate: str | None = variable(
        "OWNPOD_TLS_CERTIFICATE",
        check=check_file,
        unset="unset: no TLS",
        purpose="PEM file with a certificate, its chain and its key, with which the front serves HTTPS on `OWNPOD_TLS_PORT`",
    )
    tls_port: int = variable(
        "OWNPOD_TLS_PORT",
        8443,
        limits=(1, 65535),
        purpose="port of the front for HTTPS",
    )
