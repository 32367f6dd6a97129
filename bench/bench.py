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
def running(workers: int) -> Iterator[tuple[str, str]]:
    """OwnPod and its workers; the URLs of the endpoint and of the first worker."""
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
            for _ in range(workers):
                worker_port = free_port()
                urls.append(f"http://127.0.0.1:{worker_port}")
                serve = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port")
                start(str(HERE / "handler.py"), *serve, str(worker_port), **quiet)
            for url in urls:
                wait_for(url, lambda url=url: http.request("GET", f"{url}/health").status == 404)
            start(
                *("-m", "ownpod", "up", "--port", str(port), "--workers", ",".join(urls)),
                OWNPOD_DATA_DIR=data_dir,
                OWNPOD_WORKERS_FILE="",
                REDIS_URL="",
            )
            endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
            wait_for("start", lambda: health(endpoint)["workers"]["ready"] == workers)
            yield endpoint, urls[0]
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def health(endpoint: str) -> dict:
    return json.loads(http.request("GET", f"{endpoint}/health", timeout=5).data)


def no_ops(endpoint: str, worker: str, count: int) -> dict:
    """A no-op through the worker itself and through OwnPod, in turn; ms."""
    direct, through = [], []
    for url, times in ((worker, direct), (endpoint, through)) * count:
        began = time.perf_counter()
        post(f"{url}/runsync", {"input": {"seconds": 0}})
        times.append((time.perf_counter() - began) * 1000)
    figures = {}
    for name, times in (("worker", direct), ("ownpod", through)):
        cuts = statistics.quantiles(times[10:], n=100)
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = options.parse_args().quick
    workers = 4
    with running(workers) as (endpoint, worker):
        print("measuring: no-ops", flush=True)
        one = no_ops(endpoint, worker, 60 if quick else 300)
        print("measuring: drain", flush=True)
        many = drain(endpoint, 400 if quick else 2000)
        print("measuring: equal jobs", flush=True)
        equal = against_ideal(endpoint, [0.25] * 32, workers)
        print("measuring: mixed jobs", flush=True)
        mixed = against_ideal(endpoint, [0.02, 0.02, 1.0, 0.02, 0.02] * 16, workers)
    cores = os.cpu_count()
    packages = {name: version(name) for name in ("celery", "kombu", "redis", "runpod", "gunicorn")}
    rows = [
        ("no-op, worker itself", f"{one['worker_p50']:.1f} ms", f"p95 {one['worker_p95']:.1f} ms"),
        (
            "no-op through /runsync",
            f"{one['ownpod_p50']:.1f} ms",
            f"p95 {one['ownpod_p95']:.1f} ms",
        ),
        (
            "OwnPod's part",
            f"{one['ownpod_p50'] - one['worker_p50']:.1f} ms",
            f"p95 {one['ownpod_p95'] - one['worker_p95']:.1f} ms",
        ),
        ("no-op jobs, 4 workers", f"{many['jobs_per_s']:.0f} /s", "submitted and drained"),
        ("submissions by /run", f"{many['submits_per_s']:.0f} /s", "while they are drained"),
        (
            "32 x 0.25 s, 4 workers",
            f"{equal['share']:.1%}",
            f"of the ideal {equal['ideal_s']:.2f} s",
        ),
        ("80 mixed, 4 workers", f"{mixed['share']:.1%}", f"of the ideal {mixed['ideal_s']:.2f} s"),
    ]
    print(f"\n{cores} cores, Python {platform.python_version()}, {packages}\n")
    for name, figure, remark in rows:
        print(f"{name:<24} {figure:>10}   {remark}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    found = {"cores": cores, "python": platform.python_version(), "packages": packages}
    found |= {"no_ops_ms": one, "drain": many, "equal": equal, "mixed": mixed}
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(found, indent=2))
    print(f"\nwritten to {path.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
