"""Keys as they are configured, and the check of a presented key against them. Pure: no IO."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

PREFIX = "sha256:"
"""Begins a configured key that is the SHA-256 digest of the key, in hex."""

ALLOWED = "a key is visible ASCII without spaces, or sha256:<64 hex digits>"
ALLOWED_BOUND = f"{ALLOWED}, which may be bound: sha256:<64 hex digits>@<endpoint>[/<worker>]"

_PLAIN = re.compile(r"[!-~]+")
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_BINDING = re.compile(r"([A-Za-z0-9_-]{1,255})(?:/([A-Za-z0-9_-]{1,255}))?")


@dataclass(frozen=True)
class Credential:
    """One configured key.

    ``digest``: SHA-256 of the key, 64 lower-case hex digits. ``plain``: the key, where it is configured as such.
    ``endpoint`` and ``worker``: ids that a worker key is bound to; None: any.
    """

    digest: str = field(repr=False)
    plain: str | None = field(repr=False, default=None)
    endpoint: str | None = None
    worker: str | None = None

    def permits(self, endpoint_id: str, worker_id: str) -> bool:
        """Whether the binding allows this worker of this endpoint."""
        return self.endpoint in {None, endpoint_id} and self.worker in {None, worker_id}


def digest_of(key: str) -> str:
    """The SHA-256 digest of a key, as 64 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(text: str, *, bound: bool = False) -> Credential:
    """A key as it is configured: the key itself, or ``sha256:<hex>``.

    Args:
        text: without surrounding spaces.
        bound: whether ``sha256:<hex>@<endpoint>[/<worker>]`` is allowed. Plain keys are never bound,
            because a plain key may contain an @.

    Raises:
        ValueError: with what is allowed; the message does not contain the key.
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
    found = _BINDING.fullmatch(binding)
    if found is None:
        raise ValueError(ALLOWED_BOUND)
    return Credential(given.lower(), endpoint=found[1], worker=found[2])


def parse_list(text: str, *, bound: bool = False) -> tuple[Credential, ...]:
    """Comma-separated keys, at least one.

    Raises:
        ValueError: see :func:`parse`; also where there is no key at all, because an empty list would
            switch the check off.
    """
    return _parse_all(text.split(","), bound=bound)


def parse_file(text: str, *, bound: bool = False) -> tuple[Credential, ...]:
    """The keys in a file, one a line. ``#`` at the start of a line, or after a space, begins a comment.

    Raises:
        ValueError: see :func:`parse_list`; with the number of the line.
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
    found = tuple(parse(part.strip(), bound=bound) for part in parts if part.strip())
    if not found:
        raise ValueError("has no key; leave it unset where no key is wanted")
    return found


def matches(key: str, credentials: Iterable[Credential]) -> list[Credential]:
    """The credentials that a presented key fits; several where one key has several bindings.

    Compares digests, all of them and each in constant time.
    """
    given = digest_of(key)
    compared = [(hmac.compare_digest(given, known.digest), known) for known in credentials]
    return [known for equal, known in compared if equal]
