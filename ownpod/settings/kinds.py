"""How values that are more than a number or a word are read from an environment variable: marshmallow fields."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from marshmallow import ValidationError, fields

from ownpod.rules import credentials, devices, images, redis_url, sizes, volumes
from ownpod.rules.credentials import Credential
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.homes import Front
from ownpod.rules.origins import host_name
from ownpod.rules.volumes import VolumeSource
from ownpod.validation import FRAMING_HEADERS, HEADER_NAME, HEADER_VALUE, check_http_url

Read = TypeVar("Read")

OPERATIONS = (
    "run",
    "runsync",
    "status",
    "stream",
    "cancel",
    "retry",
    "purge-queue",
    "requests",
    "health",
    "management",
)
"""Operations that ``OWNPOD_RATE_LIMITS`` can limit; ``status`` includes ``status-sync``."""


def _parts(value: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in str(value).split(",") if part.strip())


class PathField(fields.Field[Path]):
    """A path, which may be missing."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Path:
        return Path(value)


class BaseUrl(fields.Field[str]):
    """An http or https URL; read without slashes at its end."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        check_http_url(value)
        return str(value).rstrip("/")


class Urls(fields.Field[tuple[str, ...]]):
    """Comma-separated http and https URLs, at least one."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        urls = _parts(value)
        if not urls:
            raise ValidationError("must be a comma-separated list of worker URLs")
        for url in urls:
            check_http_url(url)
        return urls


class RateLimits(fields.Field[dict[str, str]]):
    """A JSON object of rates, as the library ``limits`` writes them, by operation."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        # Imported late, because only processes with rate limits need the library, which takes megabytes.
        import limits

        operations = ", ".join(OPERATIONS)
        problem = f'must be a JSON object like {{"run": "10/second"}}, of {operations}'
        try:
            rates = json.loads(value)
            if not isinstance(rates, dict) or not rates.keys() <= set(OPERATIONS):
                raise ValidationError(problem)
            for rate in rates.values():
                limits.parse_many(rate)
        except (ValueError, TypeError):
            raise ValidationError(problem) from None
        return rates


class Headers(fields.Field[dict[str, str]]):
    """A JSON object of HTTP headers."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        problem = 'must be a JSON object of strings, like {"Authorization": "Bearer ..."}'
        try:
            headers = json.loads(value)
        except ValueError:
            raise ValidationError(problem) from None
        if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
            raise ValidationError(problem)
        for name, text in headers.items():
            if not re.fullmatch(HEADER_NAME, name):
                raise ValidationError(
                    f"{problem}; a header's name has letters, digits and -, and is "
                    f"none of {', '.join(FRAMING_HEADERS)}"
                )
            if not re.fullmatch(HEADER_VALUE, text):
                raise ValidationError(f"{problem}; a header's value must be one line of ASCII")
        return headers


class Keys(fields.Field[tuple[Credential, ...]]):
    """Comma-separated keys. ``bound``: a key may be bound to an endpoint or a worker."""

    def __init__(self, *, bound: bool = False, **kwargs: Any) -> None:
        self._bound = bound
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[Credential, ...]:
        return self._checked(str(value), credentials.parse_list)

    def _checked(
        self, text: str, parse: Callable[..., tuple[Credential, ...]]
    ) -> tuple[Credential, ...]:
        try:
            return parse(text, bound=self._bound)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class KeyFile(Keys):
    """The path of a file with keys, one a line."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[Credential, ...]:
        try:
            text = Path(value).read_text()
        except FileNotFoundError:
            raise ValidationError("must be a file that exists") from None
        except OSError as error:
            raise ValidationError(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValidationError("must be a text file") from None
        return self._checked(text, credentials.parse_file)


class Origins(fields.Field[tuple[str, ...]]):
    """Comma-separated origins; regular expressions are allowed, as for flask-cors."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        origins = _parts(value)
        for origin in origins:
            try:
                re.compile(origin if origin != "*" else "")
            except re.error:
                raise ValidationError(f"{origin!r} must be an origin or a pattern") from None
        return origins


class Images(fields.Field[tuple[str, ...]]):
    """Comma-separated patterns of images, at least one."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        patterns = _parts(value)
        if not patterns:
            raise ValidationError("must be a comma-separated list of images, like ghcr.io/team/*")
        for pattern in patterns:
            try:
                images.check_pattern(pattern)
            except ValueError as error:
                raise ValidationError(str(error)) from None
        return patterns


class Hosts(fields.Field[tuple[str, ...]]):
    """Comma-separated host names, without scheme and port; read in lower case."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        names = []
        for part in _parts(value):
            name = host_name(part)
            if name is None or name != part.lower().removesuffix("."):
                raise ValidationError(f"{part!r} must be a host name without scheme and port")
            names.append(name)
        return tuple(names)


class Devices(fields.Field[DeviceChoice]):
    """The devices that an agent offers."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> DeviceChoice:
        return _checked(str(value).strip(), devices.parse_choice)


class DeviceIds(fields.Field[DeviceChoice]):
    """The GPU service's indexes of devices."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> DeviceChoice:
        return _checked(str(value), devices.parse_device_ids)


class DeviceDifficulties(fields.Field[dict[str, str]]):
    """Comma-separated difficulties of devices, ``<index or UUID>:<difficulty>``."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        return _checked(str(value), devices.parse_difficulties)


class Size(fields.Field[int]):
    """A size in bytes, like ``16g``. ``least``: its smallest value in MiB."""

    def __init__(self, *, least: int = 1, **kwargs: Any) -> None:
        self._least = least
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        text = str(value).strip()
        try:
            return sizes.parse(text, self._least)
        except ValueError:
            raise ValidationError(f"must be {sizes.allowed(self._least)}") from None


class CpuQuota(fields.Field[float]):
    """Microseconds of CPU time in each 100 ms, as Docker's ``--cpu-quota``; read as a number of CPUs."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        text = str(value).strip()
        if not re.fullmatch("[0-9]{4,9}", text) or not 1000 <= int(text) <= 102_400_000:
            raise ValidationError(
                "must be a whole number of microseconds from 1000 to 102400000, 100000 for one CPU"
            )
        return int(text) / 100_000


class Labels(fields.Field[dict[str, str]]):
    """Comma-separated labels, ``name=value``."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        return _checked(str(value), devices.parse_labels)


class Volumes(fields.Field[tuple[VolumeSource, ...]]):
    """Comma-separated volumes of a host, ``name=directory`` or ``name=docker:volume``."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[VolumeSource, ...]:
        return _checked(str(value), volumes.parse_sources)


def _checked(text: str, parse: Callable[[str], Read]) -> Read:
    try:
        return parse(text)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def check_host(value: str) -> None:
    """Raises: ValidationError."""
    _checked(value, devices.check_host)


def check_address(value: str) -> None:
    """Raises: ValidationError, if the value is not ``<host>:<port>``."""
    if Front("", value).place is None:
        raise ValidationError("must be <host>:<port>, with a port from 1 to 65535")


def check_redis_url(value: str) -> None:
    """Raises: ValidationError."""
    if not value.startswith(("redis://", "rediss://", "unix:///")):
        raise ValidationError("must be a redis://, rediss:// or unix:/// URL")


def mask_redis_url(value: str) -> str:
    """A Redis URL without user, password and options."""
    try:
        parts = urlsplit(value)
        place = redis_url.without_secrets(value)
    except ValueError:
        return "***"
    return f"unix://{place}" if parts.scheme == "unix" else f"{parts.scheme}://{place}{parts.path}"
