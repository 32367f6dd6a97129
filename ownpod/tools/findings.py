"""What ``ownpod doctor`` finds, and how it is shown. Pure but for :func:`show`."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import click

SIGNS = {"ok": "ok   ", "note": "note ", "bad": "BAD  "}


@dataclass(frozen=True)
class Finding:
    """One result of a check. ``kind``: ok, note (works, but know it) or bad (to be changed)."""

    kind: str
    what: str
    says: str


def show(findings: Iterable[Finding], *, as_json: bool) -> NoReturn:
    """Prints them and exits, with 1 if one is bad."""
    found = list(findings)
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in found]))
    else:
        for finding in found:
            click.echo(f"{SIGNS[finding.kind]} {finding.what:<12} {finding.says}")
    sys.exit(any(finding.kind == "bad" for finding in found))
