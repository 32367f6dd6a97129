"""Images: their references, the list of those that may run, and the progress of a pull in words. Pure.

The form of a reference is that of Docker (github.com/distribution/reference): without a registry it is Docker Hub's,
without a tag its tag is ``latest``.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HUB = "docker.io"
"""The registry of references that name none."""

ALL_IMAGES = "**"
"""The pattern that allows all images."""

LONGEST = 512
"""Maximum length of a reference in characters."""

_REGISTRY = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_NAME = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_SHAPE = re.compile(
    rf"(?:(?P<registry>{_REGISTRY})/)?(?P<path>{_NAME}(?:/{_NAME})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_PATTERN = re.compile(r"[A-Za-z0-9._:/*@-]+", re.ASCII)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")

_SUBTREES = {"nvcr.io/nvidia/*": "nvcr.io/nvidia/**"}
"""Patterns that a widespread list has, and what they are meant to allow: NVIDIA's images have up to four parts."""


@dataclass(frozen=True)
class Reference:
    """A complete reference. ``tag`` is None where there is a digest, because an engine then ignores the tag."""

    registry: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        """Registry and path."""
        return f"{self.registry}/{self.path}"

    @property
    def version(self) -> str:
        """The digest or the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def normalise(reference: str) -> Reference:
    """The complete reference of an image: ``ubuntu`` is ``docker.io/library/ubuntu:latest``.

    Raises:
        ValueError: it is no reference, with what is allowed.
    """
    if len(reference) > LONGEST:
        raise ValueError(f"image must have at most {LONGEST} characters")
    found = _SHAPE.fullmatch(reference)
    if found is None or _IMAGE_ID.fullmatch(reference):
        raise ValueError(
            f"image {reference!r} must be [registry/]name[:tag][@sha256:digest], the name in lower case"
        )
    registry, path, tag, digest = found.group("registry", "path", "tag", "digest")
    if registry is not None and not _is_registry(registry):
        if registry != registry.lower():
            raise ValueError(f"image {reference!r} must have its name in lower case")
        path, registry = f"{registry}/{path}", None
    registry = HUB if registry in (None, f"index.{HUB}") else registry.lower()
    if registry == HUB and "/" not in path:
        path = f"library/{path}"
    return Reference(registry, path, None if digest else tag or "latest", digest)


def check_pattern(pattern: str) -> None:
    """Checks a pattern of the list of allowed images. Raises: ValueError."""
    if not _PATTERN.fullmatch(pattern) or "***" in pattern or "//" in pattern:
        raise ValueError(
            f"{pattern!r} must be an image like ghcr.io/team/*, where * is any text without a slash and ** any text"
        )


def allowed(reference: Reference, patterns: Iterable[str]) -> bool:
    """Whether a pattern allows the image.

    A pattern is completed like a reference. ``*`` is any text without a slash, ``**`` any text. A pattern without tag
    and digest allows all of them; one with a tag allows no digest, because an engine ignores the tag beside it.
    """
    return any(_matches(reference, pattern) for pattern in patterns)


def not_allowed(by_endpoint: Mapping[str, str | None], patterns: Sequence[str]) -> str:
    """Which endpoint has an image that no pattern allows, and what to change; "": none.

    Args:
        by_endpoint: the templates' images; None, and a text that is no reference, are not examined.
        patterns: ``OWNPOD_IMAGES`` of the host.
    """
    for endpoint, image in by_endpoint.items():
        reference = _reference(image)
        if reference is not None and not allowed(reference, patterns):
            return (
                f"endpoint {endpoint!r}: image {reference} is not allowed: OWNPOD_IMAGES allows "
                f"{', '.join(patterns)}; add the image to OWNPOD_IMAGES, or change template.image"
            )
    return ""


def why_no_host_may(image: str | None, lists: Mapping[str, Sequence[str] | None]) -> str:
    """Why no host may start an image, and what to change; "": one may.

    Args:
        image: of a template; None, and a text that is no reference, are not examined.
        lists: the patterns of ``OWNPOD_IMAGES`` by host; None: the host starts any image, or its engine starts none.
    """
    reference = _reference(image)
    if reference is None or not lists:
        return ""
    if any(patterns is None or allowed(reference, patterns) for patterns in lists.values()):
        return ""
    host, patterns = next(iter(lists.items()))
    return (
        f"no host may start the image {reference}: OWNPOD_IMAGES of host {host} allows "
        f"{', '.join(patterns or ())}; add the image to OWNPOD_IMAGES where an agent runs, or use another image"
    )


def _reference(image: str | None) -> Reference | None:
    try:
        return normalise(image) if image else None
    except ValueError:
        return None


def _matches(reference: Reference, pattern: str) -> bool:
    pattern = _SUBTREES.get(pattern, pattern)
    name, _, digest = pattern.partition("@")
    head, colon, tag = name.rpartition(":")
    # A colon before a slash is the registry's port.
    if not colon or "/" in tag:
        head, tag = name, ""
    if digest and reference.digest != digest:
        return False
    if tag and not digest and not (reference.tag and _glob(tag).fullmatch(reference.tag)):
        return False
    return _glob(_completed(head)).fullmatch(reference.name) is not None


def _completed(name: str) -> str:
    """The name in a pattern with its registry."""
    first, slash, _ = name.partition("/")
    if first.startswith("**") or (slash and (_is_registry(first) or "*" in first)):
        return name
    return f"{HUB}/{name}" if slash else f"{HUB}/library/{name}"


def _is_registry(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost"


@functools.lru_cache(maxsize=512)
def _glob(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile(
        "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
    )


@dataclass
class _Layer:
    done: int = 0
    total: int | None = None
    state: str = "waits"


_STATES = {
    "Downloading": "loads",
    "Verifying Checksum": "loaded",
    "Download complete": "loaded",
    "Extracting": "unpacks",
    "Pull complete": "complete",
    "Already exists": "complete",
}
"""What an engine reports of a layer, and what that means here."""


@dataclass
class PullProgress:
    """What an engine has reported of a pull, layer by layer."""

    _layers: dict[str, _Layer] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any]) -> None:
        """Takes one line of the engine's report. Lines of unknown form change nothing."""
        layer_id, status = line.get("id"), str(line.get("status", ""))
        if not isinstance(layer_id, str) or not (
            status in _STATES or status in ("Pulling fs layer", "Waiting")
        ):
            return
        layer = self._layers.setdefault(layer_id, _Layer())
        layer.state = _STATES.get(status, layer.state)
        if status == "Already exists":
            layer.done, layer.total = 0, 0
        if layer.state == "loads":
            detail = line.get("progressDetail")
            detail = detail if isinstance(detail, Mapping) else {}
            layer.done = _size(detail.get("current"), layer.done)
            # A size of 0 or -1: the registry sent none.
            layer.total = _size(detail.get("total"), 0) or layer.total
        elif layer.state in ("loaded", "unpacks", "complete") and layer.total is not None:
            layer.done = layer.total

    def words(self) -> str:
        """For example "image pull 43 %, 2.1 of 4.9 GB"; the part only where the size of all layers is known."""
        layers = self._layers.values()
        done = sum(layer.done for layer in layers)
        complete = sum(layer.state == "complete" for layer in layers)
        if not layers:
            return "image pull"
        if all(layer.state in ("loaded", "unpacks", "complete") for layer in layers):
            return f"image unpacks, {complete} of {len(layers)} layers"
        if any(layer.total is None for layer in layers):
            return f"image pull, {size_words(done)}, {complete} of {len(layers)} layers"
        total = max(done, sum(layer.total or 0 for layer in layers))
        share = int(100 * done / total) if total else 0
        unit = _unit(total)
        return f"image pull {share} %, {_number(done, unit)} of {size_words(total)}"


def _size(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _unit(size: int) -> tuple[int, str]:
    return (10**9, "GB") if size >= 10**9 else (10**6, "MB")


def _number(size: int, unit: tuple[int, str]) -> str:
    return f"{size / unit[0]:.1f}" if unit[1] == "GB" else f"{size / unit[0]:.0f}"


def size_words(size: int) -> str:
    """A number of bytes for people: "4.9 GB", "80 MB"."""
    unit = _unit(size)
    return f"{_number(size, unit)} {unit[1]}"
