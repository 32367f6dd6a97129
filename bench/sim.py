"""`make sim`: simulates how endpoints share devices by several policies, and writes the table of docs/performance.md."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import mixes
from client import percentile
from policies import POLICIES
from simulator import Mix, Simulator

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- from make sim -->\n", "<!-- end of make sim -->\n"

COLUMNS = ("mix", "policy", "swaps", "mean wait", "p95", "longest", "mean and longest by endpoint")


MEASURED = "OwnPod, measured"
"""In place of a policy: what a real OwnPod did, whose jobs the mix is."""


def row(mix: Mix, policy: str, waited: Sequence[tuple[str, float]], swaps: int) -> list[str]:
    """The cells of one run. ``waited``: the endpoint of each job, and the seconds from its arrival to its start."""
    waits = [wait_s for _, wait_s in waited]
    figures = (_mean(waits), percentile(waits, 95), max(waits))
    by_endpoint = [
        (name, [wait_s for endpoint, wait_s in waited if endpoint == name]) for name in mix.load_s
    ]
    parts = [f"{name} {seconds(_mean(of))}, {seconds(max(of))}" for name, of in by_endpoint]
    return [mix.name, policy, str(swaps), *map(seconds, figures), "; ".join(parts)]


def rows(mix: Mix) -> Iterator[list[str]]:
    """A row for each policy, and one for what was measured, if the mix is recorded."""
    for policy in POLICIES:
        run = Simulator(mix, policy).run()
        waited = [(start.job.endpoint, start.waited_s) for start in run.starts]
        yield row(mix, policy.name, waited, len(run.swaps))
    if mix.swaps is not None:
        endpoints = [job.endpoint for job in mix.jobs]
        yield row(mix, MEASURED, list(zip(endpoints, mix.waits_s, strict=True)), mix.swaps)


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(of: Iterable[Mix]) -> str:
    """The table in Markdown: each mix by each policy."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(line for mix in of for line in rows(mix))]
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
    found = mixes.all_mixes()
    text = "\n".join([*map(described, found), "", table(found)])
    print(text)
    if not only_print:
        PAGE.write_text(replaced(PAGE.read_text(), text))


if __name__ == "__main__":
    main()
