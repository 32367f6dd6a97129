"""One file of a model over HTTP: continued where it was cut, checked, and moved to its place when whole."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests

from ownpod.errors import OwnPodError
from ownpod.rules.models import check_file

PIECE = 1024 * 1024
"""Bytes that are read at a time."""

REDIRECTS = 5
"""Number of redirects that are followed."""

CONNECT_S = 15.0
"""Seconds for a connection."""

LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which a second try may help."""

Progress = Callable[[int], None]
"""Gets the number of bytes that are new."""

Room = Callable[[int, int], None]
"""Makes room for bytes that are still to be written, beside those that are here. Raises: FetchError."""

Checks = Callable[[], contextlib.AbstractContextManager[Progress]]
"""Is entered while a file is checked or unpacked. Gives a function that gets the bytes which are done meanwhile."""


def uncounted(_count: int) -> None:
    """Takes progress that nothing shows."""


@contextlib.contextmanager
def _unseen() -> Iterator[Progress]:
    yield uncounted


class FetchError(OwnPodError):
    """A model cannot be fetched, with the reason in words for people. ``again``: a second try may help."""

    def __init__(self, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


@dataclass(frozen=True)
class Wanted:
    """A file that is to be fetched.

    Attributes:
        path: its path within the model.
        url: where it is.
        size: its bytes; None: as the server reports it.
        sha256: of its bytes in hex; "": not known.
    """

    path: str
    url: str
    size: int | None = None
    sha256: str = ""

    @property
    def place(self) -> str:
        """The URL for people, without what may be secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Http:
    """A client that sends its own headers to one host only, also after redirects.

    Args:
        headers: of the requests to ``host``.
        host: its name, with the port if the URL has one.
        stall_s: seconds without a byte after which a request has failed.
    """

    def __init__(
        self, *, headers: Mapping[str, str] | None = None, host: str = "", stall_s: float = 60.0
    ) -> None:
        self._headers = dict(headers or {})
        self._host = host
        self._stall_s = stall_s
        self._session = requests.Session()
        # The bytes themselves are wanted, and none in another coding.
        self._session.headers["Accept-Encoding"] = "identity"

    @contextlib.contextmanager
    def open(self, method: str, url: str, **options: Any) -> Iterator[requests.Response]:
        """An answer whose body is not read yet. Raises: FetchError."""
        headers = options.pop("headers", {})
        try:
            for _ in range(REDIRECTS + 1):
                parts = urlsplit(url)
                if parts.scheme not in {"http", "https"} or not parts.hostname:
                    raise FetchError("the server names an address that is no http or https URL")
                own = self._headers if parts.netloc == self._host else {}
                with self._session.request(
                    method,
                    url,
                    headers={**own, **headers},
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_S, self._stall_s),
                    **options,
                ) as answer:
                    if not answer.is_redirect:
                        yield answer
                        return
                    url = urljoin(url, answer.headers["Location"])
                    if answer.status_code == 303:
                        method, options = "GET", {}
        except requests.RequestException as error:
            host = urlsplit(url).netloc.rpartition("@")[2]
            raise FetchError(f"{host} does not answer: {_short(error)}", again=True) from None
        except OSError as error:
            raise FetchError(f"cannot be written: {error.strerror}") from None
        except ValueError as error:
            raise FetchError(f"the URL cannot be used: {type(error).__name__}") from None
        raise FetchError(f"more than {REDIRECTS} redirects")

    def size(self, file: Wanted) -> int | None:
        """The bytes of a file as its server reports; None: it does not report them. Raises: FetchError."""
        with self.open("HEAD", file.url) as answer:
            return length_of(answer) if answer.ok else None

    def fetch(self, file: Wanted, into: Path, progress: Progress, checks: Checks = _unseen) -> Path:
        """Fetches a file into a directory, from where an earlier try was cut. Returns its path.

        Args:
            file: what is fetched.
            into: the directory.
            progress: gets the bytes.
            checks: is entered while its sum is checked.

        Raises:
            FetchError: it cannot be fetched, or has another size or SHA-256 than it should have.
        """
        target = into / check_file(file.path)
        if target.is_file() and file.size in {None, target.stat().st_size}:
            progress(target.stat().st_size)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Part(target)
        have, tag = part.begin()
        headers = {"Range": f"bytes={have}-", "If-Range": tag} if have and tag else {}
        with self.open("GET", file.url, headers=headers) as answer:
            if answer.status_code == 416:
                part.drop()
                raise FetchError(f"{file.place} has changed meanwhile", again=True)
            check_status(answer, file.place)
            continues = answer.status_code == 206
            given = answer.headers.get("Content-Range", "")
            if continues and not re.match(rf"bytes {have}-", given):
                part.drop()
                raise FetchError(f"{file.place} is not continued where it was cut", again=True)
            begins = have if continues else 0
            size, length = file.size, length_of(answer)
            if size is None and length is not None:
                size = begins + length
            part.note(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
            progress(begins)
            part.write(answer.iter_content(PIECE), begins, progress, most=size)
        with checks() if file.sha256 else _unseen() as checked:
            part.finish(size, file.sha256, file.place, checked)
        return target


class Part:
    """A file that is being written, beside the place where it will be."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._file = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.tag")

    def begin(self) -> tuple[int, str]:
        """Bytes that an earlier try has left, and the server's tag of that version of the file; 0 and "": none."""
        try:
            tag = json.loads(self._note.read_text())
            # A weak tag does not promise the same bytes.
            known = isinstance(tag, str) and tag != "" and not tag.startswith("W/")
            return (self._file.stat().st_size, tag) if known else (0, "")
        except (OSError, ValueError):
            return 0, ""

    def note(self, tag: str) -> None:
        """Keeps the server's tag of the version whose bytes follow."""
        self._note.write_text(json.dumps(tag))

    def drop(self) -> None:
        """Removes the bytes, so that the next try begins at the first one."""
        self._file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def write(
        self, pieces: Iterator[bytes], begins: int, progress: Progress, *, most: int | None
    ) -> None:
        """Writes pieces from a position on. Raises: FetchError, it is longer than it should be, or the disk is full."""
        try:
            with self._file.open("r+b" if begins else "wb") as file:
                file.truncate(begins)
                file.seek(begins)
                for piece in pieces:
                    begins += len(piece)
                    if most is not None and begins > most:
                        file.close()
                        self.drop()
                        raise FetchError(f"{self._target.name} is longer than its {most} bytes")
                    file.write(piece)
                    progress(len(piece))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # The libraries' own errors are OSErrors, too: those have no number.
            if error.errno is None:
                raise
            raise FetchError(f"{self._target.name} cannot be written: {error.strerror}") from None

    def finish(
        self, size: int | None, sha256: str, place: str, checked: Progress = uncounted
    ) -> None:
        """Checks the file, and moves it to its place. Raises: FetchError."""
        have = self._file.stat().st_size
        if size is not None and have != size:
            raise FetchError(f"{place} was cut: {have} of {size} bytes", again=True)
        if sha256 and sum_of(self._file, checked) != sha256.lower():
            self.drop()
            raise FetchError(f"{place} does not have the SHA-256 that it should have", again=True)
        self._file.rename(self._target)
        self._note.unlink(missing_ok=True)


def sum_of(path: Path, checked: Progress = uncounted) -> str:
    """The SHA-256 of a file in hex. ``checked`` gets the bytes as they are read. Raises: OSError."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            total.update(piece)
            checked(len(piece))
    return total.hexdigest()


def check_status(answer: requests.Response, place: str) -> None:
    """Raises: FetchError, unless the answer is a success with its bytes as they are."""
    code = answer.status_code
    if not answer.ok:
        raise FetchError(f"{place} answers with HTTP {code}", again=code in LATER)
    if answer.headers.get("Content-Encoding", "identity") not in {"identity", ""}:
        raise FetchError(f"{place} comes in another coding than asked for")


def length_of(answer: requests.Response) -> int | None:
    """The bytes of an answer's body as its server reports them; None: it does not."""
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def name_in(url: str) -> str:
    """The name of the file that a URL has. Raises: FetchError."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    try:
        return check_file(name)
    except ValueError:
        raise FetchError("the source names no file: its path must end with a file's name") from None


def _short(error: Exception) -> str:
    """An error of the library without the URL in it, which may have secrets."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
