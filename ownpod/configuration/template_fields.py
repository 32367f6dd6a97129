"""Fields of a template that its schema is built from: the environment, and the volumes of its workers."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields

from ownpod.configuration.fields import Parsed, matching
from ownpod.rules.secrets import has_wrong_reference
from ownpod.rules.templates import VolumeMount
from ownpod.rules.volumes import parse_mounts
from ownpod.validation import NAME

MOST_BYTES = 1_000_000
"""Maximum length in bytes of all variables together, and of a command: Linux starts no program with more than twice as
much, and each worker's record has them.
"""

LONGEST_VALUE = 128 * 1024 - 1
"""Maximum length in bytes of an argument and of a variable: a longer one cannot be passed to a program on Linux."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def can_be_passed(text: str) -> bool:
    """Whether a program can get this text as an argument or a variable: UTF-8 without NUL, and not too long."""
    try:
        return "\0" not in text and len(text.encode()) <= LONGEST_VALUE
    except UnicodeError:
        return False


def as_text(value: Any) -> str:
    """A value as text: YAML reads ``8000`` and ``true`` as a number and a boolean. Raises: TypeError."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise TypeError("must be a text, a number, true or false")
    try:
        return str(value)
    except ValueError:
        # Python makes no text of a number with thousands of digits.
        raise TypeError("must be a number of at most 4300 digits") from None


class EnvironmentField(fields.Field[Any]):
    """Variables of a worker. The errors never have a value, because values may be secrets."""

    def __init__(self, **options: Any) -> None:
        self._problem = "must be an object with a value for each variable, for example MODEL: small"
        super().__init__(error_messages={"null": self._problem}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise ValidationError(self._problem)
        found = {self._name(name): self._value(name, given) for name, given in value.items()}
        if sum(len(name) + len(text.encode()) for name, text in found.items()) > MOST_BYTES:
            raise ValidationError(f"must have at most {MOST_BYTES} bytes in all")
        return found

    def _name(self, name: Any) -> str:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ValidationError(
                f"a variable's name has letters, digits and _, and begins with no digit, not {str(name)[:40]!r}"
            )
        return name

    def _value(self, name: str, given: Any) -> str:
        try:
            text = as_text(given)
        except TypeError as error:
            problem = str(error)
        else:
            if not can_be_passed(text):
                problem = f"must be at most {LONGEST_VALUE} bytes of UTF-8 without NUL"
            elif has_wrong_reference(text):
                problem = (
                    "a secret is {{ RUNPOD_SECRET_name }} or {{ SECRET_name }}, whose name has letters, digits and _, "
                    "at most 128"
                )
            else:
                return text
        raise ValidationError({name: [problem]})


class VolumesField(fields.Field[Any]):
    """Volumes at paths of a worker."""

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": "must name at least one volume"}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[VolumeMount, ...]:
        try:
            return parse_mounts(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None


_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?=.{{1,512}}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""An image's reference, from the grammar of the OCI distribution specification: it cannot begin with a dash, so no
program reads it as an option."""

MOST_WORDS = 1000
"""Maximum number of words of a command."""


def _words(value: Any) -> tuple[str, ...]:
    """A command's words. A single text is split as a shell would split it."""
    if isinstance(value, str):
        value = shlex.split(value)
    if not isinstance(value, list) or len(value) > MOST_WORDS:
        raise ValueError
    words = tuple(as_text(word) for word in value)
    if not all(map(can_be_passed, words)) or sum(map(len, words)) > MOST_BYTES:
        raise ValueError
    return words


def image(**options: Any) -> Parsed:
    """An image's reference."""
    return matching(_IMAGE, "the reference of an image, for example runpod/worker-x:1.0", **options)


def command(**options: Any) -> Parsed:
    """The words of a command."""
    problem = "a list of texts, or one text that a shell would split into words"
    return Parsed(_words, problem, **options)


def registry(**options: Any) -> Parsed:
    """The id of registry credentials."""
    return matching(NAME, "the id of registry credentials, see `ownpod registries`", **options)
