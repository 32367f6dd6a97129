"""Models: where one comes from, what is known of it on a host, and which give way to a new one. Pure."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from ownpod.rules.images import size_words

HF, HTTP, FILE, SERVICE, REMOTE, PLACED = "hf", "http", "file", "file-service", "remote", ""
"""Kinds of sources: Hugging Face's hub; a URL; a path of this host; the file service; what fsspec reads; none, because the
operator has put the model into the directory of models.
"""

SERVICE_PREFIX = "file-service:"

SCHEMES = {
    "hf": HF,
    **dict.fromkeys(("http", "https"), HTTP),
    "file": FILE,
    **dict.fromkeys(("s3", "gs", "gcs", "az", "abfs", "sftp", "ftp", "memory", "local"), REMOTE),
}
"""The kind of a source by the scheme of its URL."""

SOURCE_ALLOWED = (
    "hf://owner/name, https://..., s3://bucket/..., gs://..., file:///... or file-service:"
)

LONGEST_ID, LONGEST_NAME, LONGEST_PATH, MOST_FILES = 200, 255, 1024, 100_000
"""Characters of a model's id; bytes of a part of a file's path, and of all of it; number of a model's files."""

FREE_SHARE, FREE_MOST = 0.05, 10 * 10**9
"""The share of a disk that stays free, and the bytes that are enough of it: a full disk stops everything else on it."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


@dataclass(frozen=True)
class ModelSource:
    """A model that an endpoint's workers get, mounted read-only.

    Attributes:
        id: the model's id, as clients and ``ownpod models`` name it.
        source: the URL it is fetched from: ``hf://``, ``s3://``, ``https://``, ``file://`` or ``file-service:``.
        revision: of ``hf://``, the commit, tag or branch; "": the default branch.
        flat: the worker gets real files at ``/models`` instead of Hugging Face's cache with its links.
        offline: the worker's environment forbids requests to the hub.
    """

    id: str
    source: str
    revision: str = ""
    flat: bool = False
    offline: bool = True

    @property
    def kind(self) -> str:
        """One of :data:`SCHEMES`, :data:`SERVICE` or :data:`PLACED`. Raises: ValueError."""
        if not self.source:
            return PLACED
        if self.source.startswith(SERVICE_PREFIX):
            return SERVICE
        kind = SCHEMES.get(self.source.partition("://")[0]) if "://" in self.source else None
        if kind is None:
            raise ValueError(f"source of model {self.id[:80]!r} must be {SOURCE_ALLOWED}")
        return kind

    @property
    def in_cache(self) -> bool:
        """Whether the model is in Hugging Face's cache of the host. Raises: ValueError."""
        return self.kind == HF and not self.flat

    @property
    def repository(self) -> str:
        """Owner and name on the hub."""
        return self.source.removeprefix("hf://")

    @property
    def cache_folder(self) -> str:
        """The directory of its repository in the cache, as Hugging Face's library names it."""
        return f"models--{self.repository.replace('/', '--')}"

    @property
    def name(self) -> str:
        """What ``MODEL_NAME`` says: RunPod's images look for a repository of the hub by it."""
        return self.repository if self.source.startswith("hf://") else self.id

    @property
    def own_place(self) -> str:
        """Where the GPU service has a model, relative to the directory of models; "": nowhere, its id is no path."""
        try:
            return check_file(self.id)
        except ValueError:
            return ""

    @property
    def shown(self) -> str:
        """The source for people: a signed URL has secrets in its query, another one before its host."""
        place, _, _ = self.source.partition("?")
        scheme, given, rest = place.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{given}{host.rpartition('@')[2]}{slash}{path}" if given else place

    @property
    def key(self) -> str:
        """Names its files on a host: another source or revision of a model is stored beside the first one."""
        cached = self.source.startswith("hf://") and not self.flat
        text = json.dumps([self.id, self.source, self.revision, cached])
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", self.id).strip("-")[:60] or "model"
        return f"{slug}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"


KEY = re.compile(r"[A-Za-z0-9_-]{1,60}\.[0-9a-f]{12}")
"""Pattern of :attr:`ModelSource.key`."""


def check_source(source: ModelSource) -> None:
    """Checks a source that may come from outside. Raises: ValueError, in one line."""
    check_id(source.id)
    kind = source.kind
    text = source.source
    if len(text) > 4096 or not text.isprintable() or " " in text:
        raise ValueError(f"source of model {source.id!r} must be one word of printable characters")
    if kind == HF:
        if not _REPOSITORY.fullmatch(source.repository) or ".." in source.repository:
            raise ValueError(f"source of model {source.id!r} must be hf://owner/name")
        if source.revision and (
            not _REVISION.fullmatch(source.revision) or ".." in source.revision
        ):
            raise ValueError(f"revision of model {source.id!r} must be a commit, tag or branch")
    elif kind == HTTP:
        try:
            valid = bool(urlsplit(text).hostname)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"source of model {source.id!r} must be a URL with a host")
    elif kind == FILE and (not text.startswith("file:///") or ".." in text.split("/")):
        # A relative path would be looked for where the agent runs, and mounted from the directory of all models.
        raise ValueError(
            f"source of model {source.id!r} must be file:// and an absolute path without .."
        )


def check_id(model_id: str) -> str:
    """A model's id. Raises: ValueError."""
    if not _ID.fullmatch(model_id):
        raise ValueError(
            f"a model's id must be letters, digits and ._:/@+-, at most {LONGEST_ID}, and not {model_id[:80]!r}"
        )
    return model_id


def check_file(name: str) -> str:
    """The path of a file within a model, which a server or an archive has named.

    Raises:
        ValueError: it is not a plain relative path, so it could lead out of the model's directory.
    """
    parts = name.split("/")
    try:
        fits = len(name.encode()) <= LONGEST_PATH and all(
            len(p.encode()) <= LONGEST_NAME for p in parts
        )
    except UnicodeError:
        fits = False
    plain = name.isprintable() and "\\" not in name and not {"", ".", ".."}.intersection(parts)
    if not (fits and plain):
        raise ValueError(
            f"the file name {name[:80]!r} is refused: it must be a plain relative path"
        )
    return name


@dataclass(frozen=True)
class ModelFile:
    """A file of a model: its path within, its bytes, and its SHA-256 in hex; "": the source does not have it."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """A model that is whole on a host.

    Attributes:
        source: where it came from.
        place: its directory: relative to the directory of all models, or absolute for a path of the host.
        inside: the path of the model within ``place``; "": all of it.
        files: relative to ``place``.
        completed_ms: since the epoch, by the host's clock.
        revision: the commit that a branch or tag meant; "": the source has none.
    """

    source: ModelSource
    place: str
    inside: str = ""
    files: tuple[ModelFile, ...] = ()
    completed_ms: int = 0
    revision: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def manifest_text(manifest: Manifest) -> str:
    """A manifest as JSON."""
    return json.dumps(asdict(manifest))


def manifest_in(text: str | bytes) -> Manifest:
    """The manifest in a file. Raises: ValueError, it cannot be read."""
    try:
        values = json.loads(text)
        source = ModelSource(**values.pop("source"))
        files = tuple(ModelFile(**file) for file in values.pop("files"))
        found = Manifest(source=source, files=files, **values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("it is no manifest of a model") from None
    for file in found.files:
        check_file(file.path)
    return found


# Room.


@dataclass(frozen=True)
class Kept:
    """A model on a host's disk, for the choice of those that give way.

    Attributes:
        used_s: time of its last use, in seconds of any clock.
        bound: it stays: a worker has it, it is pinned, wanted or being fetched, or OwnPod has not stored it.
    """

    key: str
    size: int
    used_s: float
    bound: bool = False


class NoRoom(ValueError):
    """A model does not fit, with the numbers in words."""


def evictions(
    kept: Iterable[Kept], need: int, *, free: int, total: int, quota: int | None
) -> tuple[str, ...]:
    """Keys of the models that give way to a new one: as few as are needed, the least recently used first.

    Args:
        kept: the models on the disk.
        need: bytes that are still to be written.
        free: bytes that are free on the disk.
        total: the size of the disk in bytes.
        quota: bytes that all models may have; None: as the disk permits.

    Raises:
        NoRoom: even without all that may go it does not fit. None goes then.
    """
    models = sorted(kept, key=lambda model: model.used_s)
    reserve = min(int(total * FREE_SHARE), FREE_MOST)
    stored = sum(model.size for model in models)
    chosen = []
    for model in [None, *(m for m in models if not m.bound and m.size > 0)]:
        if model is not None:
            chosen.append(model.key)
            free += model.size
            stored -= model.size
        within = quota is None or stored + need <= quota
        if within and free - need >= reserve:
            return tuple(chosen)
    if quota is not None and stored + need > quota:
        raise NoRoom(
            f"{size_words(need)} needed, and of OWNPOD_MODELS_QUOTA, {size_words(quota)}, "
            f"{size_words(stored)} are models that are in use or pinned, or that are being fetched"
        )
    available = max(free - reserve, 0)
    raise NoRoom(f"{size_words(need)} needed, {size_words(available)} free for models on the disk")
