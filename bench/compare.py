"""`make bench-compare A=old.json B=new.json`: compares two runs, also scaled by the speed of the machine."""

import argparse
import json
import math
import sys
from pathlib import Path

from report import ROWS, Row, number

RESULTS = Path(__file__).parent / "results"
MARKED = 0.1
"""Ratio of a change from which a row gets a mark."""


def speed(old: dict, new: dict) -> float | None:
    """The ratio of the machine's times for the same work, new to old; None: not measured."""
    ratios = []
    for name in ("loop_ms", "http_ms"):
        before, after = (run["measures"].get("calibration", {}).get(name) for run in (old, new))
        if not before or not after:
            return None
        ratios.append(after / before)
    return math.prod(ratios) ** (1 / len(ratios))


def scaled(ratio: float, unit: str, slower: float) -> float:
    """The ratio of two figures, scaled as if the machine had the same speed in both runs."""
    return {"ms": ratio / slower, "s": ratio / slower, "/s": ratio * slower}.get(unit, ratio)


def table(old: dict, new: dict) -> list[str]:
    """The lines of the comparison, with the rows that both runs have."""
    slower = speed(old, new)
    ratio_text = "not known" if slower is None else f"{slower:.2f} times the old"
    lines = [
        f"the machine's time for the same (calibration): {ratio_text}",
        "",
        f"{'':<46}{'old':>10}{'new':>10}{'new/old':>10}{'scaled':>10}",
    ]
    if old["quick"] != new["quick"]:
        lines.insert(1, "one of the runs is quick: some rows measure less in it")
    return lines + [line for row in ROWS if (line := _line(row, old, new, slower or 1.0))]


def _line(row: Row, old: dict, new: dict, slower: float) -> str:
    before, after = row.value(old), row.value(new)
    if before is None or after is None:
        return ""
    name = f"{row.measure + ':':<13}{row.what}, {row.unit}"
    figures = f"{name:<46}{number(before):>10}{number(after):>10}"
    if before <= 0 or after <= 0:
        return figures
    ratio = after / before
    fair = ratio if row.measure == "calibration" else scaled(ratio, row.unit, slower)
    return f"{figures}{ratio:>10.2f}{fair:>10.2f}  {mark(row, fair)}".rstrip()


def mark(row: Row, ratio: float) -> str:
    """The mark "better" or "worse", if the figure changed by more than a tenth."""
    about_the_run = row.measure == "calibration" or row.figure == "jobs"
    if about_the_run or 1 / (1 + MARKED) <= ratio <= 1 + MARKED:
        return ""
    lower_is_better = row.unit != "/s" and row.below
    return "better" if (ratio < 1) == lower_is_better else "WORSE"


def newest() -> list[Path]:
    """The two newest results that contain these rows."""
    found = [path for path in sorted(RESULTS.glob("*.json")) if "measures" in _load(path)]
    return found[-2:]


def _load(path: Path) -> dict:
    return json.loads(path.read_text())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("files", nargs="*", type=Path, help="old and new; default: the newest two")
    files = options.parse_args().files or newest()
    if len(files) != 2:
        sys.exit("two results are needed: run `make bench` twice, or name them")
    old, new = map(_load, files)
    print(f"old: {files[0].name}, new: {files[1].name}")
    print("\n".join(table(old, new)))


if __name__ == "__main__":
    main()
