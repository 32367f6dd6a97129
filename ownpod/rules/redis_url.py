"""Conversions of a Redis URL for each library. Settings have redis-py's form. Pure.

The forms differ for unix sockets only; redis-py's is ``unix:///path?db=0``.
"""

from urllib.parse import parse_qsl, urlencode, urlsplit


def for_celery(url: str) -> str:
    """The form for kombu and Flower: ``redis+socket:///path?virtual_host=0``.

    Flower 2.2 reads queue lengths of database 0 only, even if the URL names another one.
    """
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    query = dict(parse_qsl(parts.query))
    options = {"virtual_host": query.pop("db", "0"), **query}
    return f"redis+socket://{parts.netloc}{parts.path}?{urlencode(options)}"


def for_limits(url: str) -> str:
    """The form for ``limits``, which Flask-Limiter uses: ``redis+unix:///path?db=0``."""
    return f"redis+{url}" if url.startswith("unix:") else url


def without_secrets(url: str) -> str:
    """The address without user and password, for logs: a socket's path, or host and port."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
