"""Connections to Redis: bounded waits, errors of OwnPod's own, and what is repeated after a lost answer.

The driver repeats nothing: it does not know which command may be executed twice. A command whose answer
is lost may have been executed, so it is repeated only where its definition allows that.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ownpod.errors import AnswerLost, RedisUnavailable, SchemaMismatch
from ownpod.store import keys, schema

P = ParamSpec("P")
R = TypeVar("R")

REFUSALS = re.compile(r"\b(OOM|READONLY|MISCONF|LOADING|MASTERDOWN|NOREPLICAS|BUSY)\b")
"""Matches an error with which Redis refuses: it is full, read-only, cannot save, is loading, or runs a script."""

CONNECTIONS = 64
"""To Redis, of a process; thousands of requests that are woken at once wait for one of them."""

ANSWER_S = 5.0
"""Seconds to wait for an answer. Nodes renew leases every third of ``OWNPOD_LEASE_S``, so a connection
that is dead without a sign must be given up sooner than that."""

PAUSE_S = 0.5
"""Seconds before a command with a lost answer is repeated on a Redis that takes no connection."""

_MISMATCH = re.compile(rf"\b{schema.MISMATCH} ?(\S*)")


def connect(url: str, *, client_name: str | None = None) -> redis.Redis:
    """A client with bounded waits: 3 s to connect, :data:`ANSWER_S` for an answer, no repetition.

    Nothing is sent before the first command.
    """
    # redis-py has no keep-alive for a unix socket, and raises a TypeError for the option.
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=5,
        decode_responses=True,
        socket_connect_timeout=3,
        socket_timeout=ANSWER_S,
        **keepalive,
        # No PING before a command: a Redis that cannot save refuses it, and still reads. The pool
        # replaces a connection that the server has closed before it gives it out.
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
        client_name=client_name,
    )
    return redis.Redis.from_pool(pool)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turns the driver's errors into OwnPod's, here and nowhere else."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise RedisUnavailable(f"Redis cannot be reached: {error}") from error
    except redis.ResponseError as error:
        if mismatch := _MISMATCH.search(str(error)):
            raise SchemaMismatch(mismatch[1], schema.VERSION) from None
        # The driver takes the word off errors that it has a class for.
        known = isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError))
        if not known and not REFUSALS.search(str(error)):
            raise
        raise RedisUnavailable(f"Redis refuses to write: {error}") from error


def redis_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turns the driver's errors into RedisUnavailable. Repeats nothing."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        with _translated():
            return method(*args, **kwargs)

    return translated


def redis_reads(method: Callable[P, R]) -> Callable[P, R]:
    """The same for a method that only reads: it is called a second time if Redis did not answer."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        with _translated():
            try:
                return method(*args, **kwargs)
            except (redis.ConnectionError, redis.TimeoutError):
                return method(*args, **kwargs)

    return translated


def execute(client: redis.Redis, *command: str | float) -> Any:
    """Sends one command, once.

    Raises:
        AnswerLost: Redis may have executed it.
        RedisUnavailable: Redis did not get it, or refused it.
        redis.ResponseError: any other error that Redis answered.
    """
    # Not by the client's execute_command, which does not show whether the command was sent.
    with _translated():
        pool = client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        except (redis.ResponseError, redis.BusyLoadingError):
            raise
        except (redis.ConnectionError, redis.TimeoutError) as error:
            connection.disconnect()
            raise AnswerLost(
                f"Redis did not answer, and may have done this all the same: {error}"
            ) from error
        except BaseException:
            # The next command on this connection would read this answer.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


def repeated(call: Callable[[], R], *, insist_s: float = 0.0) -> R:
    """Makes a call that may be executed twice. A lost answer repeats it once, further ones until ``insist_s`` is over.

    Raises:
        AnswerLost: the call may have been executed.
        RedisUnavailable: the call was not executed.
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
                # Redis was restarted meanwhile, and may have kept what it executed before.
                time.sleep(PAUSE_S)
            elif lost is None:
                lost = error
                continue
            if time.monotonic() - began >= insist_s:
                raise lost from error


@redis_reads
def clock_ms(client: redis.Redis) -> int:
    """Redis's clock, in ms since the epoch: the only one that instants in Redis are compared with."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


@redis_errors
def schema_version(client: redis.Redis) -> str | None:
    """The version of the records in Redis; None: not set yet."""
    found: Any = client.get(keys.SCHEMA)
    return None if found is None else str(found)
