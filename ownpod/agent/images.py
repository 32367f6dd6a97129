"""Images of the engine ``docker``: which may run, their pull with its progress, and the disk that it needs."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from ownpod.agent.docker_api import DockerApi, NotThere
from ownpod.agent.engine import EngineError
from ownpod.agent.registry_logins import Logins, no_logins
from ownpod.rules.images import PullProgress, Reference, allowed, normalise, size_words
from ownpod.rules.templates import Template

logger = logging.getLogger(__name__)

PROGRESS_S = 0.5
"""Minimum seconds between two reports of a pull's progress."""

FREE_BYTES = 2 * 10**9
"""Bytes that must stay free on the engine's disk: a full disk stops the engine and all workers on it."""


@dataclass(frozen=True)
class Image:
    """An image that the engine has.

    Attributes:
        id: what a container is started from. A tag may be moved after it was looked up, an id may not.
        entrypoint: the image's own.
        command: the image's own.
        pulled: the names with digests under which registries have it; none for an image that was built here.
    """

    reference: str
    id: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    pulled: tuple[Reference, ...] = ()


def _pinned(reference: Reference, template: Template) -> Reference:
    """The reference with the digest of the release instead of its tag."""
    return replace(reference, tag=None, digest=template.digest) if template.digest else reference


def _references(names: Iterable[str]) -> Iterator[Reference]:
    for name in names:
        with contextlib.suppress(ValueError):
            yield normalise(name)


def _names(reference: Reference) -> list[str]:
    """Names by which an engine may have the image: of one that was built here its id, which is in the digest's place."""
    return [str(reference), *([reference.digest] if reference.digest else [])]


class Images:
    """The images of one engine. Thread-safe.

    Args:
        allow: patterns of images that may run, see :func:`ownpod.rules.images.allowed`. Read at each check, because
            presets may be added.
        free_bytes: what a pull must leave free on the engine's disk.
        logins: credentials of registries, by the id that a template has.
    """

    def __init__(
        self,
        api: DockerApi,
        allow: Iterable[str] = ("**",),
        *,
        free_bytes: int = FREE_BYTES,
        logins: Logins = no_logins,
    ) -> None:
        self._logins = logins
        self._api = api
        self._allow = allow
        self._free_bytes = free_bytes
        # By reference: which image the tag meant when it was prepared.
        self._ids: dict[str, str] = {}

    def check(self, template: Template) -> Reference:
        """The template's image, if it may run. Raises: EngineError."""
        if template.image is None:
            raise EngineError("the engine docker needs template.image")
        try:
            reference = normalise(template.image)
        except ValueError as error:
            raise EngineError(f"template.{error}") from None
        patterns = tuple(self._allow)
        if not allowed(reference, patterns):
            raise EngineError(
                f"image {reference} is not allowed: OWNPOD_IMAGES allows {', '.join(patterns)}"
            )
        return reference

    def prepare(self, template: Template, progress: Callable[[str], None]) -> Image:
        """Pulls the image if the engine does not have it. Raises: EngineError."""
        reference = _pinned(self.check(template), template)
        names = _names(reference)
        found = self._first(names)
        if found is None:
            self._pull(reference, template.registry, progress)
            found = self._first(names)
            if found is None:
                raise EngineError(f"image {reference} was pulled and is not here")
        self._ids[str(reference)] = found.id
        return found

    def digest(self, template: Template) -> str:
        """What the tag of the template's image means now, in its registry; of an image that was built on this host, its id.

        "": neither the registry nor an image of this host shows it. Raises: EngineError, it may not run.
        """
        reference = self.check(template)
        if reference.digest:
            return reference.digest
        found = self._inspect(str(reference))
        pulled = (
            [] if found is None else [r.digest for r in found.pulled if r.name == reference.name]
        )
        if found is not None and not pulled:
            # A registry may have an image of the same name that is not ours.
            return found.id
        try:
            return self._api.digest(str(reference), self._logins(template.registry))
        except EngineError as error:
            logger.info("what the tag of %s means is not known: %s", reference, error)
            return pulled[0] or "" if pulled else ""

    def get(self, template: Template) -> Image:
        """The image as it was prepared last. Raises: EngineError, also when the engine does not have it."""
        pinned = _pinned(self.check(template), template)
        reference = str(pinned)
        known = self._ids.get(reference)
        found = self._first([known] if known else _names(pinned))
        if found is None:
            self._ids.pop(reference, None)
            raise EngineError(f"image {reference} is not on this host any more")
        return Image(reference, found.id, found.entrypoint, found.command)

    def _first(self, names: Iterable[str]) -> Image | None:
        """The image that the first of these names has that the engine knows."""
        return next(filter(None, map(self._inspect, names)), None)

    def _inspect(self, name: str) -> Image | None:
        try:
            found = self._api.call(lambda client: client.inspect_image(name))
        except NotThere:
            return None
        config = found.get("Config") or {}
        return Image(
            reference=name,
            id=found["Id"],
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            pulled=tuple(_references(found.get("RepoDigests") or ())),
        )

    def _pull(
        self, reference: Reference, registry_id: str, progress: Callable[[str], None]
    ) -> None:
        root = self._root()
        self._check_disk(root, reference)
        state, last, shown = PullProgress(), time.monotonic(), "image pull"
        progress(shown)
        login = self._logins(registry_id)
        pull = self._api.pull(reference.name, reference.version, reference.registry, login)
        try:
            with contextlib.closing(pull):
                for line in pull:
                    state.take(line)
                    if time.monotonic() - last < PROGRESS_S:
                        continue
                    last = time.monotonic()
                    self._check_disk(root, reference)
                    if (now := state.words()) != shown:
                        shown = now
                        progress(now)
        except EngineError as error:
            message = str(error)
            raise EngineError(
                message if str(reference) in message else f"image {reference}: {message}"
            ) from None
        logger.info("image %s was pulled", reference)

    def _root(self) -> str | None:
        """The engine's directory; None where this process cannot see its disk."""
        if not self._api.local:
            return None
        return str(self._api.call(lambda client: client.info()).get("DockerRootDir") or "") or None

    def _check_disk(self, root: str | None, reference: Reference) -> None:
        if not root:
            return
        try:
            disk = shutil.disk_usage(root)
        except OSError:
            return
        if disk.free < self._free_bytes:
            raise EngineError(
                f"image {reference} is not pulled: {size_words(disk.free)} of {size_words(disk.total)} are free in "
                f"{root}, and {size_words(self._free_bytes)} must stay free"
            )
