"""`make coverage`: the share of lines that the tests run, by folder, as a table and as docs/images/coverage.svg.

Reads the JSON report of coverage.py from stdin.
"""

import json
import sys
from pathlib import Path

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "coverage.svg"
ROW, BAR, LEFT, WIDTH = 22, 300, 130, 560
"""Pixels: a row's height, the longest bar, where bars begin, the whole figure's width."""


def by_folder(report: dict) -> list[tuple[str, int, int]]:
    """(folder, lines that were run, lines), for each folder of the package and for all of it.

    Modules beside the folders count as "ownpod".
    """
    folders: dict[str, list[int]] = {}
    for name, found in report["files"].items():
        parts = Path(name).parts
        folder = "/".join(parts[:2]) if len(parts) > 2 else parts[0]
        sums = folders.setdefault(folder, [0, 0])
        sums[0] += found["summary"]["covered_lines"]
        sums[1] += found["summary"]["num_statements"]
    rows = [(name, *sums) for name, sums in sorted(folders.items())]
    return [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def percent(run: int, lines: int) -> float:
    """Share of lines in per cent; a folder without lines is wholly run."""
    return 100 * run / lines if lines else 100.0


def table(rows: list[tuple[str, int, int]]) -> str:
    """The rows as text."""
    lines = [f"{'folder':20} {'lines':>6} {'run':>6} {'share':>7}"]
    lines += [f"{name:20} {all_:6} {run:6} {percent(run, all_):6.1f}%" for name, run, all_ in rows]
    return "\n".join(lines)


def svg(rows: list[tuple[str, int, int]]) -> str:
    """The rows as a bar chart."""
    height = ROW * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">',
        "<style>text { font: 13px sans-serif }</style>",
        "<title>Share of lines that unit and integration tests run, by folder</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, (name, run, lines) in enumerate(rows):
        top, share = 15 + ROW * number, percent(run, lines)
        color = "#1b5e20" if name == "all" else "#4c8c4a"
        parts += [
            f'<text x="{LEFT - 10}" y="{top + 15}" text-anchor="end">{name}</text>',
            f'<rect x="{LEFT}" y="{top + 3}" width="{BAR}" height="{ROW - 6}" fill="#eee"/>',
            f'<rect x="{LEFT}" y="{top + 3}" width="{BAR * share / 100:.1f}" height="{ROW - 6}" fill="{color}"/>',
            f'<text x="{LEFT + BAR + 10}" y="{top + 15}">{share:.1f} % of {lines}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Prints the table, and writes the figure."""
    rows = by_folder(json.load(sys.stdin))
    print(table(rows))
    FIGURE.write_text(svg(rows))


if __name__ == "__main__":
    main()
