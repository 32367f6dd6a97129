"""The secrets of templates in Redis, encrypted with a key that only files of hosts have.

A change compares all secrets and writes them in one step of Redis, so a change from a host with another key, or one at
the same time as a rotation, is refused or repeated, and never mixed.
"""

import time
from collections.abc import Callable, Iterable, Mapping
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

            self._change(changed)
        return made

    def _other_key(self, name: str, problem: str) -> str:
        return (
            f"secret {name!r} was encrypted on another host, and {problem}: copy the file from that host, with mode "
            "600, or remove all secrets with `ownpod secrets rm` and set them again"
        )

    def remove(self, name: str) -> bool:
        """Removes a secret. False: there is none of this name."""
        check_name(name)
        removed = False

        def changed(tokens: Mapping[str, str]) -> dict[str, str]:
            nonlocal removed
            removed = name in tokens
            return {other: token for other, token in tokens.items() if other != name}

        self._change(changed)
        return removed

    def rotate(self) -> int:
        """Encrypts all secrets with a new key, and forgets the old ones. Returns the number of secrets.

        It may be interrupted at any moment: the file has the old keys until all secrets have the new one, and the next
        rotation removes what was left.

        Raises:
            KeyFileProblem: the file cannot be used.
            BadRequest: a secret cannot be read; nothing was changed.
        """
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

            count = len(self._change(changed))
            self.file.keep_newest(new)
        return count

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

    @_broken
    @redis_errors
    def _change(self, changed: Callable[[Mapping[str, str]], dict[str, str]]) -> dict[str, str]:
        """Replaces all secrets by what ``changed`` makes of them, in one step. Returns them."""
        for _ in range(TRIES):
            with self._redis.pipeline() as pipe:
                pipe.watch(keys.SECRETS, keys.SCHEMA)
                version: Any = pipe.get(keys.SCHEMA)
                schema.check(version)
                tokens: Any = pipe.hgetall(keys.SECRETS)
                new = changed(tokens)
                pipe.multi()
                for name in tokens.keys() - new.keys():
                    pipe.hdel(keys.SECRETS, name)
                different: dict[Any, Any] = {
                    n: token for n, token in new.items() if tokens.get(n) != token
                }
                if different:
                    pipe.hset(keys.SECRETS, mapping=different)
                try:
                    pipe.execute()
                except redis.WatchError:
                    time.sleep(0.01)
                else:
                    return new
        raise RedisUnavailable("other processes change the secrets at the same time; try again")


def _reads(held: Keys, name: str, token: str) -> bool:
    try:
        held.decrypted(name, token)
    except WrongKey:
        return False
    return True
