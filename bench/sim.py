"""`make sim`: simulates how endpoints share devices by several policies, and writes the table of docs/performance.md."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import mixes
from client import percentile
from policies import POLICIES
from simulator import Mix, Run, Simulator

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- from make sim -->\n", "<!-- end of make sim -->\n"

COLUMNS = ("mix", "policy", "swaps", "mean wait", "p95", "longest", "mean and longest by endpoint")


def row(mix: Mix, policy: str, run: Run) -> list[str]:
    """The cells of one simulation; waiting in seconds, from the arrival of a job to its start."""
    waits = [start.waited_s for start in run.starts]
    figures = (_mean(waits), percentile(waits, 95), max(waits))
    by_endpoint = [
        (name, [start.waited_s for start in run.starts if start.job.endpoint == name])
        for name in mix.load_s
    ]
    parts = [f"{name} {seconds(_mean(of))}, {seconds(max(of))}" for name, of in by_endpoint]
    return [mix.name, policy, str(len(run.swaps)), *map(seconds, figures), "; ".join(parts)]


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(recorded: Iterable[Mix]) -> str:
    """The table in Markdown: each mix by each policy."""
    rows = [
        row(mix, policy.name, Simulator(mix, policy).run())
        for mix in recorded
        for policy in POLICIES
    ]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def described(mix: Mix) -> str:
    """A mix in words."""
    loads = ", ".join(f"{name} {load_s:g} s" for name, load_s in mix.load_s.items())
    devices = f"{mix.devices} device{'s' if mix.devices > 1 else ''}"
    return f"- *{mix.name}* ({len(mix.jobs)} jobs, {devices}; loads: {loads}): {mix.about}."


def replaced(page: str, text: str) -> str:
    """A page with another text between the two comments. Raises: ValueError if they are not there."""
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:begin]}\n{text}\n\n{page[end:]}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--print", action="store_true", help="print only, and change no page")
    only_print = options.parse_args().print
    recorded = mixes.recorded()
    text = "\n".join([*map(described, recorded), "", table(recorded)])
    print(text)
    if not only_print:
        PAGE.write_text(replaced(PAGE.read_text(), text))


if __name__ == "__main__":
    main()
