"""The API from the outside, as ``ownpod submit`` and the other commands use it; also on another host."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ownpod.errors import OwnPodError

WAIT_MS = 60_000
"""Of one request that waits for a job's end; there are as many as it takes."""

TERMINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


class ApiError(OwnPodError):
    """The API refused, or cannot be reached."""


class Client:
    """An endpoint of an OwnPod.

    Args:
        url: the API's base URL, without ``/v2``.
        key: an API key, if it wants one.
        endpoint: whose jobs.
        patient: waits some seconds for an API that is not there, as in a restart.
    """

    def __init__(self, url: str, key: str | None, endpoint: str, *, patient: bool = False) -> None:
        self._url = url.rstrip("/")
        self.endpoint = endpoint
        self._http = requests.Session()
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"
        # A Redis that is away is waited for; submissions carry a key against doubles.
        retry = Retry(
            10,
            connect=8 if patient else 1,
            backoff_factor=0.2,
            backoff_max=5,
            status_forcelist=[502, 503],
            allowed_methods=None,
        )
        for scheme in ("http://", "https://"):
            self._http.mount(scheme, HTTPAdapter(pool_maxsize=128, max_retries=retry))

    def call(self, method: str, path: str, **options: Any) -> Any:
        """What the API answers to a path below the endpoint. Raises: ApiError."""
        with self._open(method, f"/v2/{self.endpoint}{path}", **options) as response:
            return response.json()

    def endpoints(self) -> list[str]:
        """All endpoints that the key is for. Raises: ApiError."""
        with self._open("GET", "/v2/") as response:
            return list(response.json()["endpoints"])

    def submit(self, job_input: Any, *, key: str, policy: dict[str, Any] | None = None) -> str:
        """Queues a job; again under the same key is the same job. Answers its id."""
        body = {"input": job_input, **({"policy": policy} if policy else {})}
        answer = self.call("POST", "/run", json=body, headers={"Idempotency-Key": key})
        return str(answer["id"])

    def wait(self, job_id: str) -> dict[str, Any]:
        """The job's last status, however long that takes."""
        while True:
            status = self.call("GET", f"/status-sync/{job_id}?wait={WAIT_MS}")
            if status["status"] in TERMINAL:
                return dict(status)

    def chunks(self, job_id: str) -> Iterator[Any]:
        """What the job yields, as it comes, until its end."""
        headers = {"Accept": "text/event-stream"}
        path = f"/v2/{self.endpoint}/stream/{job_id}"
        with self._open("GET", path, headers=headers, stream=True) as response:
            for line in response.iter_lines(chunk_size=1):
                if line.startswith(b"data:"):
                    said = json.loads(line[5:])
                    if "output" in said and "status" not in said:
                        yield said["output"]

    @contextlib.contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Iterator[requests.Response]:
        try:
            with self._http.request(
                method, f"{self._url}{path}", timeout=(5, WAIT_MS / 1000 + 30), **options
            ) as response:
                if not response.ok:
                    raise ApiError(f"{self._url}: HTTP {response.status_code}: {_reason(response)}")
                yield response
        except requests.ConnectionError as error:
            raise ApiError(
                f"{self._url} cannot be reached: is OwnPod up there? OWNPOD_URL says where"
            ) from error
        except (requests.RequestException, ValueError) as error:
            raise ApiError(f"{self._url}: {error}") from error


def _reason(response: requests.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
