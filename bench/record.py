"""Records mixes of jobs from a real OwnPod. `python bench/record.py` plays parts of the generated mixes, and records those.

Each part is played in real time on an `ownpod up` of its own: real workers of RunPod's SDK on stand-in devices, which sleep for
as long as a model loads, and for as long as a job runs. The recording is what is then in the job records and metrics:
when each job came, how long it ran and waited, how long workers loaded, and the number of swaps.

`python bench/record.py --port 8000 --devices 1 --name mine --about "..." chat image` records the last jobs of two endpoints of
an OwnPod that runs on this host, to `bench/mixes/mine.csv`.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mixes
from client import ask, request
from simulator import Job, Mix
from system import QUIET, OwnPod, processes, wait_for

HANDLER = Path(__file__).parents[1] / "examples" / "sharing" / "handler.py"

PARTS = {"office hours": (5100, 900), "two in turn": (0, 900), "bursts": (1020, 420)}
"""Parts of the generated mixes: from which second on, and for how many seconds jobs come."""

LONGEST_S = 1800
"""Seconds in which all jobs end after the last one has come."""

PAGE = 500

LOADS = re.compile(
    r'^ownpod_cold_start_seconds_(sum|count)\{endpoint="([^"]+)",part="import"\} (\S+)$',
    re.MULTILINE,
)
SWAPS = re.compile(
    r'^ownpod_worker_swaps_total\{endpoint="([^"]+)",for="[^"]+"\} (\S+)$', re.MULTILINE
)


def part_of(mix: Mix, from_s: float, length_s: float) -> Mix:
    """The jobs of a part of a mix; their arrivals are counted from its begin."""
    jobs = [job for job in mix.jobs if from_s <= job.arrival_s < from_s + length_s]
    return replace(mix, jobs=tuple(replace(job, arrival_s=job.arrival_s - from_s) for job in jobs))


def play(part: Mix, name: str, about: str) -> str:
    """Plays jobs in real time on a real OwnPod, and returns the content of a mix's file."""
    template = {"command": [sys.executable, str(HANDLER)]}
    endpoints = {
        endpoint: {
            "template": template | {"env": QUIET | {"LOAD_S": str(load_s)}},
            "gpu": {"count": 1},
            "workersMax": 1,
            "idleTimeout": 3600,
        }
        for endpoint, load_s in part.load_s.items()
    }
    with processes() as group:
        system = OwnPod(group, [], [], managed=endpoints, OWNPOD_DEVICES=f"cpu:{part.devices}")
        began = time.monotonic()
        for job in part.jobs:
            time.sleep(max(began + job.arrival_s - time.monotonic(), 0))
            system.post("/run", {"input": {"seconds": job.duration_s}}, job.endpoint)

        def ended() -> bool:
            jobs = [system.health(endpoint)["jobs"] for endpoint in endpoints]
            return not any(found["inQueue"] or found["inProgress"] for found in jobs)

        wait_for("the end of all jobs", ended, LONGEST_S)
        return recorded(system.port, part.load_s, name, about, part.devices)


def recorded(port: int, endpoints: Iterable[str], name: str, about: str, devices: int) -> str:
    """The content of a mix's file, from the job records and the metrics of a running OwnPod."""
    metrics = ask(port, request("GET", "/metrics")).body.decode()
    loads = {(part, of): float(value) for part, of, value in LOADS.findall(metrics)}
    names = list(endpoints)
    rows = sorted(row for endpoint in names for row in _rows(port, endpoint))
    if not rows:
        raise ValueError("the endpoints have no COMPLETED jobs")
    head = {
        "name": name,
        "about": about,
        "devices": devices,
        "load_s": {
            of: round(loads["sum", of] / loads["count", of], 1) if loads.get(("count", of)) else 0.0
            for of in names
        },
        "swaps": int(sum(float(value) for of, value in SWAPS.findall(metrics) if of in names)),
    }
    return mixes.file_text(
        head,
        [
            (Job((created_ms - rows[0][0]) / 1000, endpoint, run_ms / 1000), waited_ms / 1000)
            for created_ms, endpoint, run_ms, waited_ms in rows
        ],
    )


def _rows(port: int, endpoint: str) -> Iterator[tuple[int, str, int, int]]:
    """Times in ms of the COMPLETED jobs in the records of an endpoint: creation, run, wait."""
    place = ""
    while place is not None:
        path = f"/v2/{endpoint}/requests?status=COMPLETED&limit={PAGE}"
        page = ask(port, request("GET", path + (f"&before={place}" if place else ""))).json()
        for job in page["requests"]:
            yield job["createdAt"], endpoint, job["executionTime"], job["delayTime"]
        place = page["next"]


def _parts() -> Iterator[tuple[str, str, Mix]]:
    """The name of each recording, what it is, and what is played for it."""
    for name, (from_s, length_s) in PARTS.items():
        part = part_of(mixes.read(mixes.path(name)), from_s, length_s)
        about = f"{length_s / 60:g} minutes of *{name}*, played on a real OwnPod"
        yield f"{name}, recorded", about, part


def _write(name: str, text: str) -> None:
    mixes.path(name).write_text(text)
    print(f"{mixes.path(name)}: {len(mixes.read(mixes.path(name)).jobs)} jobs")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, help="of a running OwnPod; default: play and record")
    options.add_argument("--devices", type=int, default=1, help="that the endpoints share there")
    options.add_argument("--name", default="mine", help="of the mix")
    options.add_argument("--about", default="jobs of a running OwnPod", help="what the mix is")
    options.add_argument("endpoints", nargs="*", help="of the running OwnPod")
    chosen = options.parse_args()
    if chosen.port:
        if not chosen.endpoints:
            options.error("name the endpoints that are recorded")
        values = (chosen.endpoints, chosen.name, chosen.about, chosen.devices)
        _write(chosen.name, recorded(chosen.port, *values))
        return
    parts = list(_parts())
    with ThreadPoolExecutor(len(parts)) as pool:
        texts = pool.map(lambda found: play(found[2], found[0], found[1]), parts)
        for (name, _, _), text in zip(parts, texts, strict=True):
            _write(name, text)


if __name__ == "__main__":
    main()
