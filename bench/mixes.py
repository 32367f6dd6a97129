"""Mixes of jobs, in `bench/mixes/*.csv`: which jobs came when, for which endpoint, and how long they ran.

No mix comes from a user's machine. Some are the output of one generator below with its seed, written once, so that all
policies and all versions get the same jobs; `python bench/mixes.py` writes them again. The others are recorded from
the job records of a real OwnPod by `record.py`, and have how long each job waited there.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random

from simulator import Job, Mix

PLACE = Path(__file__).with_suffix("")

HOUR_S = 3600.0


def every(random: Random, mean_s: float, until_s: float, from_s: float = 0.0) -> Iterator[float]:
    """Times of independent events (a Poisson process)."""
    at_s = from_s + random.expovariate(1 / mean_s)
    while at_s < until_s:
        yield at_s
        at_s += random.expovariate(1 / mean_s)


def around(random: Random, median_s: float, spread: float = 0.6) -> float:
    """A duration around a median; few are much longer (log-normal)."""
    return max(median_s * random.lognormvariate(0, spread), 0.5)


def office(random: Random) -> Iterator[Job]:
    for begin_s in every(random, 240, 3 * HOUR_S):
        at_s = begin_s
        for _ in range(random.randint(2, 10)):
            duration_s = around(random, 6)
            yield Job(at_s, "chat", duration_s)
            at_s += duration_s + random.expovariate(1 / 25)
    for begin_s in (0.5 * HOUR_S, 1.5 * HOUR_S, 2.4 * HOUR_S):
        for _ in range(40):
            yield Job(begin_s + random.uniform(0, 20), "batch", around(random, 8, 0.2))


def alternating(random: Random) -> Iterator[Job]:
    for at_s in every(random, 60, 2 * HOUR_S):
        text_s = around(random, 4)
        yield Job(at_s, "text", text_s)
        yield Job(at_s + text_s + random.uniform(1, 5), "image", around(random, 10, 0.3))


def burst(random: Random) -> Iterator[Job]:
    for at_s in every(random, 15, 2 * HOUR_S):
        yield Job(at_s, "small", around(random, 3))
    for at_s in every(random, 40, 2 * HOUR_S):
        yield Job(at_s, "voice", around(random, 5))
    for begin_s in (0.3 * HOUR_S, 1.0 * HOUR_S, 1.6 * HOUR_S):
        for _ in range(20):
            yield Job(begin_s + random.uniform(0, 60), "video", around(random, 30, 0.3))


def seldom(random: Random) -> Iterator[Job]:
    for at_s in every(random, 45, 3 * HOUR_S):
        yield Job(at_s, random.choice(("draw", "talk")), around(random, 8))


GENERATED: dict[str, tuple[Callable[[Random], Iterator[Job]], int, dict[str, float], str]] = {
    "office hours": (
        office,
        1,
        {"chat": 12.0, "batch": 20.0},
        (
            "3 hours: every 4 minutes a chat of 2 to 10 messages of some 6 s begins, with pauses of some 25 s; "
            "three times, 40 jobs of some 8 s are submitted as a batch"
        ),
    ),
    "two in turn": (
        alternating,
        1,
        {"text": 8.0, "image": 25.0},
        "2 hours: a request a minute, each a text of some 4 s, then an image of some 10 s",
    ),
    "bursts": (
        burst,
        2,
        {"small": 3.0, "voice": 6.0, "video": 40.0},
        (
            "2 hours: jobs of some 3 s every 15 s and of some 5 s every 40 s; three times, 20 jobs of some 30 s "
            "within a minute"
        ),
    ),
    "now and then": (
        seldom,
        1,
        {"draw": 40.0, "talk": 8.0},
        "3 hours: a job of some 8 s every 45 s, for the one or the other endpoint by chance",
    ),
}
"""By name: the generator, the number of devices, the load times in seconds, and what it is."""


def path(name: str) -> Path:
    return PLACE / f"{name.replace(',', '').replace(' ', '-')}.csv"


def all_mixes() -> list[Mix]:
    """The mixes in the files: the generated ones first."""
    made = [path(name) for name in GENERATED]
    return [*map(read, made), *map(read, sorted(set(PLACE.glob("*.csv")) - set(made)))]


def read(file: Path) -> Mix:
    """A mix of a file: one line of JSON that describes it, a line with the names of the columns, a line for each job."""
    with file.open(newline="") as lines:
        head = json.loads(next(lines))
        rows = list(csv.DictReader(lines))
    jobs = tuple(
        Job(float(row["arrival_s"]), row["endpoint"], float(row["duration_s"])) for row in rows
    )
    waits_s = tuple(float(row["waited_s"]) for row in rows) if "swaps" in head else ()
    about, devices, load_s, swaps = (head.get(k) for k in ("about", "devices", "load_s", "swaps"))
    return Mix(head["name"], about, devices, load_s, jobs, waits_s, swaps)


def file_text(head: Mapping[str, object], jobs: Iterable[tuple[Job, float | None]]) -> str:
    """The content of a mix's file. ``jobs``: with the seconds that each has waited; None: it is not recorded."""
    rows, names = [], "arrival_s,endpoint,duration_s"
    for job, waited_s in jobs:
        row = f"{job.arrival_s:.1f},{job.endpoint},{job.duration_s:.1f}"
        rows.append(row if waited_s is None else f"{row},{waited_s:.1f}")
    columns = f"{names},waited_s" if "swaps" in head else names
    return "\n".join([json.dumps(head), columns, *rows, ""])


def text(name: str) -> str:
    """The content of a generated mix's file. The name is the seed."""
    generate, devices, load_s, about = GENERATED[name]
    head = {"name": name, "about": about, "devices": devices, "load_s": load_s}
    jobs = sorted(generate(Random(name)), key=lambda job: job.arrival_s)
    return file_text(head, ((job, None) for job in jobs))


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    for mix in GENERATED:
        path(mix).write_text(text(mix))
