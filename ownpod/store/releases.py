"""Releases of endpoints in Redis, see ``releases.lua``: their making, their images on the hosts, the way back."""

import logging
import re
from collections.abc import Collection, Sequence
from typing import Any

import redis

from ownpod.errors import BadRequest, WorkerRecordBroken
from ownpod.rules.records import from_text, to_text
from ownpod.rules.releases import (
    DIGEST,
    FROM_FILE,
    KEPT,
    NEW_IMAGE,
    HostImage,
    Release,
    RolledOut,
    Rollout,
    image_words,
    recorded,
    why_none_can_run,
)
from ownpod.rules.templates import ManagedSpec, spec_in, spec_text
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.catalog import AUDIT_CONSTANTS, Audit, audit_arguments
from ownpod.store.client import broken_records, redis_errors, redis_reads
from ownpod.store.scripts import Scripts, constants
from ownpod.validation import NAME

log = logging.getLogger(__name__)

LONGEST_WHY = 300
"""Characters that are kept of why a release was made or given up, and of a host's progress."""

LOOK_S = 600.0
"""Seconds after which the answer to a check of a tag does not count any more."""

MOST_SPECS = 1000
"""Number of specs that a process remembers."""

broken_releases = broken_records("the keys of releases")

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_SMALL = ("id", "made_ms", "why", "ready_ms", "ended")


class Releases:
    """The commands and reads of ``releases.lua``'s keys. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._agents = Agents(client)
        self._specs = dict[tuple[str, str, str], ManagedSpec]()
        """By endpoint, number and time: a release's spec does not change, and may have a megabyte."""
        self._script = Scripts(
            client,
            "releases.lua",
            constants=AUDIT_CONSTANTS
            + constants(
                ENDPOINT=keys.ENDPOINT,
                NEXT=keys.RELEASES_NEXT,
                LOOKS=keys.RELEASES_LOOKS,
                NOTICES=keys.MANAGED_NOTICES,
                KEPT=KEPT,
                LOOK_MS=int(LOOK_S * 1000),
            ),
            repeatable=(
                *(
                    "note",
                    "begin",
                    "came_up",
                    "roll_back",
                    "pin",
                    "publish_image",
                    "look",
                    "looked",
                ),
            ),
        )

    @broken_releases
    @redis_errors
    def _call(self, command: str, endpoint: str, *arguments: str | float) -> Any:
        if not NAME.fullmatch(endpoint):
            raise BadRequest("an endpoint's id must be letters, digits, - and _")
        return self._script(command, endpoint, *arguments)

    # The scaler's part.

    def note(self, endpoint: str, configured: ManagedSpec) -> int:
        """Makes a release of the configured spec, unless the last one was made for it.

        Returns:
            Its number; 0: none was made.
        """
        text = spec_text(recorded(configured))
        return int(self._call("note", endpoint, configured.release, text, FROM_FILE))

    def begin(self, endpoint: str, number: int) -> bool:
        """New workers are of the next release from now on. False: another release is the next one."""
        return bool(self._call("begin", endpoint, number))

    def came_up(self, endpoint: str, number: int) -> None:
        """Records that a worker of the release is ready. The first call counts."""
        self._call("came_up", endpoint, number)

    def roll_back(
        self, endpoint: str, latest: int, number: int, why: str, audit: Audit | None = None
    ) -> int:
        """Makes a release with the spec, the workers and the image of an earlier one.

        Args:
            endpoint: the endpoint's id.
            latest: number of the last release, which is given up.
            number: of the release to go back to.
            why: why the last one is given up.
            audit: the entry that is written with it.

        Returns:
            The new release's number; 0: there is another last release, or no such release.
        """
        entry = audit_arguments(audit)
        return int(self._call("roll_back", endpoint, latest, number, _line(why), *entry))

    # The agent's part.

    def pin(self, endpoint: str, release_id: str, digest: str) -> str:
        """Records what the tag of a release's image means. Returns the digest that counts: the first one.

        Raises:
            BadRequest: this is no digest.
        """
        _check_digest(digest)
        return _digest(self._call("pin", endpoint, release_id, digest))

    @broken_releases
    @redis_reads
    def digest(self, endpoint: str, release_id: str) -> str:
        """The digest of a release's image; "": no host has found it."""
        found: Any = self._redis.hget(keys.of_endpoint(endpoint, "digests"), release_id)
        return _digest(found)

    def publish_image(self, endpoint: str, number: int, host: str, image: HostImage) -> None:
        """Publishes whether a host has the image of a release."""
        decides = image.ready or (image.tries and image.words)
        self._call("publish_image", endpoint, number, host, to_text(image), int(bool(decides)))

    @broken_releases
    @redis_reads
    def tasks(self) -> tuple[dict[str, int], dict[str, str]]:
        """The numbers of the releases whose images the hosts are to get, and the checks of tags, each by endpoint."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.RELEASES_NEXT)
            pipe.hgetall(keys.RELEASES_LOOKS)
            coming, looks = pipe.execute()
        known = {name: int(text) for name, text in coming.items() if _NUMBER.fullmatch(text)}
        return known, dict(looks)

    # Checks of tags.

    def look(self, endpoint: str) -> str:
        """Asks the hosts to check what the tag of the endpoint's image means now. Returns the name of this check."""
        return str(self._call("look", endpoint))

    def looked(self, endpoint: str, asked: str, *, digest: str = "", problem: str = "") -> int:
        """Records the result of a check. Another image than that of the last release makes a release.

        Returns:
            The number of the release that was made; 0: none.
        """
        if digest:
            _check_digest(digest)
        return int(self._call("looked", endpoint, asked, digest, _line(problem), NEW_IMAGE))

    @broken_releases
    @redis_reads
    def look_result(self, endpoint: str, asked: str) -> tuple[str, bool]:
        """What a check has found, "" if it has not ended, and whether another host may still find more."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(_main(endpoint), "looked", "looked_ms")
            pipe.hget(keys.RELEASES_LOOKS, endpoint)
            (found, asked_ms), pending = pipe.execute()
        return (found or "" if asked_ms == asked else "", pending == asked)

    # Reads.

    def rollout(self, endpoint: str) -> Rollout:
        """Where an endpoint's releases are. Raises: WorkerRecordBroken."""
        found = self.rollouts([endpoint])[endpoint]
        if isinstance(found, WorkerRecordBroken):
            raise found
        return found

    @broken_releases
    @redis_reads
    def rollouts(self, endpoints: Collection[str]) -> dict[str, Rollout | WorkerRecordBroken]:
        """Where the releases of each endpoint are, of all in two round trips; the error for one whose records cannot be read."""
        with self._redis.pipeline(transaction=False) as pipe:
            for endpoint in endpoints:
                pipe.hmget(_main(endpoint), "configured", "current", "next")
            mains = pipe.execute(raise_on_error=False)
        named = [
            (name, n) for name, main in zip(endpoints, mains, strict=True) for n in _numbers(main)
        ]
        records = dict(zip(named, self._records(named), strict=True))
        found: dict[str, Rollout | WorkerRecordBroken] = {}
        for endpoint, main in zip(endpoints, mains, strict=True):
            try:
                configured, *numbers = _answer(main)
                current, coming = (
                    self._release(endpoint, n, records[endpoint, n]) if n else None for n in numbers
                )
            except WorkerRecordBroken as error:
                found[endpoint] = error
            else:
                found[endpoint] = Rollout(configured or "", current, coming)
        return found

    @broken_releases
    @redis_reads
    def releases(self, endpoint: str) -> list[Release]:
        """The releases that are kept, the newest first. One that cannot be read is left out."""
        last: Any = self._redis.hget(_main(endpoint), "number")
        newest = int(last) if last and _NUMBER.fullmatch(last) else 0
        named = [(endpoint, str(n)) for n in range(newest, max(0, newest - KEPT), -1)]
        releases = []
        for (_, number), record in zip(named, self._records(named), strict=True):
            try:
                release = self._release(endpoint, number, record)
            except WorkerRecordBroken as error:
                log.error("release %s of %s is left out: %s", number, endpoint, error)  # noqa: TRY400
            else:
                releases += [] if release is None else [release]
        return releases

    @broken_releases
    @redis_reads
    def get(self, endpoint: str, number: int) -> Release | None:
        """A release; None: there is none. Raises: WorkerRecordBroken."""
        (record,) = self._records([(endpoint, str(number))])
        return self._release(endpoint, str(number), record)

    def rolled_out(self, endpoint: str) -> RolledOut:
        """Where an endpoint's releases are, for clients; nothing if its records cannot be read."""
        try:
            rollout = self.rollout(endpoint)
            latest = rollout.latest
            waits = self.waits_for(endpoint, rollout.next) if rollout.next else ""
            before = None
            if latest is not None and latest.number > 1 and latest.why != FROM_FILE:
                before = self.get(endpoint, latest.number - 1)
        except WorkerRecordBroken as error:
            log.debug("the releases of %s are not shown: %s", endpoint, error)
            return RolledOut()
        return RolledOut(rollout, waits, before if before is not None and before.ended else None)

    def waits_for(self, endpoint: str, coming: Release) -> str:
        """Why an endpoint's next release has not begun, in words for people; "": nothing is known."""
        words = image_words(self.images(endpoint, coming.number))
        return words or why_none_can_run(coming.spec, self._agents.agents())

    @broken_releases
    @redis_reads
    def images(self, endpoint: str, number: int) -> dict[str, HostImage]:
        """What hosts have published about the image of a release, by host."""
        found: Any = self._redis.hgetall(f"{_key(endpoint, number)}:hosts")
        images = {}
        for host, text in found.items():
            try:
                images[host] = from_text(HostImage, text, others=True)
            except WorkerRecordBroken as error:
                log.debug("what host %s publishes is left out: %s", host[:255], error)
        return images

    def _records(self, named: Sequence[tuple[str, str]]) -> list[Any]:
        """The fields of releases without their specs, and the digests of the endpoint, for each."""
        with self._redis.pipeline(transaction=False) as pipe:
            for endpoint, number in named:
                pipe.hmget(_key(endpoint, number), _SMALL)
                pipe.hgetall(keys.of_endpoint(endpoint, "digests"))
            replies = pipe.execute(raise_on_error=False)
        return list(zip(replies[::2], replies[1::2], strict=True))

    def _release(self, endpoint: str, number: str, record: Any) -> Release | None:
        if not _NUMBER.fullmatch(number):
            raise WorkerRecordBroken(f"the number of a release of {endpoint} cannot be read")
        fields, digests = dict(zip(_SMALL, _answer(record[0]), strict=True)), _answer(record[1])
        release_id, made_ms = fields["id"], fields["made_ms"]
        if not release_id or not made_ms:
            return None
        return Release(
            int(number),
            release_id,
            _whole(made_ms),
            self._spec(endpoint, number, made_ms),
            why=fields["why"] or "",
            digest=_digest(digests.get(release_id)),
            ready_ms=_whole(fields["ready_ms"]) if fields["ready_ms"] else None,
            ended=fields["ended"] or "",
        )

    def _spec(self, endpoint: str, number: str, made_ms: str) -> ManagedSpec:
        if (endpoint, number, made_ms) not in self._specs:
            text: Any = self._redis.hget(_key(endpoint, number), "spec")
            if len(self._specs) >= MOST_SPECS:
                self._specs.clear()
            self._specs[endpoint, number, made_ms] = spec_in(text)
        return self._specs[endpoint, number, made_ms]


def _main(endpoint: str) -> str:
    return keys.of_endpoint(endpoint, "release")


def _numbers(main: Any) -> list[str]:
    """Numbers of the current and of the next release, in an answer of Redis; none in an error."""
    return [] if isinstance(main, Exception) else [number for number in main[1:] if number]


def _key(endpoint: str, number: str | int) -> str:
    return f"{_main(endpoint)}:{number}"


def _answer(reply: Any) -> Any:
    """Raises: WorkerRecordBroken, for a key of a wrong type."""
    if isinstance(reply, redis.ResponseError):
        raise WorkerRecordBroken("the key of the endpoint's releases is no hash")
    if isinstance(reply, Exception):
        raise reply
    return reply


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise WorkerRecordBroken("a time of a release cannot be read")
    return int(text)


def _check_digest(digest: str) -> None:
    if not DIGEST.fullmatch(digest):
        raise BadRequest("the digest of an image must be sha256: and 64 hexadecimal digits")


def _digest(text: str | None) -> str:
    return text if text and DIGEST.fullmatch(text) else ""


def _line(text: str) -> str:
    line = " ".join(text.split())[:LONGEST_WHY]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
