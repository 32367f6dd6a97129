"""Secrets in the variables of a template: ``{{ RUNPOD_SECRET_name }}``, as on RunPod. Pure.

Records and settings have the reference only. The agent resolves the reference when it starts a worker, from its own
variable ``OWNPOD_SECRET_name``.
"""

import re
from collections.abc import Mapping, Sequence

from ownpod.errors import StartError
from ownpod.rules.templates import ManagedSpec

PREFIX = "OWNPOD_SECRET_"
"""What the name of the agent's variable begins with."""

_REFERENCE = re.compile(r"\{\{\s*RUNPOD_SECRET_([A-Za-z0-9_]+)\s*\}\}")
_BEGIN = re.compile(r"\{\{\s*RUNPOD_SECRET_")


class SecretMissing(StartError):
    """A template needs a secret that the agent does not have."""

    def __init__(self, name: str, variable: str) -> None:
        super().__init__(
            f"secret {name!r} of the template's variable {variable} is not there: "
            f"set {PREFIX}{name} where the agent runs"
        )


def has_wrong_reference(text: str) -> bool:
    """Whether a text has the beginning of a reference without a valid name and end, so that it would be passed as it is."""
    return len(_BEGIN.findall(text)) != len(_REFERENCE.findall(text))


def is_reference(text: str) -> bool:
    """Whether a text is nothing but a reference, so that it can be shown."""
    return _REFERENCE.fullmatch(text) is not None


def missing_secrets(spec: ManagedSpec, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the secrets that a template refers to and that an agent with this environment does not have, sorted."""
    needed = {name for text in spec.template.env.values() for name in _REFERENCE.findall(text)}
    return tuple(sorted(name for name in needed if f"{PREFIX}{name}" not in environ))


def why_missing(names: Sequence[str]) -> str:
    """What to do about the secrets of :func:`missing_secrets`, in words for people."""
    listed = " and ".join(f"{name!r}" for name in names)
    variables = " and ".join(f"{PREFIX}{name}" for name in names)
    noun, verb = ("secret", "is") if len(names) == 1 else ("secrets", "are")
    return f"{noun} {listed} {verb} not there: set {variables} where the agent runs"


def resolve(env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """A template's variables with the secrets in place of their references.

    Args:
        env: the template's variables.
        environ: the agent's environment.

    Raises:
        SecretMissing: the message names the secret, and has no value.
    """
    return {name: _resolved(name, text, environ) for name, text in env.items()}


def _resolved(variable: str, text: str, environ: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        try:
            return environ[f"{PREFIX}{found[1]}"]
        except KeyError:
            raise SecretMissing(found[1], variable) from None

    return _REFERENCE.sub(value, text)
