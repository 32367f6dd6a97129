"""``python -m ownpod.tools.alive``: checks this host's housekeeping node; the health check of docker-compose.yml.

The node renews a key in Redis with each sweep. Exit code 0: the key exists; 1: the key does not exist, or Redis does
not answer.

redis-py is imported only for URLs that need it (TLS, options), and Celery never, because this command runs every few
seconds: it takes 0.05 s of CPU without both, 0.2 s with redis-py, and 0.6 s as ``celery inspect ping``.
"""

import os
import socket
import sys
from urllib.parse import unquote, urlsplit

from ownpod.store import keys

TIMEOUT_S = 3.0


def main() -> None:
    url = os.environ.get("REDIS_URL", "")
    key = keys.housekeeping(socket.gethostname())
    try:
        healthy = exists(url, key)
    except (OSError, ValueError) as error:
        sys.exit(f"Redis does not answer: {error}")
    if not healthy:
        sys.exit(f"the housekeeping node of this host has not renewed {key}")


def exists(url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a key exists in Redis. ``timeout_s`` limits the connection, and each answer, in seconds.

    Raises:
        OSError: Redis cannot be reached, or does not answer in time.
        ValueError: Redis refuses the command, or the URL is wrong.
    """
    parts = urlsplit(url)
    if parts.scheme != "redis" or not parts.hostname or parts.query:
        return _exists_by_client(url, key, timeout_s)
    commands = []
    if parts.password:
        user = [unquote(parts.username)] if parts.username else []
        commands.append(["AUTH", *user, unquote(parts.password)])
    if number := parts.path.strip("/"):
        commands.append(["SELECT", number])
    commands.append(["EXISTS", key])
    with socket.create_connection((parts.hostname, parts.port or 6379), timeout_s) as connection:
        connection.sendall(b"".join(map(_packed, commands)))
        with connection.makefile("rb") as answers:
            for _ in commands:
                answer = answers.readline().decode(errors="replace").strip()
                if not answer or answer.startswith("-"):
                    raise ValueError(answer[1:] or "the connection was closed")
    return answer == ":1"


def _packed(words: list[str]) -> bytes:
    """A command in Redis's protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/."""
    encoded = [word.encode() for word in words]
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


def _exists_by_client(url: str, key: str, timeout_s: float) -> bool:
    import redis

    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s
        ) as client:
            return bool(client.exists(key))
    except redis.RedisError as error:
        raise ValueError(str(error)) from None


if __name__ == "__main__":
    main()
