"""The Docker engine's API through docker-py: the only module that knows the library, and the errors of both in words."""

import contextlib
import importlib.util
import json
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import requests

from ownpod.agent.engine import EngineError
from ownpod.agent.registry_logins import Login
from ownpod.errors import ExtraMissing

TIMEOUT_S = 60
"""Seconds until a call of the engine times out, besides pulls and stops."""

STREAM_BYTES = 65_536
"""Maximum number of bytes of a part of a container's output."""

LONGEST_REASON = 300
"""Maximum length in characters of what is quoted of an engine's error."""

PODMAN_CDI = (5, 4)
"""The first version of Podman whose Docker API passes a GPU on. Older ones start the container without it."""

PODMAN_OOM = (5, 0)
"""The first version of Podman that reports that the kernel killed a container because of its memory limit."""

_T = TypeVar("_T")

_START = "start it, or set DOCKER_HOST"

_MISSING_DIRECTORY = (
    "the directory {what} of a mount does not exist on the host of the Docker engine"
)

# In an engine's message, and the sentence for people. The first that fits counts.
_WORDS = (
    (
        r"could not select device driver",
        "the Docker engine has no GPU support: install the NVIDIA Container Toolkit on its host, then restart the engine",
    ),
    (
        r"unresolvable CDI devices? (?P<what>\S+)",
        "the Docker engine knows no CDI device {what}: run nvidia-ctk cdi generate on its host",
    ),
    (
        r"error setting rlimit|setrlimit ",
        "the engine may not raise the limits of a container: set default_ulimits in Podman's containers.conf",
    ),
    (r"^Not Found$", "Podman asks no registry what a tag means"),
    (r"no space left on device", "the disk of the Docker engine is full"),
    (
        r"bind source path does not exist: (?P<what>\S+)",
        _MISSING_DIRECTORY,
    ),
    (
        r"non-overlapping IPv4 address pool",
        "the Docker engine has no free address range for a network: remove unused ones with docker network prune",
    ),
    (
        r"no matching manifest for (?P<what>\S+)",
        "the image is not made for the processor of this host, {what}",
    ),
    (
        r"toomanyrequests|rate limit",
        "the registry limits the number of pulls now: run docker login on this host, or try later",
    ),
    (
        r"pull access denied|unauthorized|authentication required|denied: |no basic auth credentials",
        "the image does not exist, or its registry needs credentials: run docker login on this host",
    ),
    (
        r"manifest (for \S+ )?(is )?(unknown|not found)|not found: manifest|repository .*not found|name unknown",
        "the registry has no such image",
    ),
    (
        r"no such host|connection refused|i/o timeout|network is unreachable|TLS handshake|Client\.Timeout",
        "the registry cannot be reached from the Docker engine",
    ),
    (
        r"exec: \W*(?P<what>[^\s\"'\\:]+)\W*: (executable file not found|stat |no such file|permission denied)",
        "the image has no command {what}",
    ),
)


class NotThere(EngineError):
    """The engine has no such container, image or network."""


class Conflict(EngineError):
    """The name is in use, or the container is in a state that does not allow the call."""


class EngineAway(EngineError):
    """No engine answers."""


def words(message: str) -> str:
    """An error of the engine as one plain sentence."""
    for shape, sentence in _WORDS:
        if found := re.search(shape, message, re.IGNORECASE):
            return sentence.format(**found.groupdict())
    return f"the Docker engine refused: {one_line(message)}"


def missing_directory(place: str) -> str:
    """The sentence for a mount whose directory does not exist."""
    return _MISSING_DIRECTORY.format(what=place)


def away_words(problem: str) -> str:
    """Why no engine answers, as one plain sentence. ``problem``: docker-py's error."""
    if "Permission denied" in problem:
        return (
            "this user may not use the socket of the Docker engine: add the user to the group docker, "
            "or set DOCKER_HOST to an engine without root"
        )
    if "No such file" in problem:
        return f"there is no socket of a Docker engine here: {_START}"
    if "refused" in problem:
        return f"no Docker engine answers: {_START}"
    return f"the connection to the Docker engine failed: {one_line(problem)}"


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 3]}..."


def podman_version(answer: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Podman's version in an engine's answer to ``/version``; None if the engine is not Podman."""
    for part in answer.get("Components") or ():
        if part.get("Name") == "Podman Engine":
            return tuple(int(number) for number in re.findall(r"\d+", part["Version"])[:3])
    return None


def podman_without_gpus(version: tuple[int, ...]) -> str:
    """Why a Podman before :data:`PODMAN_CDI` starts no worker with a GPU."""
    return f"Podman {'.'.join(map(str, version))} gives no GPU to containers through its Docker API: version 5.4 or newer does"


def require() -> None:
    """Raises: ExtraMissing, docker-py is not installed."""
    if importlib.util.find_spec("docker") is None:
        raise ExtraMissing("the engine docker", "docker")


class DockerApi:
    """The API of one engine. Thread-safe. After an engine was away, calls work again without a new object.

    Args:
        url: of the engine's socket; None: ``DOCKER_HOST``, or the default socket.
        stall_s: seconds without a word from the engine after which a pull counts as stalled.
    """

    def __init__(self, url: str | None = None, *, stall_s: float = 300.0) -> None:
        require()
        self._url = url
        self._stall_s = stall_s
        self._client: Any = None
        self._lock = threading.Lock()

    def call(self, action: Callable[[Any], _T]) -> _T:
        """What ``action`` returns, which gets docker-py's low-level client.

        Raises:
            NotThere, Conflict, EngineAway: see there.
            EngineError: any other error of the engine.
        """
        with self._errors():
            return action(self._connected())

    def events(self, labels: Iterable[str]) -> "Events":
        """The stream of what happens to containers with these labels. Raises: EngineError."""
        # In Podman's filters, two of these events have other names.
        event = ["die", "oom", "destroy", "died", "remove"]
        filters = {"type": ["container"], "event": event, "label": list(labels)}
        response = self.call(
            lambda client: _open(
                client.get,
                f"{client.base_url}/v{client.api_version}/events",
                params={"filters": json.dumps(filters)},
                timeout=(TIMEOUT_S, None),
            )
        )
        return Events(response, response.iter_lines(), self._errors)

    def logs(
        self, container_id: str, *, follow: bool, since_s: str | None, tail: int | None
    ) -> "Stream":
        """The output of a container: frames with a time in front of each message.

        docker-py's own ``logs`` drops which stream a message is of.

        Args:
            container_id: the container.
            follow: whether the stream goes on until the container has ended.
            since_s: without messages before this time, seconds since the epoch as decimal text.
            tail: number of last messages; None: all.

        Raises:
            EngineError: it cannot be had.
        """
        params: dict[str, Any] = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow)}
        params |= {"since": since_s} if since_s else {}
        params["tail"] = "all" if tail is None else tail
        response = self.call(
            lambda client: _open(
                client.get,
                f"{client.base_url}/v{client.api_version}/containers/{container_id}/logs",
                params=params,
                timeout=(TIMEOUT_S, None if follow else TIMEOUT_S),
            )
        )
        return Stream(response, response.iter_content(STREAM_BYTES), self._errors)

    def pull(
        self, name: str, version: str, registry: str, login: Login | None = None
    ) -> Generator[Mapping[str, Any]]:
        """Pulls an image, and yields the engine's lines about it. The engine stops the pull when the caller closes the generator.

        docker-py's own ``pull`` has no timeout, so this is its request with one.

        Args:
            name: the image's, with its registry.
            version: its tag or digest.
            registry: whose login of this user counts without ``login``.
            login: credentials for the registry.

        Raises:
            EngineError: the image cannot be had, or the pull has stalled.
        """
        from docker import auth

        def begin(client: Any) -> Any:
            # The client has the user's settings of its start, and a later docker login must count.
            client.reload_config()
            header = auth.get_config_header(client, auth.resolve_index_name(registry))
            if login is not None:
                header = auth.encode_header(login.as_auth())
            return _open(
                client.post,
                f"{client.base_url}/v{client.api_version}/images/create",
                params={"fromImage": name, "tag": version},
                headers={"X-Registry-Auth": header} if header else {},
                timeout=(TIMEOUT_S, self._stall_s),
            )

        try:
            response = self.call(begin)
            with contextlib.closing(response), self._errors():
                for line in response.iter_lines():
                    found = _parsed(line)
                    if problem := found.get("error"):
                        raise EngineError(words(str(problem)))
                    yield found
        except _Silent:
            raise EngineError(
                f"the pull has stalled: no progress within {self._stall_s:g} s"
            ) from None

    def digest(self, reference: str, login: Login | None = None) -> str:
        """The digest that a registry has for a reference; ``login``: as in :meth:`pull`. Raises: EngineError."""

        def ask(client: Any) -> Any:
            client.reload_config()
            auth = None if login is None else login.as_auth()
            return client.inspect_distribution(reference, auth_config=auth)

        found = self.call(ask)
        return str((found.get("Descriptor") or {}).get("digest") or "")

    def podman(self) -> tuple[int, ...] | None:
        """Podman's version, if the engine is Podman: its number of the Docker API does not show that."""
        return self.call(lambda client: podman_version(client.version()))

    @property
    def local(self) -> bool:
        """Whether the engine is reached by a socket of this host, so that its directories may be looked up here."""
        return self.call(lambda client: str(client.base_url)).startswith("http+docker:")

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> Any:
        from docker import APIClient
        from docker.utils import kwargs_from_env

        with self._lock:
            if self._client is None:
                where = kwargs_from_env()
                if self._url is not None:
                    where["base_url"] = self._url
                self._client = APIClient(**where, version="auto", timeout=TIMEOUT_S)
            return self._client

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        from docker.errors import APIError, DockerException

        try:
            yield
        except APIError as error:
            raise _of_answer(error) from None
        except (requests.RequestException, DockerException, OSError) as error:
            if "timed out" in str(error).lower():
                raise _Silent(f"the Docker engine did not answer within {TIMEOUT_S} s") from None
            # Connections to an engine that has ended are of no use, and neither is the version that was agreed on.
            self.close()
            raise EngineAway(away_words(str(error))) from None


class Stream:
    """A stream of bytes of the engine, for one reader; :meth:`close` ends it, from any thread.

    Its end shows nothing: docker-py also ends it where the connection is lost.
    """

    def __init__(
        self,
        response: Any,
        parts: Iterator[bytes],
        errors: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        from docker.types import CancellableStream

        self._response = response
        self._stream = CancellableStream(parts, response)
        self._errors = errors

    def parts(self) -> Iterator[bytes]:
        with contextlib.closing(self._response), self._errors():
            yield from self._stream

    def close(self) -> None:
        # docker-py shuts down the socket below the reader, which may just have closed it.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self._stream.close()


class Events(Stream):
    """A stream of events."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for line in self.parts():
            if found := _parsed(line):
                yield found


class _Silent(EngineAway):
    """The engine did not answer in time."""


def _open(method: Callable[..., Any], url: str, **options: Any) -> Any:
    """An answer that is read as a stream. Raises: APIError."""
    from docker.errors import create_api_error_from_http_exception

    response = method(url, stream=True, **options)
    try:
        response.raise_for_status()
    except requests.HTTPError as error:
        with contextlib.closing(response):
            create_api_error_from_http_exception(error)
    return response


def _parsed(line: bytes) -> Mapping[str, Any]:
    """The object in a line; empty for what is none."""
    try:
        found = json.loads(line) if line.strip() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _of_answer(error: Any) -> EngineError:
    message = str(error.explanation or error)
    # Podman answers a name that is in use with 500.
    if error.status_code == 409 or "already in use" in message:
        return Conflict(words(message))
    if error.status_code == 404:
        return NotThere(words(message))
    return EngineError(words(message))
