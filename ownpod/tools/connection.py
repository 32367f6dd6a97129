"""The check of Redis at the start of a part, which is one line if Redis does not answer."""

from ownpod.errors import StartError
from ownpod.settings import Settings


def check_redis(config: Settings) -> None:
    """Checks that the Redis of the settings answers. Raises: StartError."""
    import redis

    url = config.broker_url()
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        where = "REDIS_URL" if config.redis_url else "the embedded Redis"
        raise StartError(f"{where}: cannot be used: {error}") from None
