"""The docs quote messages and name commands of the code; these must be there."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from ownpod.tools import cli

ROOT = Path(__file__).parents[2]


@functools.cache
def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in (ROOT / "ownpod").rglob("*.py")}


@functools.cache
def strings(path: Path) -> str:
    return "".join(
        f"{node.value}\0"
        for node in ast.walk(ast.parse(sources()[path]))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def is_in_the_code(message: str) -> bool:
    """Whether a string has it. Only files that have its longest word are parsed, because all of them take a second."""
    word = max(re.findall(r"\w+", message), key=len, default="")
    return any(word in text and message in strings(path) for path, text in sources().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "heading"),
    [("troubleshoot.md", "## Messages"), ("worker-starts.md", "## The worker ended by itself")],
)
def test_every_message_that_troubleshooting_quotes_is_one_of_the_code(name, heading):
    page = (ROOT / "docs" / "howto" / name).read_text()
    # What varies in a message, and what Python reports.
    varies = re.compile(r"\.\.\.|HTTP \d+|/status|Connection refused")
    parts = [
        part.strip()
        for quoted in re.findall(r"\"([^\"]+)\"", page.partition(heading)[2])
        for part in varies.split(quoted)
    ]
    assert [part for part in parts if not is_in_the_code(part)] == []


def test_the_page_of_commands_has_every_command():
    page = (ROOT / "docs" / "commands.md").read_text()
    named = set(re.findall(r"\w[\w-]+", page))
    context = click.Context(cli.main)
    assert set(cli.main.list_commands(context)) - named == set()


REFERENCE = re.compile(r":(?:mod|class|func|meth|data|attr|exc):`~?([\w.]+)`")


def resolves(name: str, module: ModuleType) -> bool:
    """Whether a name is in the package, in the module, or in a class that the module has."""
    if name.startswith("ownpod"):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    if any(reaches(owner, name.split(".")) for owner in (module, *classes)):
        return True
    # An attribute that a class sets in its constructor.
    return re.search(rf"\bself\.{name}(: [^=\n]+)? = ", inspect.getsource(module)) is not None


def reaches(owner: object, path: list[str]) -> bool:
    for part in path:
        if isinstance(owner, type) and part in getattr(owner, "__annotations__", {}):
            return True
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ownpod").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_reference_in_a_docstring_resolves(path):
    references = REFERENCE.findall(path.read_text())
    if not references:
        return
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
    assert [name for name in references if not resolves(name, module)] == []


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_every_module_that_a_page_names_exists(page):
    named = set(re.findall(r"`([\w/]+\.(?:py|lua))`", (ROOT / "docs" / page).read_text()))
    places = (ROOT / "ownpod", ROOT, *(ROOT / "tests").rglob("*/"))
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
