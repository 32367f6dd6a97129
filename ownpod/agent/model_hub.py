"""Models of Hugging Face's hub, by its own library: into its cache, or as plain files. Runs in a process of its own."""

import os
import re
from pathlib import Path
from typing import Any

from ownpod.agent.model_downloads import FetchError, Progress, sum_of
from ownpod.agent.model_sources import Meter
from ownpod.rules.models import MOST_FILES, ModelFile, ModelSource, check_file

SHA256 = re.compile(r"[0-9a-f]{64}")
"""The name of a file in the cache whose SHA-256 the hub knows; others have git's sum."""

AT_ONCE = 4
"""Number of files that are fetched at the same time."""


class Hub:
    """One model of the hub.

    Args:
        source: the model.
        cache: Hugging Face's cache of this host.
        into: the directory of a model that is wanted as plain files.
        meter: counts the bytes.

    Raises:
        FetchError: the library is not installed.
    """

    def __init__(self, source: ModelSource, cache: Path, into: Path, meter: Meter) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise FetchError(
                "hf:// is not installed where the agent runs: pip install 'ownpod[models]'"
            ) from None
        self._library: Any = huggingface_hub
        self._source = source
        self._cache = cache
        self._into = None if source.in_cache else into
        self._meter = meter

    def fetch(self) -> tuple[str, tuple[ModelFile, ...]]:
        """Fetches it. Returns its commit and its files. Raises: FetchError."""
        try:
            return self._fetch()
        except FetchError:
            raise
        except Exception as error:  # noqa: BLE001 - the library's errors are of several libraries
            raise self._plain(error) from None

    def _fetch(self) -> tuple[str, tuple[ModelFile, ...]]:
        self._drop_rest()
        planned = self._download(dry_run=True)
        commits = {plan.commit_hash for plan in planned}
        if len(commits) != 1 or not re.fullmatch(r"[0-9a-f]{40}", commit := commits.pop()):
            raise FetchError("the repository has no files")
        if len(planned) > MOST_FILES:
            raise FetchError(f"the repository has more than {MOST_FILES} files")
        for plan in planned:
            check_file(plan.filename)
        new = {plan.filename: plan.file_size for plan in planned if plan.will_download}
        self._meter.done = sum(plan.file_size for plan in planned if not plan.will_download)
        self._meter.expect(sum(plan.file_size for plan in planned))
        self._meter.room(sum(new.values()), 0)
        top = Path(self._download(revision=commit, tqdm_class=_bar(self._meter)))
        files = []
        with self._meter.checks() as checked:
            for plan in planned:
                path = top / plan.filename
                if path.stat().st_size != plan.file_size:
                    self._drop(path)
                    raise FetchError(
                        f"{plan.filename} does not have its {plan.file_size} bytes", again=True
                    )
                # Also of files that were here: a try that was killed has not checked its own.
                total = self._sum(path, plan.filename, checked)
                files.append(ModelFile(plan.filename, plan.file_size, total))
        self._name_revision(commit)
        return commit, tuple(files)

    def _drop_rest(self) -> None:
        """Removes the files of killed tries: their names are random, so that the library never continues them."""
        top = self._into / ".cache" if self._into else self._repository / "blobs"
        for path in top.rglob("*.incomplete"):
            path.unlink(missing_ok=True)

    @property
    def _repository(self) -> Path:
        return self._cache / self._source.cache_folder

    def _download(self, revision: str | None = None, **options: Any) -> Any:
        place = {"local_dir": self._into} if self._into else {"cache_dir": self._cache}
        return self._library.snapshot_download(
            self._source.repository,
            revision=revision or self._source.revision or None,
            max_workers=AT_ONCE,
            **place,
            **options,
        )

    def _sum(self, path: Path, name: str, checked: Progress) -> str:
        """Checks a file whose sum the hub knows. Raises: FetchError."""
        total = self._known_sum(path, name)
        if total and sum_of(path, checked) != total:
            self._drop(path)
            raise FetchError(f"{name} does not have the SHA-256 that the hub has", again=True)
        return total

    def _known_sum(self, path: Path, name: str) -> str:
        """The SHA-256 that the hub has told: the file's name in the cache, or beside plain files; "": none."""
        if path.is_symlink():
            # The first link only: the file in the cache may be a link to one that has the name of another sum.
            total = path.readlink().name
        elif self._into is not None:
            note = self._into / ".cache/huggingface/download" / f"{name}.metadata"
            try:
                total = note.read_text().splitlines()[1].strip()
            except (OSError, IndexError, UnicodeDecodeError):
                return ""
        else:
            return ""
        return total if SHA256.fullmatch(total) else ""

    def _drop(self, path: Path) -> None:
        files = {path, path.resolve()}
        if path.is_symlink():
            files.add(path.parent.resolve() / path.readlink())
        path.unlink(missing_ok=True)
        for blob in files:
            if Path(os.path.normpath(blob)).is_relative_to(self._cache):
                blob.unlink(missing_ok=True)

    def _name_revision(self, commit: str) -> None:
        """Notes what the branch means, because a library without the hub looks for its name."""
        if self._into is None:
            ref = self._source.revision or "main"
            place = self._repository / "refs" / ref
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(commit)

    def _plain(self, error: Exception) -> FetchError:
        """An error of the library in one line, without the addresses and tokens in its text."""
        errors = self._library.errors
        if isinstance(error, errors.DryRunError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        name = self._source.repository
        if isinstance(error, errors.GatedRepoError):
            return FetchError(
                f"{name} needs its licence accepted on the hub, and HF_TOKEN where the agent runs"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return FetchError(f"{name} has no revision {self._source.revision or 'main'!r}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return FetchError(
                f"{name} is not on the hub, or is private: then HF_TOKEN is needed where the agent runs"
            )
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            return FetchError(f"{name} cannot be written: {error.strerror}")
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            return FetchError(
                f"{name}: {str(error).splitlines()[0][:200] if str(error) else 'refused'}"
            )
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = f"HTTP {status}" if status else type(error).__name__
        return FetchError(f"the hub does not give {name}: {said}", again=True)


def _bar(meter: Meter) -> type:
    """A class of progress bars, as the library wants one, that shows nothing and counts the bytes that were written."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The bar of bytes from the network counts less than is written, because parts of files may be shared.
            written = not str(kwargs.get("desc")).startswith("Downloading")
            self._counts = kwargs.get("unit") == "B" and written
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                meter.add(int(n or 0))
            return None

        def refresh(self, *_args: Any, **_options: Any) -> None:
            pass

    return Bar
