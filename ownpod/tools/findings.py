"""The findings of ``ownpod doctor``, and their output."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import click

SIGNS = {"ok": "ok   ", "note": "note ", "bad": "BAD  "}


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    ``kind``: "ok"; "note": it works, with a consequence that an operator should know; "bad": it must be changed.
    ``what``: the part that was checked. ``says``: the result, in words.
    """

    kind: str
    what: str
    says: str


def show(findings: Iterable[Finding], *, as_json: bool) -> NoReturn:
    """Prints the findings and exits; with code 1 if one of them is bad."""
    results = list(findings)
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in results]))
    else:
        for finding in results:
            click.echo(f"{SIGNS[finding.kind]} {finding.what:<12} {finding.says}")
    sys.exit(any(finding.kind == "bad" for finding in results))
