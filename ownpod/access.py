"""The variables that decide which callers are allowed; a part of :class:`ownpod.settings.Settings`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate

from ownpod.rules import credentials
from ownpod.rules.credentials import Credential
from ownpod.rules.origins import host_name

SECRET = ("OWNPOD_ADMIN_KEYS", "OWNPOD_API_KEYS", "OWNPOD_WORKER_KEYS")
"""Variables whose value is never shown."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """The keys and names that decide which callers are allowed; see the same field of :class:`AccessSchema`."""

    admin_keys: tuple[Credential, ...] = field(repr=False)
    api_keys: tuple[Credential, ...] = field(repr=False)
    worker_keys: tuple[Credential, ...] = field(repr=False)
    cors_origins: tuple[str, ...]
    hosts: tuple[str, ...]
    trusted_proxies: int


def _checked(
    text: str, parse: Callable[..., tuple[Credential, ...]], *, bound: bool
) -> tuple[Credential, ...]:
    try:
        return parse(text, bound=bound)
    except ValueError as error:
        raise ValidationError(str(error)) from None


class Keys(fields.Field[tuple[Credential, ...]]):
    """Comma-separated keys."""

    def __init__(self, *, bound: bool = False, **kwargs: Any) -> None:
        self._bound = bound
        super().__init__(load_default=(), **kwargs)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[Credential, ...]:
        return _checked(str(value), credentials.parse_list, bound=self._bound)


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
        return _checked(text, credentials.parse_file, bound=self._bound)


def _parts(value: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in str(value).split(",") if part.strip())


class _Origins(fields.Field[tuple[str, ...]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        origins = _parts(value)
        for origin in origins:
            try:
                re.compile(origin if origin != "*" else "")
            except re.error:
                raise ValidationError(f"{origin!r} must be an origin or a pattern") from None
        return origins


class _Hosts(fields.Field[tuple[str, ...]]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        names = []
        for part in _parts(value):
            name = host_name(part)
            if name is None or name != part.lower().removesuffix("."):
                raise ValidationError(f"{part!r} must be a host name without scheme and port")
            names.append(name)
        return tuple(names)


class AccessSchema(Schema):
    """The variables, their defaults, limits and purposes."""

    api_keys = Keys(
        data_key="OWNPOD_API_KEYS",
        metadata={
            "default": "unset: any caller",
            "purpose": "comma-separated keys, plain or `sha256:<hex>`; when there are any, every `/v2` "
            "call needs one. Keys for single endpoints are in `workers.yaml`",
        },
    )
    api_keys_file = KeyFile(
        data_key="OWNPOD_API_KEYS_FILE",
        metadata={"default": "unset", "purpose": "a file with more such keys, one a line"},
    )
    admin_keys = Keys(
        data_key="OWNPOD_ADMIN_KEYS",
        metadata={
            "default": "unset",
            "purpose": "comma-separated keys that also manage: add, remove, drain and resume workers, use Flower",
        },
    )
    admin_keys_file = KeyFile(
        data_key="OWNPOD_ADMIN_KEYS_FILE",
        metadata={"default": "unset", "purpose": "a file with more such keys, one a line"},
    )
    worker_keys = Keys(
        bound=True,
        data_key="OWNPOD_WORKER_KEYS",
        metadata={
            "default": "unset: any worker, unless there are API keys",
            "purpose": "comma-separated keys of workers that pull, their `RUNPOD_AI_API_KEY`; "
            "`sha256:<hex>@<endpoint>[/<worker>]` is for one endpoint or worker only",
        },
    )
    worker_keys_file = KeyFile(
        bound=True,
        data_key="OWNPOD_WORKER_KEYS_FILE",
        metadata={"default": "unset", "purpose": "a file with more such keys, one a line"},
    )
    cors_origins = _Origins(
        data_key="OWNPOD_CORS_ORIGINS",
        load_default=(),
        metadata={
            "default": "unset: none",
            "purpose": "comma-separated origins whose pages may call the API, like "
            "`https://app.example.com`",
        },
    )
    hosts = _Hosts(
        data_key="OWNPOD_HOSTS",
        load_default=(),
        metadata={
            "default": "unset",
            "purpose": "comma-separated names of this machine that requests without a key may use, besides "
            "addresses and names without a dot",
        },
    )
    trusted_proxies = fields.Integer(
        data_key="OWNPOD_TRUSTED_PROXIES",
        load_default=0,
        validate=validate.Range(0, 10, error="must be a whole number from 0 to 10"),
        error_messages={"invalid": "must be a whole number from 0 to 10"},
        metadata={
            "purpose": "proxies before the API whose `X-Forwarded-For` counts as the caller's address"
        },
    )

    @post_load
    def _join(self, values: dict[str, Any], **_: Any) -> dict[str, Any]:
        for name in ("api_keys", "admin_keys", "worker_keys"):
            values[name] += values.pop(f"{name}_file")
        return values
