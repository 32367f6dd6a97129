"""The directory of this host's models: what is whole, which workers have it, and what gives way. Several processes may use it at once.

hub/                     Hugging Face's cache, as its library writes it
store/<key>/             every other model, once it is whole
store/.partial-<key>/    one that is being fetched; with .archive or .old and a number behind it: it is used by no later fetch
ownpod/<key>.json        the manifest of a whole model; its time of change is the model's last use
ownpod/<key>.lock        held while a model is fetched; the kernel frees it when the process dies
ownpod/store.lock        held while something is chosen that others could choose otherwise
ownpod/used/<worker>     the key of the model that a worker of this host has
"""

import contextlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ownpod.agent.model_folders import of_path, sync
from ownpod.agent.model_rest import (
    PARTIAL,
    drop_partial,
    drop_rest,
    held,
    keep_promise,
    promise,
    unfinished,
)
from ownpod.rules.models import (
    FILE,
    KEY,
    PLACED,
    SERVICE,
    Kept,
    Manifest,
    ModelSource,
    evictions,
    manifest_in,
    manifest_text,
)

log = logging.getLogger(__name__)

WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Whole:
    """A model that is on the disk, with the time of its last use in seconds since the epoch."""

    manifest: Manifest
    used_s: float


class ModelStore:
    """The models of this host.

    Args:
        root: their directory, an absolute path without links. It is made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hub = root / "hub"
        self._own = root / "ownpod"
        self._used = self._own / "used"
        self._checked = set[tuple[str, int]]()
        self._threads = threading.RLock()

    # What is here.

    def find(self, source: ModelSource) -> Manifest | None:
        """The manifest of a model that is whole; None: it must be fetched. Raises: OSError, ValueError."""
        if source.kind == FILE:
            return of_path(source, Path(source.source.removeprefix("file://")))
        manifest = self._read(source.key)
        if manifest is not None and self._is_whole(manifest):
            return manifest
        if source.kind in {PLACED, SERVICE} and source.own_place:
            return self._placed(source)
        return None

    def _placed(self, source: ModelSource) -> Manifest | None:
        """A model that the operator, or the file service, has put where the GPU service looked for it."""
        place = self.root / source.own_place
        try:
            inside = place.resolve().is_relative_to(self.root)
            filled = place.is_dir() and any(place.iterdir())
        except OSError:
            return None
        own = place.relative_to(self.root).parts[0] in {"hub", "store", "ownpod"}
        if own or not (inside and filled):
            return None
        return Manifest(source, source.own_place)

    def all(self) -> list[Whole]:
        """All models with a manifest. Those of paths of the host have none."""
        found = []
        for file in self._files("*.json"):
            manifest = self._read(file.stem) if KEY.fullmatch(file.stem) else None
            if manifest is not None:
                with contextlib.suppress(OSError):
                    found.append(Whole(manifest, file.stat().st_mtime))
        return found

    def _files(self, pattern: str) -> list[Path]:
        try:
            return sorted(self._own.glob(pattern))
        except OSError:
            return []

    def _read(self, key: str) -> Manifest | None:
        try:
            manifest = manifest_in(self._manifest(key).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            log.warning("the manifest of model %s cannot be read: %s", key, error)
            return None
        return manifest if manifest.source.key == key else None

    def _is_whole(self, manifest: Manifest) -> bool:
        """Whether all files are there with their sizes. Looks once for each manifest, because a model may have many files."""
        mark = (manifest.source.key, manifest.completed_ms)
        top = self.place(manifest)
        if mark in self._checked:
            return top.exists()
        for file in manifest.files:
            try:
                size = (top / file.path).stat().st_size
            except OSError:
                size = -1
            if size != file.size:
                log.warning(
                    "model %s: %s is not whole, so it is fetched again",
                    manifest.source.id,
                    file.path,
                )
                return False
        self._checked.add(mark)
        return True

    def place(self, manifest: Manifest) -> Path:
        """The directory of a model."""
        return self.root / manifest.place

    def _manifest(self, key: str) -> Path:
        return self._own / f"{key}.json"

    # What is written.

    def make(self) -> None:
        """Makes the directories. Containers may run as any user, so all may read them. Raises: OSError."""
        for path in (self.root, self.hub, self.root / "store", self._own, self._used):
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                # The mode of mkdir is less what the umask of the agent takes.
                path.chmod(0o755)

    def partial(self, key: str) -> Path:
        """Where a model is fetched into."""
        return self.root / "store" / f"{PARTIAL}{key}"

    def complete(self, manifest: Manifest) -> None:
        """A model is whole: its files are moved to their place, unless they are in the cache, and the manifest is written.

        Raises:
            OSError: the disk does not take it.
        """
        key = manifest.source.key
        with self.locked():
            if not manifest.source.in_cache:
                place = self.place(manifest)
                if place.exists():
                    self._trash(place)
                self.partial(key).rename(place)
            new = self._own / f"{key}.json.new"
            with new.open("w") as file:
                file.write(manifest_text(manifest))
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._manifest(key))
            sync(self._own)
            # The manifest counts from now on, and the lock is held for some moments more.
            keep_promise(self._own / f"{key}.lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process chooses anything meanwhile. Raises: OSError."""
        with self._threads:
            self.make()
            with held(self._own / "store.lock", wait=True):
                yield

    @contextlib.contextmanager
    def fetching(self, source: ModelSource, *, wait: bool) -> Iterator[bool]:
        """Holds the lock of a model's fetch. False: another process has it. Raises: OSError."""
        self.make()
        with contextlib.ExitStack() as locks:
            for name in self._locks(source):
                if not locks.enter_context(held(self._own / name, wait=wait)):
                    yield False
                    return
            yield True

    def _locks(self, source: ModelSource) -> tuple[str, ...]:
        # Two revisions of a repository share files of the cache.
        hub = (f"hub--{source.repository.replace('/', '--')}.lock",) if source.in_cache else ()
        return (f"{source.key}.lock", *hub)

    # Its workers.

    def hold(self, worker_id: str, source: ModelSource) -> Manifest | None:
        """Notes that a worker gets a model, so that it stays. None: it is not here. Raises: OSError, ValueError."""
        if source.kind == FILE or not WORKER.fullmatch(worker_id):
            return self.find(source)
        with self.locked():
            manifest = self.find(source)
            if manifest is not None:
                (self._used / worker_id).write_text(source.key)
                self.touch(source.key)
            return manifest

    def touch(self, key: str) -> None:
        """The model is used now."""
        with contextlib.suppress(OSError):
            os.utime(self._manifest(key))

    def users(self) -> dict[str, str]:
        """The model's key by the id of the worker that has it."""
        found = {}
        with contextlib.suppress(OSError):
            for file in self._used.iterdir():
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    found[file.name] = file.read_text()
        return found

    def release(self, living: Collection[str]) -> None:
        """Forgets the workers that are not among the living."""
        for worker_id, key in self.users().items():
            if worker_id not in living:
                with contextlib.suppress(OSError):
                    (self._used / worker_id).unlink()
                self.touch(key)

    # Room.

    def make_room(
        self,
        source: ModelSource,
        need: int,
        *,
        have: int = 0,
        quota: int | None,
        stay: Collection[str],
    ) -> None:
        """Removes models until one has room, which other fetches then leave to it.

        Args:
            source: the one.
            need: bytes that it still needs.
            have: bytes that are here of it.
            quota: bytes that all models may have; None: no limit.
            stay: keys of models that are wanted, and ids of those that are pinned.

        Raises:
            NoRoom: it cannot have that much.
            OSError: the disk does not answer.
        """
        with self.locked():
            used = set(self.users().values())
            bound = {*used, *stay, source.key}
            models = [
                Kept(
                    w.manifest.source.key, w.manifest.size, w.used_s, self._stays(w.manifest, bound)
                )
                for w in self.all()
            ]
            models.append(Kept("", have, 0.0, bound=True))
            others, coming = unfinished(self.root / "store", self._own, source.key, stay)
            disk, models = shutil.disk_usage(self.root), models + others
            free_bytes = disk.free - coming
            for key in evictions(models, need, free=free_bytes, total=disk.total, quota=quota):
                if key.startswith(PARTIAL):
                    log.info("a part of a model gives way to model %s", source.id)
                    drop_partial(self.root / "store", self._own, key)
                    continue
                manifest = self._read(key)
                if manifest is None:
                    continue
                with self.fetching(manifest.source, wait=False) as free:
                    if free:
                        log.info("model %s gives way to model %s", manifest.source.id, source.id)
                        self._remove(manifest)
            cached = self.hub / source.cache_folder
            place = cached if source.in_cache else self.partial(source.key)
            promise(self._own / f"{source.key}.lock", place, need)

    def _stays(self, manifest: Manifest, bound: Collection[str]) -> bool:
        source = manifest.source
        if source.key in bound or source.id in bound:
            return True
        with self.fetching(source, wait=False) as free:
            return not free

    def drop_rest(self, source: ModelSource) -> None:
        """Removes what killed processes have left and no fetch uses. The caller holds the model's lock. Raises: OSError."""
        with self.locked():
            drop_rest(self.root / "store", self._own, source.key)

    def remove(self, source: ModelSource) -> str:
        """Removes a model. Returns why it stays, in words for people; "": it is gone. Raises: OSError, ValueError."""
        with self.locked():
            users = sorted(w for w, key in self.users().items() if key == source.key)
            if users:
                return f"it is in use by worker {', '.join(users)}"
            with self.fetching(source, wait=False) as free:
                if not free:
                    return "it is being fetched"
                # Within the lock: a fetch of another revision would lose files of the cache that it has not named yet.
                manifest = self._read(source.key)
                if manifest is not None:
                    self._remove(manifest)
                shutil.rmtree(self.partial(source.key), ignore_errors=True)
                drop_rest(self.root / "store", self._own, source.key)
        return ""

    def _remove(self, manifest: Manifest) -> None:
        self._manifest(manifest.source.key).unlink(missing_ok=True)
        self._checked = {mark for mark in self._checked if mark[0] != manifest.source.key}
        if not manifest.source.in_cache:
            self._trash(self.place(manifest))
        elif not any(
            (w.manifest.place, w.manifest.inside) == (manifest.place, manifest.inside)
            for w in self.all()
        ):
            self._uncache(self.place(manifest), manifest.inside)

    def _trash(self, path: Path) -> None:
        """Removes a directory. A process that dies meanwhile must not leave half of a model at its place."""
        trash = path.with_name(f"{PARTIAL}{path.name}.old{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _uncache(self, repository: Path, inside: str) -> None:
        """Removes a revision from Hugging Face's cache, with the files that no other revision there has."""
        snapshot = repository / inside
        shutil.rmtree(snapshot, ignore_errors=True)
        for ref in (repository / "refs").rglob("*"):
            with contextlib.suppress(OSError):
                if ref.is_file() and ref.read_text().strip() == snapshot.name:
                    ref.unlink()
        left = {p.readlink().name for p in (repository / "snapshots").rglob("*") if p.is_symlink()}
        for blob in (repository / "blobs").glob("*"):
            if blob.name not in left:
                with contextlib.suppress(OSError):
                    blob.unlink()
        with contextlib.suppress(OSError):
            if not any((repository / "snapshots").iterdir()):
                shutil.rmtree(repository, ignore_errors=True)
