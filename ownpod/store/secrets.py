"""The secrets of templates in Redis, encrypted with a key that only files of hosts have.

A change compares all secrets and writes them in one step of Redis, so a change from a host with another key, or one at
the same time as a rotation, is refused or repeated, and never mixed.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from ownpod.errors import BadRequest, RedisUnavailable
from ownpod.rules.secrets import check_name, check_value
from ownpod.store import keys, schema
from ownpod.store.client import broken_records, redis_errors, redis_reads
from ownpod.store.secret_keys import KeyFile, KeyFileMissing, KeyFileProblem, Keys, WrongKey, set_ms

MOST_SECRETS = 1000
"""Number of secrets in Redis, at most."""

TRIES = 20
"""Number of times that a change is tried while others change the secrets."""

_broken = broken_records(f"the secrets in {keys.SECRETS} of Redis")


@dataclass(frozen=True)
class Secret:
    """A secret without its value. ``set_ms``: when, in ms since the epoch. ``problem``: why it cannot be read; "" if it can."""

    name: str
    set_ms: int | None
    problem: str = ""


class Secrets:
    """The secrets of one installation. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        file: the path of the file with the keys.
    """

    def __init__(self, client: redis.Redis, file: Path) -> None:
        self._redis = client
        self.file = KeyFile(file)

    # What an agent reads.

    def values(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The values of those of these secrets that are in Redis, and why others that are there cannot be read, by name."""
        asked = [*names]
        tokens = dict(zip(asked, self._tokens_of(asked), strict=True)) if asked else {}
        there = {name: token for name, token in tokens.items() if token is not None}
        if not there:
            return {}, {}
        try:
            held = self.file.read()
        except KeyFileProblem as error:
            return {}, dict.fromkeys(there, self._without_file(error))
        found, problems = dict[str, str](), dict[str, str]()
        for name, token in there.items():
            try:
                found[name] = held.decrypted(name, token)
            except WrongKey:
                problems[name] = self._wrong_key()
        return found, problems

    def _without_file(self, error: KeyFileProblem) -> str:
        if isinstance(error, KeyFileMissing):
            return f"{error}; copy it, with mode 600, from the host where the secret was set"
        return str(error)

    def _wrong_key(self) -> str:
        return (
            f"it was encrypted with another key than that in {self.file.path}; copy the file from the host where the "
            "secret was set, or set the secret again"
        )

    # What the commands and the managing calls do.

    def names(self) -> frozenset[str]:
        """The names of all secrets, also of those that cannot be read here. Needs no file."""
        return frozenset(self._tokens())

    def all(self) -> list[Secret]:
        """All secrets, by name."""
        tokens = self._tokens()
        held, missing = None, ""
        if tokens:
            try:
                held = self.file.read()
            except KeyFileProblem as error:
                missing = self._without_file(error)
        found = []
        for name, token in sorted(tokens.items()):
            problem = missing
            if held is not None:
                try:
                    held.decrypted(name, token)
                except WrongKey:
                    problem = self._wrong_key()
            found.append(Secret(name, set_ms(token), problem))
        return found

    def put(self, name: str, value: str) -> bool:
        """Stores a secret, or another value of one. The key file is made if there is none.

        Returns:
            Whether the file was made.

        Raises:
            BadRequest: the name or the value is not allowed, or Redis has secrets that the keys of this host cannot read.
            KeyFileProblem: the file cannot be used or made.
        """
        with self.putting(name, value) as edit:
            self._change(edit)
        return edit.made_file

    @contextlib.contextmanager
    def putting(self, name: str, value: str) -> Iterator["Edit"]:
        """Around the transaction that stores a secret, perhaps with more: the edit of the secrets. Raises: as :meth:`put`."""
        check_name(name)
        check_value(value)
        made = False
        with self.file.locked():
            try:
                held = self.file.read()
            except KeyFileMissing as error:
                others = [other for other in self._tokens() if other != name]
                if others:
                    raise BadRequest(self._other_key(others[0], str(error))) from None
                held, made = self.file.make(), True

            def changed(tokens: Mapping[str, str]) -> dict[str, str]:
                others = {other: token for other, token in tokens.items() if other != name}
                if len(others) >= MOST_SECRETS:
                    raise BadRequest(
                        f"there are {MOST_SECRETS} secrets, and no more are allowed: remove some"
                    )
                if others and not any(_reads(held, *other) for other in others.items()):
                    problem = f"{self.file.path} has another key"
                    raise BadRequest(self._other_key(min(others), problem))
                return others | {name: held.encrypted(name, value)}

            yield Edit(changed, made_file=made)

    def _other_key(self, name: str, problem: str) -> str:
        return (
            f"secret {name!r} was encrypted on another host, and {problem}: copy the file from that host, with mode "
            "600, or remove all secrets with `ownpod secrets rm` and set them again"
        )

    def remove(self, name: str) -> bool:
        """Removes a secret. False: there is none of this name."""
        edit = self.removing(name)
        self._change(edit)
        return name in edit.old

    def removing(self, name: str) -> "Edit":
        """The removal of a secret, for a transaction that does more. Raises: BadRequest."""
        check_name(name)

        def changed(tokens: Mapping[str, str]) -> dict[str, str]:
            return {other: token for other, token in tokens.items() if other != name}

        return Edit(changed)

    def rotate(self) -> int:
        """Encrypts all secrets with a new key, and forgets the old ones. Returns the number of secrets.

        It may be interrupted at any moment: the file has the old keys until all secrets have the new one, and the next
        rotation removes what was left.

        Raises:
            KeyFileProblem: the file cannot be used.
            BadRequest: a secret cannot be read; nothing was changed.
        """
        with self.rotating() as edit:
            self._change(edit)
        return len(edit.new)

    @contextlib.contextmanager
    def rotating(self) -> Iterator["Edit"]:
        """Around the transaction of a rotation, perhaps with more: the edit of the secrets. Raises: as :meth:`rotate`."""
        with self.file.locked():
            held = self.file.read()
            for name, token in sorted(self._tokens().items()):
                if not _reads(held, name, token):
                    raise BadRequest(self._unreadable(name))
            new = self.file.add(held)

            def changed(tokens: Mapping[str, str]) -> dict[str, str]:
                found = {}
                for name, token in sorted(tokens.items()):
                    if not _reads(new, name, token):
                        raise BadRequest(self._unreadable(name))
                    found[name] = new.again(token)
                return found

            yield Edit(changed)
            self.file.keep_newest(new)

    def _unreadable(self, name: str) -> str:
        return f"secret {name!r} cannot be read: {self._wrong_key()}, or remove it"

    # Redis.

    @_broken
    @redis_reads
    def _tokens(self) -> dict[str, str]:
        found: Any = self._redis.hgetall(keys.SECRETS)
        return dict(found)

    @_broken
    @redis_reads
    def _tokens_of(self, names: list[str]) -> Any:
        return self._redis.hmget(keys.SECRETS, names)

    @redis_errors
    def _change(self, edit: "Edit") -> None:
        """Makes an edit in a transaction of its own."""
        for _ in range(TRIES):
            with self._redis.pipeline() as pipe:
                pipe.watch(keys.SCHEMA)
                version: Any = pipe.get(keys.SCHEMA)
                schema.check(version)
                edit.read(pipe)
                pipe.multi()
                edit.write(pipe)
                try:
                    pipe.execute()
                except redis.WatchError:
                    time.sleep(0.01)
                else:
                    return
        raise RedisUnavailable("other processes change the secrets at the same time; try again")


class Edit:
    """A change of secrets, as a part of a transaction: all secrets are replaced by what ``changed`` makes of them.

    Args:
        changed: makes the new tokens of the old ones, by name. May be called again, and may raise.
        made_file: whether the key file was made for it.

    Attributes:
        old, new: the tokens before and after, of the last :meth:`read`.
    """

    def __init__(
        self, changed: Callable[[Mapping[str, str]], dict[str, str]], *, made_file: bool = False
    ) -> None:
        self._changed = changed
        self.made_file = made_file
        self.old: Mapping[str, str] = {}
        self.new: Mapping[str, str] = {}

    @_broken
    def read(self, pipe: Any) -> None:
        """Watches the secrets and computes the new ones. Raises: what ``changed`` raises; WorkerRecordBroken."""
        pipe.watch(keys.SECRETS)
        self.old = pipe.hgetall(keys.SECRETS)
        self.new = self._changed(self.old)

    def write(self, pipe: Any) -> None:
        """Adds the writes to the transaction."""
        for name in self.old.keys() - self.new.keys():
            pipe.hdel(keys.SECRETS, name)
        if different := {n: t for n, t in self.new.items() if self.old.get(n) != t}:
            pipe.hset(keys.SECRETS, mapping=different)


def _reads(held: Keys, name: str, token: str) -> bool:
    try:
        held.decrypted(name, token)
    except WrongKey:
        return False
    return True
