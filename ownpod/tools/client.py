"""A client of the API, for ``ownpod submit`` and the other commands that run on any host."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ownpod.errors import OwnPodError
from ownpod.rules.jobs import JobStatus

WAIT_MS = 60_000
"""Milliseconds for which one request waits for a job's end. The request is repeated until the job ends."""

ENDED = frozenset(status for status in JobStatus if status.terminal)
"""The statuses of a job that has ended."""


class ApiError(OwnPodError):
    """The API refused a request, or cannot be reached."""


class ApiRefused(ApiError):
    """The API refused a request.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One endpoint, as its clients reach it over HTTP.

    Args:
        url: the API's base URL, without ``/v2``.
        key: an API key; None: the API needs none.
        endpoint: the endpoint's id.
        patient: retry for about 20 s while the API refuses connections, as it does during a restart.
        repeat_503: repeat what was answered 503, as a restart of Redis is. False: the reason is raised at once; a full queue of a
            session is answered 503, too.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        endpoint: str,
        *,
        patient: bool = False,
        repeat_503: bool = True,
    ) -> None:
        self._url = url.rstrip("/")
        self.endpoint = endpoint
        self._http = requests.Session()
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"
        # 502 and 503: Redis or the API is away for a moment. POST is retried as well, because each
        # submission has an Idempotency-Key and so cannot create a second job.
        retry = Retry(
            10,
            connect=8 if patient else 1,
            backoff_factor=0.2,
            backoff_max=5,
            status_forcelist=[502, 503] if repeat_503 else [502],
            allowed_methods=None,
            respect_retry_after_header=repeat_503,
        )
        for scheme in ("http://", "https://"):
            self._http.mount(scheme, HTTPAdapter(pool_maxsize=128, max_retries=retry))

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Calls a path below the endpoint; returns the parsed JSON. Raises: ApiError."""
        return self.json(method, f"/v2/{self.endpoint}{path}", **options)

    def json(self, method: str, path: str, **options: Any) -> Any:
        """Calls a path of the API; returns the parsed JSON. Raises: ApiError."""
        with self.opened(method, path, **options) as response:
            return response.json()

    def endpoints(self) -> list[str]:
        """The ids of all endpoints that the key permits. Raises: ApiError."""
        with self.opened("GET", "/v2/") as response:
            return list(response.json()["endpoints"])

    def agents(self) -> list[dict[str, Any]]:
        """The hosts that start workers, with their devices. Empty where the key, or an older API, does not show them.

        Raises:
            ApiError: the API cannot be reached.
        """
        try:
            with self.opened("GET", "/agents") as response:
                return list(response.json()["agents"])
        except ApiRefused:
            return []

    def submit(self, job_input: Any, *, key: str, policy: dict[str, Any] | None = None) -> str:
        """Queues a job; returns its id. A second call with the same ``key`` returns the same job. Raises: ApiError."""
        body = {"input": job_input, **({"policy": policy} if policy else {})}
        answer = self.call("POST", "/run", json=body, headers={"Idempotency-Key": key})
        return str(answer["id"])

    def wait(self, job_id: str) -> dict[str, Any]:
        """Waits until the job ends, without a limit; returns its last status. Raises: ApiError."""
        while True:
            status = self.call("GET", f"/status-sync/{job_id}?wait={WAIT_MS}")
            if status["status"] in ENDED:
                return dict(status)

    def chunks(self, job_id: str) -> Iterator[Any]:
        """Yields the job's chunks as they arrive, until the job ends. Raises: ApiError."""
        headers = {"Accept": "text/event-stream"}
        path = f"/v2/{self.endpoint}/stream/{job_id}"
        with self.opened("GET", path, headers=headers, stream=True) as response:
            for line in response.iter_lines(chunk_size=1):
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    # An event with a status is the end of the job, and repeats its output.
                    if "output" in event and "status" not in event:
                        yield event["output"]

    @contextlib.contextmanager
    def opened(self, method: str, path: str, **options: Any) -> Iterator[requests.Response]:
        """An answer of the API, whose body may be read while it arrives. Raises: ApiError."""
        try:
            with self._http.request(
                method, f"{self._url}{path}", timeout=(5, WAIT_MS / 1000 + 30), **options
            ) as response:
                if not response.ok:
                    raise ApiRefused(
                        f"{self._url}: HTTP {response.status_code}: {_reason(response)}",
                        response.status_code,
                    )
                yield response
        except requests.ConnectionError as error:
            raise ApiError(
                f"{self._url} cannot be reached: is OwnPod running there? Set OWNPOD_URL to its address"
            ) from error
        except (requests.RequestException, ValueError) as error:
            raise ApiError(f"{self._url}: {error}") from error


def _reason(response: requests.Response) -> str:
    try:
        body = response.json()
        return str(body["error"] if "error" in body else body["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
