"""Secrets in the variables of a template: ``{{ SECRET_name }}``, or ``{{ RUNPOD_SECRET_name }}`` as on RunPod. Pure.

Records and settings have the reference only. The agent resolves the reference when it starts a worker: from the
encrypted secrets in Redis, or from its own variable ``OWNPOD_SECRET_name``.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from ownpod.errors import BadRequest, StartError
from ownpod.rules.templates import ManagedSpec

PREFIX = "OWNPOD_SECRET_"
"""What the name of the agent's variable begins with."""

LONGEST_SECRET = 128 * 1024 - 1
"""Maximum length in bytes of a secret's value: Linux passes no longer variable to a program."""

SHORTEST_MASKED = 6
"""Characters from which on a secret's value is hidden in kept output: shorter ones are parts of ordinary words."""

MASKED = "***"

_NAME = r"[A-Za-z0-9_]{1,128}"
_REFERENCE = re.compile(rf"\{{\{{\s*(?:RUNPOD_)?SECRET_({_NAME})\s*\}}\}}")
_BEGIN = re.compile(r"\{\{\s*(?:RUNPOD_)?SECRET_")


class SecretMissing(StartError):
    """A template needs a secret that is not there, or that cannot be read."""

    def __init__(self, name: str, variable: str) -> None:
        super().__init__(
            f"secret {name!r} of the template's variable {variable} is not there: {_what_to_do([name])}"
        )


def check_name(name: str) -> None:
    """Checks the name of a secret. Raises: BadRequest."""
    if not re.fullmatch(_NAME, name):
        raise BadRequest(
            f"a secret's name has letters, digits and _ only, at most 128, not {name[:40]!r}"
        )


def check_value(value: str) -> None:
    """Checks a secret's value. Raises: BadRequest, without the value."""
    try:
        size = len(value.encode())
    except UnicodeError:
        raise BadRequest("a secret's value must be UTF-8") from None
    if not 1 <= size <= LONGEST_SECRET or "\0" in value:
        raise BadRequest(f"a secret's value must be 1 to {LONGEST_SECRET} bytes without NUL")


def has_wrong_reference(text: str) -> bool:
    """Whether a text has the beginning of a reference without a valid name and end, so that it would be passed as it is."""
    return len(_BEGIN.findall(text)) != len(_REFERENCE.findall(text))


def is_reference(text: str) -> bool:
    """Whether a text is nothing but a reference, so that it can be shown."""
    return _REFERENCE.fullmatch(text) is not None


def secrets_in(env: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the secrets that variables refer to, sorted."""
    return tuple(sorted({name for text in env.values() for name in _REFERENCE.findall(text)}))


def used_by(specs: Mapping[str, ManagedSpec]) -> dict[str, list[str]]:
    """Names of the endpoints whose templates refer to a secret, by the secret's name. ``specs``: by endpoint."""
    found: dict[str, list[str]] = {}
    for endpoint, spec in sorted(specs.items()):
        for name in secrets_in(spec.template.env):
            found.setdefault(name, []).append(endpoint)
    return found


def of_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets that an agent has in its own variables, by name."""
    return {n.removeprefix(PREFIX): value for n, value in environ.items() if n.startswith(PREFIX)}


def missing_secrets(spec: ManagedSpec, values: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the secrets that a template refers to and that are not among those with ``values``, sorted."""
    return tuple(name for name in secrets_in(spec.template.env) if name not in values)


def why_missing(names: Sequence[str]) -> str:
    """What to do about the secrets of :func:`missing_secrets`, in words for people."""
    listed = " and ".join(f"{name!r}" for name in names)
    noun, verb = ("secret", "is") if len(names) == 1 else ("secrets", "are")
    return f"{noun} {listed} {verb} not there: {_what_to_do(names)}"


def _what_to_do(names: Sequence[str]) -> str:
    commands = " and ".join(f"`ownpod secrets set {name}`" for name in names)
    variables = " and ".join(f"{PREFIX}{name}" for name in names)
    return f"use {commands}, or set {variables} where the agent runs"


def resolve(env: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """A template's variables with the secrets in place of their references.

    A secret's own text is not searched for references.

    Args:
        env: the template's variables.
        values: the secrets, by name.

    Raises:
        SecretMissing: the message names the secret, and has no value.
    """
    return {name: _resolved(name, text, values) for name, text in env.items()}


def given_in(template: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """The secrets that a worker was started with, by name, as far as its variables show them.

    Those of a variable with several references are left out, because where one ends is not certain.

    Args:
        template: the template's variables, with references.
        env: the variables that the worker has.
    """
    found = {}
    for variable, text in template.items():
        parts, actual = _REFERENCE.split(text), env.get(variable, "")
        if len(parts) != 3:
            continue
        before, name, after = parts
        value = actual[len(before) : len(actual) - len(after)]
        if value and actual == f"{before}{value}{after}":
            found[name] = value
    return found


def _resolved(variable: str, text: str, values: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        try:
            return values[found[1]]
        except KeyError:
            raise SecretMissing(found[1], variable) from None

    return _REFERENCE.sub(value, text)


def mask(text: str, values: Iterable[str]) -> str:
    """A worker's output with ``***`` in place of its secrets.

    A value of several lines is hidden line by line, because output is kept and shown in lines. It is hidden as JSON has
    it, too, because RunPod's SDK logs JSON. Values and lines below :data:`SHORTEST_MASKED` characters stay.
    """
    parts = {
        part.strip()
        for value in values
        for plain in (value, *value.splitlines())
        for part in (plain, json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1])
    }
    # The longest first, because one secret may be a part of another.
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_MASKED:
            text = text.replace(part, MASKED)
    return text
