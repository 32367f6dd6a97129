"""`make bench`: what OwnPod costs, as ratios within one run. Real processes, the real SDK."""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import urllib3

from ownpod.processes import die_with_parent, free_port
from ownpod.pull import worker_environment

HERE = Path(__file__).parent
http = urllib3.PoolManager(maxsize=64, retries=False)


def post(url: str, body: dict) -> dict:
    response = http.request("POST", url, json=body, timeout=120)
    answer = json.loads(response.data)
    if response.status != 200:
        sys.exit(f"{url} answered {response.status}: {answer}")
    return answer


def wait_for(what: str, look: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError, KeyError):
            if look():
                return
        time.sleep(0.01)
    sys.exit(f"{what} did not happen within {seconds:g} s")


@contextlib.contextmanager
def running(workers: int, *, pull: bool) -> Iterator[tuple[str, str]]:
    """OwnPod and its workers; the URLs of the endpoint and of the first worker, if that has one."""
    processes, urls, port = [], [], free_port()
    quiet = {"RUNPOD_DEBUG_LEVEL": "ERROR", "UVICORN_LOG_LEVEL": "error"}
    with tempfile.TemporaryDirectory() as data_dir, Path(data_dir, "log").open("w") as log:

        def start(*command: str, **environ: str) -> None:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    env={**os.environ, **environ},
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,
                )
            )

        try:
            endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
            up = ("-m", "ownpod", "up", "--port", str(port))
            environ = {"OWNPOD_DATA_DIR": data_dir, "REDIS_URL": ""}
            if pull:
                start(*up, **environ, OWNPOD_WORKERS_FILE=str(HERE.parent / "examples/pull.yaml"))
                wait_for("the API", lambda: http.request("GET", f"{endpoint}/health").status == 200)
                for number in range(workers):
                    pulling = worker_environment(endpoint, f"gpu-{number}", key="any")
                    start(str(HERE / "handler.py"), **quiet, **pulling)
            else:
                for _ in range(workers):
                    worker_port = free_port()
                    urls.append(f"http://127.0.0.1:{worker_port}")
                    serve = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port")
                    start(str(HERE / "handler.py"), *serve, str(worker_port), **quiet)
                for url in urls:
                    wait_for(
                        url, lambda url=url: http.request("GET", f"{url}/health").status == 404
                    )
                start(*up, "--workers", ",".join(urls), **environ, OWNPOD_WORKERS_FILE="")
            wait_for("start", lambda: health(endpoint)["workers"]["ready"] == workers)
            yield endpoint, (urls or [""])[0]
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def health(endpoint: str) -> dict:
    return json.loads(http.request("GET", f"{endpoint}/health", timeout=5).data)


def no_ops(endpoint: str, worker: str, count: int) -> dict:
    """A no-op through the worker itself (if it can be asked) and through OwnPod, in turn; ms."""
    direct, through = [], []
    for url, times in ((worker, direct), (endpoint, through)) * count:
        if not url:
            continue
        began = time.perf_counter()
        post(f"{url}/runsync", {"input": {"seconds": 0}})
        times.append((time.perf_counter() - began) * 1000)
    figures = {}
    for name, times in (("worker", direct), ("ownpod", through)):
        if not times:
            continue
        cuts = statistics.quantiles(times[len(times) // 10 :], n=100)
        figures |= {f"{name}_p50": cuts[49], f"{name}_p95": cuts[94], f"{name}_p99": cuts[98]}
    return figures


def drain(endpoint: str, count: int) -> dict:
    """No-op jobs submitted and drained; per second."""
    before = health(endpoint)["jobs"]["completed"]
    body = {"input": {"seconds": 0}}
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: post(f"{endpoint}/run", body), range(count)))
    submitted = time.perf_counter()
    wait_for("the drain", lambda: health(endpoint)["jobs"]["completed"] == before + count)
    return {
        "jobs_per_s": count / (time.perf_counter() - began),
        "submits_per_s": count / (submitted - began),
    }


def against_ideal(endpoint: str, seconds: list[float], workers: int) -> dict:
    """All jobs at once, each waited for, against the sum of their times over the workers."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(seconds)) as pool:
        runs = pool.map(
            lambda s: post(f"{endpoint}/runsync?wait=60000", {"input": {"seconds": s}}), seconds
        )
        if {run["status"] for run in runs} != {"COMPLETED"}:
            sys.exit("not every job COMPLETED")
    took = time.perf_counter() - began
    ideal = sum(seconds) / workers
    return {"took_s": took, "ideal_s": ideal, "share": ideal / took}


def measure(what: str, *, pull: bool, no_op_count: int, drain_count: int) -> dict:
    """All of it, once."""
    workers = 4
    with running(workers, pull=pull) as (endpoint, worker):
        print(f"measuring {what}: no-ops", flush=True)
        one = no_ops(endpoint, worker, no_op_count)
        print(f"measuring {what}: drain", flush=True)
        many = drain(endpoint, drain_count)
        print(f"measuring {what}: equal jobs", flush=True)
        equal = against_ideal(endpoint, [0.25] * 32, workers)
        print(f"measuring {what}: mixed jobs", flush=True)
        mixed = against_ideal(endpoint, [0.02, 0.02, 1.0, 0.02, 0.02] * 16, workers)
    return {"no_ops_ms": one, "drain": many, "equal": equal, "mixed": mixed}


def column(found: dict) -> list[str]:
    """A kind of workers in the table."""
    one, many = found["no_ops_ms"], found["drain"]
    direct = "worker_p50" in one
    return [
        f"{one['worker_p50']:.1f} ms" if direct else "-",
        f"{one['ownpod_p50']:.1f} ms",
        f"{one['ownpod_p95']:.1f} ms",
        f"{one['ownpod_p50'] - one['worker_p50']:.1f} ms" if direct else "-",
        f"{many['jobs_per_s']:.0f} /s",
        f"{many['submits_per_s']:.0f} /s",
        f"{found['equal']['share']:.1%}",
        f"{found['mixed']['share']:.1%}",
    ]


ROWS = (
    ("no-op, worker itself, p50", ""),
    ("no-op through /runsync, p50", ""),
    ("no-op through /runsync, p95", ""),
    ("OwnPod's part, p50", ""),
    ("no-op jobs, 4 workers", "submitted and drained"),
    ("submissions by /run", "while they are drained"),
    ("32 x 0.25 s, 4 workers", "of the ideal 2.00 s"),
    ("80 mixed, 4 workers", "of the ideal 4.32 s"),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = options.parse_args().quick
    found = {
        "push": measure(
            "push", pull=False, no_op_count=60 if quick else 300, drain_count=400 if quick else 2000
        ),
        # The SDK pauses up to a second between jobs in this mode, so fewer will do.
        "pull": measure("pull", pull=True, no_op_count=20, drain_count=40),
    }
    cores = os.cpu_count()
    packages = {name: version(name) for name in ("celery", "kombu", "redis", "runpod", "gunicorn")}
    print(f"\n{cores} cores, Python {platform.python_version()}, {packages}\n")
    print(f"{'':<28} {'push':>10} {'pull':>10}")
    for (name, remark), *figures in zip(ROWS, *map(column, found.values()), strict=True):
        print(f"{name:<28} {figures[0]:>10} {figures[1]:>10}   {remark}".rstrip())
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    said = {"cores": cores, "python": platform.python_version(), "packages": packages} | found
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(said, indent=2))
    print(f"\nwritten to {path.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
