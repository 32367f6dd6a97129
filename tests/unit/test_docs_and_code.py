"""The docs quote messages and name commands of the code; these must be there."""

import ast
import re
from pathlib import Path

import click

from ownpod.tools import cli

ROOT = Path(__file__).parents[2]


def test_every_message_that_troubleshooting_quotes_is_one_of_the_code():
    page = (ROOT / "docs" / "howto" / "troubleshoot.md").read_text()
    # What varies in a message, and what Python reports.
    varies = re.compile(r"\.\.\.|HTTP \d+|/status|Connection refused")
    parts = [
        part.strip()
        for quoted in re.findall(r"\"([^\"]+)\"", page.partition("## Messages")[2])
        for part in varies.split(quoted)
    ]
    code = "".join(
        f"{node.value}\0"
        for path in (ROOT / "ownpod").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert [part for part in parts if part not in code] == []


def test_the_page_of_commands_has_every_command():
    page = (ROOT / "docs" / "commands.md").read_text()
    named = set(re.findall(r"\w[\w-]+", page))
    context = click.Context(cli.main)
    assert set(cli.main.list_commands(context)) - named == set()
