"""Configured keys, and the check of a request's key against them. Pure."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

PREFIX = "sha256:"
"""The prefix of a key that is configured as its SHA-256 digest, in hex."""

ALLOWED = "a key is visible ASCII without spaces, or sha256:<64 hex digits>"
ALLOWED_BOUND = f"{ALLOWED}, which may be bound: sha256:<64 hex digits>@<endpoint>[/<worker>]"

_PLAIN = re.compile(r"[!-~]+")
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_BINDING = re.compile(r"([A-Za-z0-9_-]{1,255})(?:/([A-Za-z0-9_-]{1,255}))?")


@dataclass(frozen=True)
class Credential:
    """One configured key.

    ``digest``: SHA-256 of the key, 64 lower-case hex digits. ``plain``: the key itself; None: only the digest is
    configured. ``endpoint`` and ``worker``: ids to which a worker key is bound; None: any.
    """

    digest: str = field(repr=False)
    plain: str | None = field(repr=False, default=None)
    endpoint: str | None = None
    worker: str | None = None

    def permits(self, endpoint_id: str, worker_id: str) -> bool:
        """Whether the binding permits this worker of this endpoint."""
        return self.endpoint in {None, endpoint_id} and self.worker in {None, worker_id}


def digest_of(key: str) -> str:
    """The SHA-256 digest of a key, as 64 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(text: str, *, bound: bool = False) -> Credential:
    """Parses a configured key: the key itself, or ``sha256:<hex>``.

    Args:
        text: the key, without surrounding spaces.
        bound: whether ``sha256:<hex>@<endpoint>[/<worker>]`` is allowed. Plain keys have no binding,
            because a plain key may contain an @.

    Raises:
        ValueError: the message lists the allowed forms, and does not contain the key.
    """
    if not text.lower().startswith(PREFIX):
        if not _PLAIN.fullmatch(text):
            raise ValueError(ALLOWED_BOUND if bound else ALLOWED)
        return Credential(digest_of(text), plain=text)
    given, at, binding = text[len(PREFIX) :].partition("@")
    if not _HEX.fullmatch(given):
        raise ValueError(ALLOWED_BOUND if bound else ALLOWED)
    if not at:
        return Credential(given.lower())
    if not bound:
        raise ValueError(f"{ALLOWED}; only worker keys are bound with @")
    match = _BINDING.fullmatch(binding)
    if match is None:
        raise ValueError(ALLOWED_BOUND)
    return Credential(given.lower(), endpoint=match[1], worker=match[2])


def parse_list(text: str, *, bound: bool = False) -> tuple[Credential, ...]:
    """Parses comma-separated keys, at least one.

    Raises:
        ValueError: see :func:`parse`; also for a list without keys, because an empty list would switch the
            check off.
    """
    return _parse_all(text.split(","), bound=bound)


def parse_file(text: str, *, bound: bool = False) -> tuple[Credential, ...]:
    """Parses a file of keys, one on each line. ``#`` at the start of a line, or after a space, begins a comment.

    Raises:
        ValueError: see :func:`parse_list`; the message has the number of the line.
    """
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if line:
            try:
                parse(line, bound=bound)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return _parse_all(lines, bound=bound)


def _parse_all(parts: Iterable[str], *, bound: bool) -> tuple[Credential, ...]:
    credentials = tuple(parse(part.strip(), bound=bound) for part in parts if part.strip())
    if not credentials:
        raise ValueError("has no key; leave it unset if no key is wanted")
    return credentials


def matches(key: str, credentials: Iterable[Credential]) -> list[Credential]:
    """The credentials of a request's key; several if the key is configured with several bindings.

    Compares all digests, each in constant time, so that the duration reveals nothing about the keys.
    """
    given = digest_of(key)
    compared = [(hmac.compare_digest(given, known.digest), known) for known in credentials]
    return [known for equal, known in compared if equal]
