"""What fetches a model, by its source: the hub's library, fsspec, HTTP, the file service. Runs in a process of its own."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from ownpod.agent.model_archives import Counted, is_archive, unpack
from ownpod.agent.model_downloads import (
    PIECE,
    FetchError,
    Http,
    Part,
    Progress,
    Room,
    Wanted,
    check_status,
    length_of,
    name_in,
)
from ownpod.agent.model_folders import size_of
from ownpod.agent.model_orders import Options
from ownpod.agent.model_rest import ARCHIVE
from ownpod.rules.model_news import State
from ownpod.rules.models import MOST_FILES, ModelSource, check_file

LOOK = 16 * PIECE
"""Bytes of a model of unknown size after which there is looked for room."""

LISTED = 10 * 1024 * 1024
"""Bytes of a list of files, at most."""


class Meter:
    """The progress of a fetch.

    Args:
        report: gets the bytes that are here and the bytes of all, 0 if that is not known.
        room: makes room for bytes that are still to be written, beside those that are here. Raises: FetchError.
        state: gets what is done from now on.
        checked: gets the number of bytes that are newly checked or unpacked.
    """

    def __init__(
        self,
        report: Callable[[int, int], None],
        room: Room,
        state: Callable[[State], None],
        checked: Callable[[int], None],
    ) -> None:
        self._report = report
        self._looked = 0
        self._state = state
        self._checked = checked
        self.room = room
        self.done = self.total = 0

    def add(self, count: int) -> None:
        """These bytes are new. Raises: FetchError, a model of unknown size has no room for them."""
        self.done += count
        if not self.total and self.done - self._looked >= LOOK:
            self._looked = self.done
            self.room(0, self.done)
        self._report(self.done, self.total)

    def expect(self, total: int) -> None:
        """All of it has this number of bytes; 0: not known."""
        self.total = total
        self._report(self.done, total)

    @contextlib.contextmanager
    def checks(self) -> Iterator[Progress]:
        """Files are checked or unpacked meanwhile: no byte comes then, and the agent must not take it for a stall.

        Gives a function that gets the bytes which are checked or unpacked.
        """
        self._state(State.CHECKING)
        yield self._checked
        self._state(State.FETCHING)


def over_http(source: ModelSource, into: Path, meter: Meter, options: Options) -> str:
    """One file from a URL, unpacked if it is an archive. Returns the path of the model within: the file, or "".

    Raises:
        FetchError: it cannot be fetched.
    """
    http = Http(stall_s=options.stall_s)
    return files_over_http(http, [Wanted(name_in(source.source), source.source)], into, meter)


def files_over_http(http: Http, files: Iterable[Wanted], into: Path, meter: Meter) -> str:
    """Files from URLs; one archive alone is unpacked. Returns the path of the model within. Raises: FetchError."""
    wanted = []
    for file in files:
        size = http.size(file) if file.size is None else file.size
        wanted.append(Wanted(file.path, file.url, size, file.sha256))
    if not wanted:
        raise FetchError("the source has no files")
    total = sum(file.size or 0 for file in wanted)
    meter.expect(total if all(file.size is not None for file in wanted) else 0)
    alone = wanted[0] if len(wanted) == 1 else None
    packed = alone is not None and is_archive(alone.path)
    # Packed and unpacked at the same time.
    _make_room(meter, (2 if packed else 1) * total, into)
    for file in wanted:
        path = http.fetch(file, into, meter.add, meter.checks)
    if alone is None or not packed:
        return alone.path if alone else ""
    archive = into.with_name(f"{into.name}{ARCHIVE}")
    path.rename(archive)
    _empty(into)
    try:
        with archive.open("rb") as stream, meter.checks() as unpacked:
            unpack(stream, into, meter.room, unpacked)
    finally:
        archive.unlink(missing_ok=True)
    return ""


def over_fsspec(source: ModelSource, into: Path, meter: Meter, _options: Options) -> str:
    """A file, or all files below a prefix, of what fsspec reads. Returns the path of the model within.

    Raises:
        FetchError: it cannot be fetched.
    """
    scheme = source.source.partition("://")[0]
    try:
        import fsspec

        system, top = fsspec.core.url_to_fs(source.source)
    except ImportError:
        extra = "s3" if scheme == "s3" else "models"
        raise FetchError(
            f"{scheme}:// is not installed where the agent runs: pip install 'ownpod[{extra}]'"
        ) from None
    with _remote_errors(source):
        if system.isfile(top):
            found: Mapping[str, Any] = {top: system.info(top)}
            top = top.rpartition("/")[0]
        else:
            found = system.find(top, detail=True)
        files = [
            (check_file(name[len(top) :].strip("/")), name, info)
            for name, info in sorted(found.items())
            # A folder that a console of S3 has made is an empty object.
            if info.get("type") == "file" and not name.endswith("/")
        ]
        if not files or len(files) > MOST_FILES:
            raise FetchError(f"{source.shown} has {len(files) or 'no'} files")
        meter.expect(sum(int(info["size"]) for *_, info in files))
        _make_room(meter, meter.total, into)
        for path, name, info in files:
            _copy(system, name, info, into / path, meter)
    return files[0][0] if len(files) == 1 else ""


def _copy(system: Any, name: str, info: Mapping[str, Any], target: Path, meter: Meter) -> None:
    size = int(info["size"])
    if target.is_file() and target.stat().st_size == size:
        meter.add(size)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(target)
    have, tag = part.begin()
    version = f"{size} {info.get('ETag') or info.get('mtime') or info.get('LastModified')}"
    begins = have if tag == version and have <= size else 0
    part.note(version)
    meter.add(begins)
    with system.open(name, "rb") as file:
        file.seek(begins)
        part.write(iter(lambda: file.read(PIECE), b""), begins, meter.add, most=size)
    part.finish(size, "", target.name)


@contextlib.contextmanager
def _remote_errors(source: ModelSource) -> Any:
    try:
        yield
    except FetchError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        word = "does not exist" if isinstance(error, FileNotFoundError) else "may not be read"
        raise FetchError(f"{source.shown} {word}") from None
    except ValueError as error:
        raise FetchError(str(error)) from None
    except Exception as error:  # noqa: BLE001 - each system raises errors of its own
        raise FetchError(f"{source.shown}: {type(error).__name__}", again=True) from None


def over_service(source: ModelSource, into: Path, meter: Meter, options: Options) -> str:
    """A model from the file service: the answer is a list of files, the files themselves, or the service has written them.

    Raises:
        FetchError: it cannot be fetched.
    """
    if not options.service_url:
        raise FetchError("OWNPOD_FILE_SERVICE_URL is not set where the agent runs")
    base = f"{options.service_url.rstrip('/')}/"
    key = options.service_key
    headers = {"X-Internal-Key": key, "Authorization": f"Bearer {key}"} if key else {}
    http = Http(headers=headers, host=urlsplit(base).netloc, stall_s=options.stall_s)
    model_id = source.source.partition(":")[2] or source.id
    asked = {"model_id": model_id, "destination": str(into)}
    with http.open("POST", urljoin(base, "api/models/download"), json=asked) as answer:
        if answer.status_code not in {404, 405}:
            check_status(answer, "the file service")
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and answer.headers.get("Content-Length") != "0":
                return _body(answer, kind, model_id, into, meter)
            body = _json(answer) if kind == "application/json" else {}
            found = list(_files(body, base))
            if not found:
                if not any(into.iterdir()):
                    raise FetchError(f"the file service has put no files of {model_id!r} here")
                return ""
        else:
            found = []
    listed = found or list(_bucket(http, base, options.service_bucket, model_id))
    return files_over_http(http, listed, into, meter)


def _files(body: Any, base: str) -> Iterable[Wanted]:
    """The files that an answer of the service lists."""
    listed = body.get("files") if isinstance(body, dict) else None
    if listed is None and isinstance(body, dict) and isinstance(body.get("url"), str):
        yield Wanted(name_in(body["url"]), urljoin(base, body["url"]))
        return
    for file in listed or ():
        try:
            path, url = str(file.get("path") or file["key"]), urljoin(base, str(file["url"]))
            size, total = file.get("size"), str(file.get("sha256") or "")
            yield Wanted(check_file(path), url, None if size is None else int(size), total)
        except (KeyError, TypeError, AttributeError):
            raise FetchError("the file service lists a file without path or url") from None
        except ValueError as error:
            raise FetchError(f"the file service: {error}") from None


def _bucket(http: Http, base: str, bucket: str, model_id: str) -> Iterable[Wanted]:
    """The files of a model in the service's bucket."""
    prefix = f"{model_id.strip('/')}/"
    query = f"bucket={quote(bucket)}&prefix={quote(prefix)}"
    with http.open("GET", f"{urljoin(base, 'internal/list')}?{query}") as answer:
        check_status(answer, "the file service")
        body = _json(answer)
    for file in body.get("files", ()) if isinstance(body, dict) else ():
        key = str(file.get("key", "")) if isinstance(file, dict) else ""
        if not key.startswith(prefix) or key == prefix:
            continue
        try:
            path = check_file(key.removeprefix(prefix))
        except ValueError as error:
            raise FetchError(f"the file service: {error}") from None
        url = urljoin(base, f"internal/download/{quote(bucket)}/{quote(key)}")
        size = file.get("size")
        yield Wanted(
            path, url, size if isinstance(size, int) else None, str(file.get("sha256") or "")
        )


def _json(answer: Any) -> Any:
    text = answer.raw.read(LISTED + 1)
    try:
        return json.loads(text[:LISTED])
    except (ValueError, RecursionError):
        raise FetchError("the file service answers with no JSON that can be used") from None


def _body(answer: Any, kind: str, model_id: str, into: Path, meter: Meter) -> str:
    """The body of an answer is the model: an archive, or one file."""
    size = length_of(answer)
    given = re.search(r'filename="?([^";]+)"?', answer.headers.get("Content-Disposition", ""))
    name = given[1].strip() if given else re.sub(r"[^A-Za-z0-9._-]+", "-", model_id)
    meter.expect(size or 0)
    meter.room(size or 0, 0)
    if kind in {"application/x-tar", "application/gzip", "application/x-gzip"} or is_archive(name):
        _empty(into)
        unpack(Counted(answer.raw, meter.add), into, meter.room)
        return ""
    try:
        target = into / check_file(name)
    except ValueError as error:
        raise FetchError(f"the file service: {error}") from None
    part = Part(target)
    part.drop()
    part.write(answer.iter_content(PIECE), 0, meter.add, most=size)
    part.finish(size, "", "the file service's answer")
    return name


def _make_room(meter: Meter, total: int, into: Path) -> None:
    here = min(total, size_of(into))
    meter.room(total - here, here)


def _empty(directory: Path) -> None:
    """What a killed try has unpacked may be cut, or of an older archive."""
    shutil.rmtree(directory)
    directory.mkdir(mode=0o755)


def clear(directory: Path) -> None:
    """Removes what a fetch has left besides the model."""
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    for path in (*directory.rglob("*.part"), *directory.rglob("*.part.tag")):
        path.unlink(missing_ok=True)
