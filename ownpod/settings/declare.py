"""One environment variable: written once, as a field of a dataclass; its check, README and ``ownpod settings`` come from there."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from ownpod.settings.kinds import PathField

Kind = Callable[..., "fields.Field[Any]"]
"""A class of marshmallow fields, or a function that makes one from the same keyword arguments."""

_KINDS: dict[type, Kind] = {
    str: fields.String,
    int: fields.Integer,
    float: fields.Float,
    bool: fields.Boolean,
    Path: PathField,
}
_KEY = "variable"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of a variable, from an earlier program. The variable's own name wins where both are set.

    ``kind``: reads the value of this name; None: as the variable's.
    """

    name: str
    kind: Kind | None = None


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A declared variable.

    ``default``: the value that counts when the variable is unset or empty, as Python has it; None: there is none.
    ``unset``: what README shows for a variable without a default.
    ``secret``: no error, log line or command shows the value.
    ``masked``: shows a value that is secret in part, like a URL with a password; None: ``secret`` decides alone.
    ``file``: the variable names a file with further values of the variable before it.
    ``alias``: another name, under which the GPU service had the variable.
    """

    name: str
    default: str | float | None
    purpose: str
    unset: str = "unset"
    secret: bool = False
    masked: Callable[[str], str] | None = None
    file: bool = False
    kind: Kind | None = None
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[str], None] | None = None
    alias: Alias | None = None

    @property
    def about(self) -> str:
        """The purpose with the alias, for README."""
        return self.purpose if self.alias is None else f"{self.purpose}. Also `{self.alias.name}`"

    @property
    def default_text(self) -> str | None:
        """The default as it would be written in the environment."""
        if self.default is None:
            return None
        return str(self.default).lower() if isinstance(self.default, bool) else f"{self.default}"

    def shown(self, value: str) -> str:
        """A value that may be printed: ``***`` in place of what is secret."""
        if self.masked is not None:
            return self.masked(value)
        return "***" if self.secret else value


def variable(
    name: str,
    default: str | float | None = None,
    *,
    purpose: str,
    file_kind: Kind | None = None,
    **options: Any,
) -> Any:
    """Declares the variable of a dataclass's field; the field's annotation decides how the value is read.

    Args:
        name: of the environment variable.
        default: see :class:`Variable`.
        purpose: for README and ``ownpod settings``, in Markdown.
        file_kind: reads further values from the file that the variable ``<name>_FILE`` names.
        **options: see :class:`Variable`.
    """
    declared = [Variable(name=name, default=default, purpose=purpose, **options)]
    if file_kind is not None:
        about = "file with further such keys, one a line"
        declared.append(
            Variable(name=f"{name}_FILE", default=None, purpose=about, kind=file_kind, file=True)
        )
    return dataclasses.field(repr=not declared[0].secret, metadata={_KEY: tuple(declared)})


def variables_of(declaring: type[Any]) -> tuple[Variable, ...]:
    """All variables of a dataclass, in the order of their declaration."""
    return tuple(v for field in dataclasses.fields(declaring) for v in field.metadata.get(_KEY, ()))


class Reader:
    """Reads a dataclass's variables from an environment, through a marshmallow schema that is built from the dataclass."""

    def __init__(self, declaring: type[Any]) -> None:
        self._variables = {v.name: v for v in variables_of(declaring)}
        hints = typing.get_type_hints(declaring)
        self._fields = {
            field.name: (hints[field.name], field.metadata[_KEY])
            for field in dataclasses.fields(declaring)
            if _KEY in field.metadata
        }
        built = {v.name: _field(v, hint) for hint, vs in self._fields.values() for v in vs}
        self._aliases = {v.alias.name: v for v in self._variables.values() if v.alias is not None}
        for hint, declared in self._fields.values():
            for v in declared:
                if v.alias is not None:
                    own = v if v.alias.kind is None else replace(v, kind=v.alias.kind, check=None)
                    built[v.alias.name] = _field(own, hint)
        self._schema = Schema.from_dict(built)(unknown=EXCLUDE)
        self._defaults = {
            v.name: v.default for v in self._variables.values() if v.default is not None
        }

    def names(self, field: str) -> list[str]:
        """All names of the variables of a field, aliases included."""
        _, declared = self._fields[field]
        return [name for v in declared for name in (v.name, *([v.alias.name] if v.alias else []))]

    def read(self, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """The values by the dataclass's fields, and the problems: a line for each wrong variable.

        An empty variable counts as unset. Where there is a problem there are no values.
        """
        given = {name: value for name, value in environ.items() if value != ""}
        for alias, v in self._aliases.items():
            if v.name in given:
                given.pop(alias, None)
        try:
            loaded = self._schema.load(self._defaults | given)
        except ValidationError as error:
            return {}, list(self._lines(error.normalized_messages(), environ))
        values = {}
        for name, (hint, declared) in self._fields.items():
            names = [
                v.alias.name if v.alias and v.alias.name in loaded else v.name for v in declared
            ]
            given_values = [loaded[name] for name in names if name in loaded]
            values[name] = given_values[0] if given_values else _empty(hint)
            for more in given_values[1:]:
                values[name] += more
        return values, []

    def _lines(self, errors: Mapping[str, Any], environ: Mapping[str, str]) -> Iterable[str]:
        for name, problems in errors.items():
            secret = (self._variables.get(name) or self._aliases[name]).secret
            shown = "..." if secret else repr(environ.get(name))
            yield f"{name}={shown}: {problems[0]}"


def _field(declared: Variable, hint: Any) -> "fields.Field[Any]":
    """The marshmallow field that reads a variable."""
    kind = declared.kind or _KINDS[_plain(hint)]
    checks: list[Any] = [] if declared.check is None else [declared.check]
    problem = None
    if declared.limits is not None:
        low, high = declared.limits
        form = "a number from {:g} to {:g}" if hint is float else "a whole number from {} to {}"
        problem = "must be " + form.format(low, high)
        checks.append(validate.Range(low, high, error=problem))
    elif hint is bool:
        problem = "must be true or false"
    if declared.choices:
        checks.append(validate.OneOf(declared.choices, error="must be one of {choices}"))
    messages = {} if problem is None else {"invalid": problem, "special": problem}
    return kind(validate=checks, error_messages=messages)


def _plain(hint: Any) -> Any:
    """The type without ``| None``."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _empty(hint: Any) -> Any:
    """The value of a variable that is unset and has no default."""
    if isinstance(hint, types.UnionType):
        return None
    return {} if typing.get_origin(hint) is Mapping else ()
