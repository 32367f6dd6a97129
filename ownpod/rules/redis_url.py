"""A Redis URL in the form that each library takes. OwnPod's own form is redis-py's. Pure.

They differ for unix sockets only: ``unix:///path?db=0`` for redis-py.
"""

from urllib.parse import parse_qsl, urlencode, urlsplit


def for_celery(url: str) -> str:
    """Kombu's and Flower's form: ``redis+socket:///path?virtual_host=0``.

    Flower 2.2 reads queue lengths of database 0 only, whatever the URL names.
    """
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    query = dict(parse_qsl(parts.query))
    options = {"virtual_host": query.pop("db", "0"), **query}
    return f"redis+socket://{parts.netloc}{parts.path}?{urlencode(options)}"


def for_limits(url: str) -> str:
    """The form of ``limits``, which Flask-Limiter uses: ``redis+unix:///path?db=0``."""
    return f"redis+{url}" if url.startswith("unix:") else url


def without_secrets(url: str) -> str:
    """Where the Redis listens: a socket's path, or host and port."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
