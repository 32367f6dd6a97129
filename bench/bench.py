"""`make bench`: measures OwnPod with real processes and the real SDK. Only figures of one run can be compared."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import balanced
import extremes
import growth
import managed
import measures
import openai_routes
import report
import sessions
from system import Stage, exit_at_signals, processes

from ownpod.onehost.embedded import find_server

HERE = Path(__file__).parent
SHARED: dict[str, Callable] = {
    "no_op": measures.no_op,
    "drain": measures.drain,
    "clients": measures.clients,
    "equal": measures.equal,
    "mixed": measures.mixed,
    "way": measures.way,
}
"""Measures that share one system, and run one after the other."""

ALONE: dict[str, Callable] = {
    "submissions": measures.submissions,
    "waiting": extremes.waiting,
    "nodes": extremes.nodes,
    "queued": extremes.queued,
    "payload": extremes.payload,
    "growth": growth.growth,
    "pull": measures.pull,
    "cold": managed.cold,
    "warm": managed.warm,
    "rest": managed.rest,
    "placed": managed.placed,
    "decision": managed.decision,
    "session": sessions.session,
    "streams": sessions.streams,
    "openai": openai_routes.openai,
    "openai_streams": openai_routes.openai_streams,
    "lb": balanced.lb,
    "lb_queue": balanced.lb_queue,
    "lb_stream": balanced.lb_stream,
    "lb_sockets": balanced.lb_sockets,
    "lb_api": balanced.lb_api,
}
"""Measures that each start a new system."""

MEASURES = SHARED | ALONE
PACKAGES = ("celery", "kombu", "redis", "runpod", "gunicorn", "flask")


def machine() -> dict:
    """The host, and the versions of packages."""
    server = subprocess.run(
        [find_server(), "--version"], capture_output=True, text=True, check=True
    )
    packages = {name: version(name) for name in PACKAGES}
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "packages": packages | {"redis-server": server.stdout.partition("v=")[2].split()[0]},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def run(names: list[str], *, quick: bool) -> dict:
    """The figures of each measure, or the reason of its failure."""
    measured, stage = {}, Stage()
    try:
        for place, name in enumerate(names, 1):
            if name in ALONE:
                stage.close()
            print(f"measuring {name} ... {place}/{len(names)}", flush=True)
            measured[name] = measure(name, stage, quick=quick)
    finally:
        stage.close()
    return measured


def measure(name: str, stage: Stage, *, quick: bool) -> dict:
    """The figures of one measure; ``failed`` has the reason of a failure."""
    began = time.monotonic()
    try:
        figures = MEASURES[name](stage, quick=quick)
    except Exception as error:  # noqa: BLE001 - the others are measured all the same
        stage.close()
        failure = f"{type(error).__name__}: {error}"
        print(f"  failed: {failure}", flush=True)
        return {"failed": failure}
    return {**figures, "took_to_measure_s": time.monotonic() - began}


def calibrate() -> dict:
    with processes() as group:
        return measures.calibrate(group)


def write(result: dict) -> None:
    """Writes the result to a file, and a plot beside it."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=2))
    print(f"written to {path}")
    picture = path.with_suffix(".svg")
    drawn = report.plot(result, picture)
    print(f"plot: {picture}" if drawn else "no plot: no matplotlib, or no row with an aim")


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer repetitions, about 2 minutes")
    options.add_argument("--only", metavar="NAME[,NAME]", help="only these measures")
    options.add_argument("--list", action="store_true", help="the measures' names")
    return options.parse_args()


def main() -> None:
    options = parse()
    if options.list:
        print("\n".join(f"{name:<14} {what.__doc__}" for name, what in MEASURES.items()))
        return
    names = options.only.split(",") if options.only else list(MEASURES)
    if unknown := [name for name in names if name not in MEASURES]:
        sys.exit(f"no measure {unknown[0]!r}; there are {', '.join(MEASURES)}")
    exit_at_signals()
    began = time.monotonic()
    before = calibrate()
    measured = run(names, quick=options.quick)
    after = calibrate()
    measured["calibration"] = {name: (before[name] + after[name]) / 2 for name in before}
    took = time.monotonic() - began
    result = {"machine": machine(), "quick": options.quick, "took_s": took, "measures": measured}
    result["calibrations"] = [before, after]
    print("\n" + "\n".join([*report.table(result), *growth.lines(measured), ""]))
    print(f"took {took:.0f} s{', quick' if options.quick else ''}")
    write(result)
    sys.exit(any("failed" in figures for figures in measured.values()))


if __name__ == "__main__":
    main()
