"""Connections to Redis: timeouts, translation of redis-py's errors, and repetition of commands.

redis-py repeats no command, because it does not know which commands may be executed twice. Redis may have executed
a command whose answer is lost, so OwnPod repeats such a command only if the command's definition permits that.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ownpod.errors import AnswerLost, RedisUnavailable, SchemaMismatch, WorkerRecordBroken
from ownpod.store import keys, schema

P = ParamSpec("P")
R = TypeVar("R")

REFUSALS = re.compile(r"\b(OOM|READONLY|MISCONF|LOADING|MASTERDOWN|NOREPLICAS|BUSY)\b")
"""Matches errors of a Redis that is full, read-only, cannot save, is loading its data, or runs a long script."""

CONNECTIONS = 64
"""Connections of a process to Redis, at most. Threads beyond that wait for a free one, so that thousands of requests
that wake up at once do not open thousands of connections."""

ANSWER_S = 5.0
"""Seconds to wait for an answer. Nodes renew leases every third of ``OWNPOD_LEASE_S``, so a dead connection must time
out sooner than that."""

PAUSE_S = 0.5
"""Seconds between two repetitions of a command with a lost answer, while Redis refuses connections."""

_MISMATCH = re.compile(rf"\b{schema.MISMATCH} ?(\S*)")


def connect(url: str, *, client_name: str | None = None) -> redis.Redis:
    """A client that waits at most 3 s for a connection and :data:`ANSWER_S` for an answer, and repeats nothing.

    The client connects at the first command.
    """
    # redis-py raises a TypeError for this option if the URL is that of a unix socket.
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=5,
        decode_responses=True,
        socket_connect_timeout=3,
        socket_timeout=ANSWER_S,
        **keepalive,
        # No PING before a command, because a Redis that cannot save refuses PING but still executes reads.
        # The pool itself replaces connections that the server has closed.
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
        client_name=client_name,
    )
    return redis.Redis.from_pool(pool)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translates redis-py's errors into OwnPod's. No other place does."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise RedisUnavailable(f"Redis cannot be reached: {error}") from error
    except redis.ResponseError as error:
        if mismatch := _MISMATCH.search(str(error)):
            raise SchemaMismatch(mismatch[1], schema.VERSION) from None
        # For these classes redis-py removes the word that REFUSALS matches from the message.
        known = isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError))
        if not known and not REFUSALS.search(str(error)):
            raise
        raise RedisUnavailable(f"Redis refuses to write: {error}") from error


def redis_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator: translates redis-py's errors. Repeats nothing."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        with _translated():
            return method(*args, **kwargs)

    return translated


def redis_reads(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator for a method that only reads: the same, and a second call if Redis did not answer the first."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        with _translated():
            try:
                return method(*args, **kwargs)
            except (redis.ConnectionError, redis.TimeoutError):
                return method(*args, **kwargs)

    return translated


def broken_records(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a decorator that turns an error about a key of the wrong type, or one that is not UTF-8, into WorkerRecordBroken.

    Args:
        what: names the keys in the message.
    """

    def decorator(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def translated(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except (redis.ResponseError, UnicodeDecodeError) as error:
                raise WorkerRecordBroken(f"{what} cannot be used: {error}") from error

        return translated

    return decorator


@contextlib.contextmanager
def _exchange(client: redis.Redis) -> Iterator[Any]:
    """A connection on which commands are sent, and all of their answers read, once; with the errors of :func:`execute`."""
    # client.execute_command would not reveal whether the command was sent.
    with _translated():
        pool = client.connection_pool
        connection = pool.get_connection()
        try:
            yield connection
        except (redis.ResponseError, redis.BusyLoadingError):
            raise
        except (redis.ConnectionError, redis.TimeoutError) as error:
            connection.disconnect()
            raise AnswerLost(
                f"Redis did not answer, and may have executed the command: {error}"
            ) from error
        except BaseException:
            # The next command on this connection would read the answer of this one.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


def execute(client: redis.Redis, *command: str | float) -> Any:
    """Sends one command, once.

    Raises:
        AnswerLost: Redis may have executed the command.
        RedisUnavailable: Redis did not receive the command, or refused it.
        redis.ResponseError: Redis answered with any other error.
    """
    with _exchange(client) as connection:
        connection.send_command(*command)
        return connection.read_response()


def execute_all(client: redis.Redis, commands: Sequence[Sequence[str | float]]) -> list[Any]:
    """Sends commands at once, once. They are not one step: others' commands may come in between.

    Returns:
        Their answers; for a command that Redis has not executed, its redis.ResponseError.

    Raises:
        AnswerLost: Redis may have executed some commands, also where it is still loading its data.
        RedisUnavailable: Redis did not receive the commands.
    """
    with _exchange(client) as connection:
        connection.send_packed_command(connection.pack_commands(commands))
        try:
            return [_answer(connection) for _ in commands]
        except redis.BusyLoadingError as error:
            # The answers after this one are not read, and some may be those of commands that were executed.
            raise AnswerLost(f"Redis is loading, and may have executed some: {error}") from error


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def repeated(call: Callable[[], R], *, insist_s: float = 0.0) -> R:
    """Makes a call that may be executed twice, and repeats the call if its answer was lost.

    Args:
        call: raises AnswerLost or RedisUnavailable.
        insist_s: seconds for which the call is repeated, again and again; 0: one repetition.

    Raises:
        AnswerLost: Redis may have executed the call.
        RedisUnavailable: Redis did not execute the call.
    """
    lost, began = None, time.monotonic()
    while True:
        try:
            return call()
        except SchemaMismatch:
            raise
        except RedisUnavailable as error:
            if not isinstance(error, AnswerLost):
                if lost is None:
                    raise
                # Redis restarted in between. The first call may be in its append-only file, so the answer stays lost.
                time.sleep(PAUSE_S)
            elif lost is None:
                lost = error
                continue
            if time.monotonic() - began >= insist_s:
                raise lost from error


def ms_of(time: Any) -> int:
    """The answer to TIME, in ms since the epoch."""
    seconds, microseconds = time
    return int(seconds) * 1000 + int(microseconds) // 1000


@redis_reads
def clock_ms(client: redis.Redis) -> int:
    """Redis's clock, in ms since the epoch. Only this clock is compared with times in Redis, because clocks of hosts differ."""
    return ms_of(client.time())


@redis_errors
def schema_version(client: redis.Redis) -> str | None:
    """The schema version in Redis; None: not set yet."""
    version: Any = client.get(keys.SCHEMA)
    return None if version is None else str(version)
