"""Tables for the terminal, and the texts of times in them."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text


def make(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table without lines. Where it is too wide, the last column is wrapped, because the others have names and numbers."""
    *names, last = columns
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column(last, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return table


def show(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Prints a table. Without a terminal its lines are not wrapped, so that programs can read them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    console.print(make(columns, rows))


def one_line(text: str) -> str:
    """A text of a caller without line ends and without other characters that control a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def ago(ms: int | None) -> str:
    """The age of an instant in ms since the epoch, as ``5 min``; "" for None."""
    if ms is None:
        return ""
    seconds = max(0, int(time.time() - ms / 1000))
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def clock(ms: int) -> str:
    """An instant in ms since the epoch, on this host's clock, as ``2026-11-29 10:15:00``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


def seconds(ms: int | None) -> str:
    """A duration in ms, as ``1.50 s``; "" for None."""
    return "" if ms is None else f"{ms / 1000:.2f} s"
