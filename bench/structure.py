"""`python bench/structure.py PATH...`: the shape of Python packages, as rows of a Markdown table.

Each PATH is a folder (or a file) with Python sources; folders given with `--without NAME` are skipped. All lines count, blank ones and
comments included. A broad `except` catches `Exception`, `BaseException` or everything. A docstring is a string that is a statement of its own,
and its lines count. Comments are `#` tokens; those that only configure a tool (`# noqa`, `# type: ignore`, `# pragma`) and those before
a file's first statement (licences) do not count.
"""

import argparse
import ast
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

LONG = 60
"""Lines above which a function counts as long."""

HEAD = (
    "| package | files | median | longest | functions over 60 lines | broad excepts | comments per 100 lines "
    "| docstring lines per 100 lines | imports in functions |"
)
TOOLS = ("noqa", "type:", "pragma", "pyright", "mypy", "ruff", "fmt:")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Shape:
    """What is counted over all files of a package."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lengths: list[int] = []
        self.functions = self.long_functions = 0
        self.excepts = self.broad_excepts = 0
        self.comments = self.docstring_lines = self.imports_in_functions = 0

    def add(self, path: Path) -> None:
        """Counts one file."""
        tree = ast.parse(path.read_bytes())
        self.lengths.append(len(path.read_text().splitlines()))
        if tree.body:
            self.comments += _comments(path, tree.body[0].lineno)
        inner_imports: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                self.functions += 1
                self.long_functions += _lines(node) > LONG
                inner_imports |= {
                    inner
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.Import | ast.ImportFrom)
                }
            elif isinstance(node, ast.ExceptHandler):
                self.excepts += 1
                self.broad_excepts += _is_broad(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                self.docstring_lines += _lines(node) if isinstance(node.value.value, str) else 0
        self.imports_in_functions += len(inner_imports)

    def row(self) -> str:
        """The row of this package below `HEAD`."""
        total = sum(self.lengths)
        cells = [
            self.name,
            f"{len(self.lengths)}",
            f"{statistics.median(self.lengths):.0f}",
            f"{max(self.lengths):,}",
            f"{self.long_functions} of {self.functions}",
            f"{self.broad_excepts} of {self.excepts}",
            f"{100 * self.comments / total:.1f}",
            f"{100 * self.docstring_lines / total:.1f}",
            f"{self.imports_in_functions}",
        ]
        return f"| {' | '.join(cells)} |"


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"})
        for name in names
    )


def _comments(path: Path, first_line: int) -> int:
    """Comments from the first statement on."""
    with path.open("rb") as file:
        return sum(
            token.type == tokenize.COMMENT
            and token.start[0] >= first_line
            and not token.string.lstrip("#! ").lower().startswith(TOOLS)
            for token in tokenize.tokenize(file.readline)
        )


def _sources(path: Path, without: set[str]) -> Iterator[Path]:
    """Python files that are not empty."""
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    for file in found:
        if file.read_text().strip() and without.isdisjoint(file.relative_to(path).parts):
            yield file


def measure(path: Path, without: set[str] | None = None) -> Shape:
    """The shape of the package in a folder."""
    shape = Shape(path.resolve().name)
    for source in _sources(path, without or set()):
        shape.add(source)
    return shape


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    chosen = parser.parse_args()
    print(HEAD)
    print(f"|{' --- |' * HEAD.count(' | ')} --- |")
    for given in chosen.paths:
        print(measure(given, set(chosen.without)).row())
