"""The report: the rows and their aims, the table, and the plot."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PERCENTILES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Row:
    """A figure of a measure. ``spread``: it has p50, p95 and p99, and the aim is for ``figure``."""

    measure: str
    figure: str
    what: str
    unit: str
    aim: float | None = None
    below: bool = True
    """Whether the aim is an upper bound. False for figures of which more is better, like rates."""
    spread: str = ""

    def value(self, found: dict) -> float | None:
        """The figure in a result; None: it was not measured."""
        return found["measures"].get(self.measure, {}).get(self.figure)

    def reached(self, found: dict) -> bool | None:
        """Whether the figure reaches the aim; None: there is no aim, or no figure."""
        value = self.value(found)
        if self.aim is None or value is None:
            return None
        return value < self.aim if self.below else value > self.aim


ROWS = (
    Row("no_op", "worker_ms_p50", "a no-op, the worker itself", "ms", spread="worker_ms"),
    Row("no_op", "ownpod_ms_p50", "a no-op through /runsync", "ms", spread="ownpod_ms"),
    Row("no_op", "part_ms", "OwnPod's part of it", "ms", 3),
    Row("drain", "jobs_per_s", "no-ops, submitted and drained", "/s", 500, below=False),
    Row("drain", "submits_per_s", "submissions meanwhile", "/s"),
    Row("submissions", "per_s", "/run, one API process", "/s", 1000, below=False),
    Row("submissions", "ms_p50", "its latency, 4 clients", "ms", spread="ms"),
    Row("clients", "jobs_per_s", "16 clients in /runsync", "/s", 500, below=False),
    Row("clients", "ms_p50", "their latency", "ms", spread="ms"),
    Row("equal", "percent", "32 x 0.25 s, of the ideal", "%", 99, below=False),
    Row("mixed", "percent", "80 mixed, of the ideal", "%", 97, below=False),
    Row("way", "ms_p99", "worker's end to waiting client", "ms", 10, spread="ms"),
    Row("waiting", "answered", "answered of 2,000 that wait", "", 1999, below=False),
    Row("waiting", "errors", "errors, or no answer in 60 s", ""),
    Row("waiting", "waiting", "their jobs in the queue at once", "", below=False),
    Row("waiting", "health_ms_p99", "/v2/<id>/health meanwhile", "ms", 100, spread="health_ms"),
    Row("waiting", "alive_ms_p99", "/health meanwhile", "ms", 100, spread="alive_ms"),
    Row("waiting", "purge_to_last_s", "from purge to the last answer", "s"),
    Row("waiting", "api_pss_mb", "memory of the API's processes", "MB"),
    Row("nodes", "ready_s", "100 workers ready", "s"),
    Row("nodes", "node_pss_mb", "memory of each node", "MB", 20),
    Row("nodes", "node_cpu_percent", "CPU of each node at rest", "%", 0.1),
    Row("nodes", "redis_cpu_percent", "Redis's CPU", "%"),
    Row("nodes", "dispatch_cpu_percent", "the dispatcher's CPU", "%"),
    Row("nodes", "api_cpu_percent", "the API's CPU", "%"),
    Row("queued", "jobs", "jobs that wait", ""),
    Row("queued", "submits_per_s_few", "/run with few of them", "/s"),
    Row("queued", "submits_per_s_many", "/run with all of them", "/s"),
    Row("queued", "submits_per_s_slower_percent", "/run slower with all by", "%", 20),
    Row("queued", "status_ms_few", "/status with few, p50", "ms"),
    Row("queued", "status_ms_many", "/status with all, p50", "ms"),
    Row("queued", "status_ms_slower_percent", "/status slower with all by", "%", 20),
    Row("queued", "health_ms_few", "/health with few, p50", "ms"),
    Row("queued", "health_ms_many", "/health with all, p50", "ms"),
    Row("queued", "health_ms_slower_percent", "/health slower with all by", "%", 20),
    Row("queued", "dispatch_per_s_few", "dispatch with few", "/s"),
    Row("queued", "dispatch_per_s_many", "dispatch with all", "/s"),
    Row("queued", "dispatch_per_s_slower_percent", "dispatch slower with all by", "%", 20),
    Row("queued", "redis_kb", "Redis memory of a job", "KB", 2),
    Row("payload", "copy_ms", "10 MB there and back, plain", "ms"),
    Row("payload", "worker_ms", "by the worker itself", "ms"),
    Row("payload", "ownpod_ms", "by OwnPod", "ms"),
    Row("payload", "total_x", "OwnPod, of the plain copy", "x", 10),
    Row("payload", "part_x", "above the worker, of the copy", "x"),
    Row("payload", "api_peak_mb", "peak of an API process", "MB", 150),
    Row("payload", "node_peak_mb", "peak of a node", "MB", 150),
    Row("growth", "jobs_per_s", "50 workers, jobs of 0.25 s", "/s"),
    Row("growth", "percent", "of the ideal", "%", below=False),
    Row("growth", "node_percent", "CPU of all nodes", "%"),
    Row("growth", "redis_percent", "CPU of Redis", "%"),
    Row("pull", "ms_p50", "pull: a no-op through /runsync", "ms", spread="ms"),
    Row("pull", "jobs_per_s", "pull: no-ops", "/s"),
    Row("pull", "equal_percent", "pull: 32 x 0.25 s, of the ideal", "%", below=False),
    Row("pull", "mixed_percent", "pull: 80 mixed, of the ideal", "%", below=False),
    Row("cold", "start_ms_p50", "cold: a job to its engine's start", "ms", 300, spread="start_ms"),
    Row("cold", "take_ms_p50", "cold: job-take to the delivery", "ms", 50, spread="take_ms"),
    Row("cold", "handler_ms_p50", "cold: delivery to the handler", "ms", spread="handler_ms"),
    Row("cold", "whole_ms_p50", "cold: all, with the SDK's imports", "ms", spread="whole_ms"),
    Row("warm", "pull_ms_p50", "a no-op on a pull worker", "ms", spread="pull_ms"),
    Row("warm", "managed_ms_p50", "a no-op on a managed worker", "ms", spread="managed_ms"),
    Row("warm", "slower_percent", "of a managed worker, slower by", "%", 20),
    Row("rest", "share_percent", "CPU of the agent at rest", "%", 0.5),
    Row("rest", "pss_mb", "memory of the agent", "MB", 40),
    Row("placed", "s", "1,000 workers on 100 hosts", "s", 10),
    Row("placed", "steps_ms_p50", "a turn of one of their agents", "ms", spread="steps_ms"),
    Row("decision", "ms_few", "a scaler's decision", "ms"),
    Row("decision", "ms_many", "with 10,000 finished jobs", "ms"),
    Row("decision", "slower_percent", "a decision slower with them by", "%", 20),
    Row("session", "pull_ms_p50", "a no-op on a pull worker", "ms", spread="pull_ms"),
    Row("session", "session_ms_p50", "a no-op on a warm session", "ms", spread="session_ms"),
    Row("session", "more_ms", "of the session, more by", "ms", 1),
    Row("session", "first_ms_p50", "first byte of a task's stream", "ms", 20, spread="first_ms"),
    Row("session", "task_ms_p50", "to its task_finish", "ms", spread="task_ms"),
    Row("streams", "open", "event streams, one API process", "", 499, below=False),
    Row("streams", "ended", "of them had their task_finish", "", 499, below=False),
    Row("streams", "last_ms", "the last of them after", "ms"),
    Row("streams", "kb", "memory of an open stream", "KB"),
    Row("streams", "share_percent", "CPU of the API with all of them", "%"),
    Row("streams", "health_ms_p99", "/v2/<id>/health meanwhile", "ms", 100, spread="health_ms"),
    Row(
        "openai",
        "openai_first_ms_p50",
        "OpenAI: the first chunk's way",
        "ms",
        5,
        spread="openai_first_ms",
    ),
    Row(
        "openai",
        "events_first_ms_p50",
        "the same by /stream's events",
        "ms",
        spread="events_first_ms",
    ),
    Row("openai", "openai_ms_p50", "OpenAI: a later chunk's way", "ms", spread="openai_ms"),
    Row("openai", "events_ms_p50", "the same by /stream's events", "ms", spread="events_ms"),
    Row("openai", "ratio", "OpenAI, of /stream's events", "x"),
    Row(
        "openai",
        "openai_whole_ms_p50",
        "OpenAI: request to first chunk",
        "ms",
        spread="openai_whole_ms",
    ),
    Row(
        "openai",
        "events_whole_ms_p50",
        "the same by /run and /stream",
        "ms",
        spread="events_whole_ms",
    ),
    Row("openai_streams", "openai_open", "OpenAI: streams, one API process", "", 199, below=False),
    Row(
        "openai_streams",
        "openai_ms_p99",
        "OpenAI: a chunk's way, of 200",
        "ms",
        10,
        spread="openai_ms",
    ),
    Row(
        "openai_streams", "events_ms_p99", "the same by /stream's events", "ms", spread="events_ms"
    ),
    Row("openai_streams", "ratio", "p99, of /stream's events", "x"),
    Row("openai_streams", "openai_api_ms", "OpenAI: CPU of the API, a chunk", "ms"),
    Row("openai_streams", "events_api_ms", "the same by /stream's events", "ms"),
    Row("openai_streams", "api_ratio", "its ratio", "x"),
    Row("openai_streams", "openai_redis_ms", "OpenAI: CPU of Redis, a chunk", "ms"),
    Row("openai_streams", "events_redis_ms", "the same by /stream's events", "ms"),
    Row("openai_streams", "openai_per_s", "OpenAI: chunks, one API process", "/s", below=False),
    Row("openai_streams", "events_per_s", "the same by /stream's events", "/s", below=False),
    Row("lb", "worker_ms_p50", "LB: a no-op, the worker itself", "ms", spread="worker_ms"),
    Row("lb", "ownpod_ms_p50", "LB: through OwnPod's front", "ms", spread="ownpod_ms"),
    Row("lb", "haproxy_ms_p50", "LB: through bare HAProxy", "ms", spread="haproxy_ms"),
    Row("lb", "nginx_ms_p50", "LB: through nginx", "ms", spread="nginx_ms"),
    Row("lb", "caddy_ms_p50", "LB: through Caddy", "ms", spread="caddy_ms"),
    Row("lb", "ownpod_added_ms", "LB: added by OwnPod, p50", "ms", 0.4),
    Row("lb", "haproxy_added_ms", "LB: added by bare HAProxy", "ms"),
    Row("lb", "worker_per_s", "LB: 16 clients, one worker itself", "/s"),
    Row("lb", "ownpod_per_s", "LB: 16 clients, OwnPod", "/s", 10_000, below=False),
    Row("lb", "haproxy_per_s", "LB: 16 clients, bare HAProxy", "/s"),
    Row("lb", "nginx_per_s", "LB: 16 clients, nginx", "/s"),
    Row("lb", "caddy_per_s", "LB: 16 clients, Caddy", "/s"),
    Row("lb", "ratio", "LB: OwnPod, of bare HAProxy", "x"),
    Row("lb_queue", "equal_percent", "LB: 32 x 0.25 s, capacity 1", "%", 98.5, below=False),
    Row("lb_queue", "mixed_percent", "LB: 80 mixed, capacity 1", "%", 95, below=False),
    Row("lb_stream", "worker_ms_p50", "LB: an event's way, worker", "ms", spread="worker_ms"),
    Row("lb_stream", "ownpod_ms_p50", "LB: an event's way, OwnPod", "ms", 2, spread="ownpod_ms"),
    Row("lb_sockets", "open", "LB: WebSockets at once", "", below=False),
    Row("lb_sockets", "broken", "LB: WebSockets that failed", "", 1),
    Row("lb_sockets", "kb", "LB: memory of an idle WebSocket", "KB", 10),
    Row("lb_api", "direct_ms_p50", "the API's /health itself", "ms", spread="direct_ms"),
    Row("lb_api", "front_ms_p50", "the API's /health by the front", "ms", spread="front_ms"),
    Row("lb_api", "added_ms", "added by the front", "ms", 0.2),
    Row("calibration", "loop_ms", "calibration: a loop in Python", "ms"),
    Row("calibration", "http_ms", "calibration: an HTTP call", "ms"),
)


def number(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_unit(value: float | None, unit: str) -> str:
    return number(value) if value is None else f"{number(value)} {unit}".rstrip()


def table(found: dict) -> list[str]:
    """The lines of the whole report."""
    machine = found["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    head = [
        f"{machine['cores']} cores, {machine['cpu']}, Python {machine['python']}, {packages}",
        "",
        f"{'':<33}{'':>10}{'p50':>9}{'p95':>9}{'p99':>9}   {'aim':<11}reached",
    ]
    failed = [
        f"{name}: FAILED: {figures['failed']}"
        for name, figures in found["measures"].items()
        if "failed" in figures
    ]
    return [*head, *_lines(found), "", *_cpu_lines(found), *failed]


def _lines(found: dict) -> Iterator[str]:
    before = ""
    for row in ROWS:
        figures = found["measures"].get(row.measure)
        if figures is None:
            continue
        if row.measure != before:
            before = row.measure
            yield from [f"{row.measure}: FAILED"] if "failed" in figures else []
        if row.value(found) is not None:
            yield _line(row, found, figures)


def _line(row: Row, found: dict, figures: dict) -> str:
    cells = [figures.get(f"{row.spread}_{name}") if row.spread else None for name in PERCENTILES]
    shown = "".join(f"{number(cell) if row.spread else '':>9}" for cell in cells)
    value = f"({row.unit})" if row.spread else with_unit(row.value(found), row.unit)
    return f"{row.what:<33}{value:>10}{shown}   {_aim(row):<11}{_reached(row, found)}".rstrip()


def _aim(row: Row) -> str:
    if row.aim is None:
        return ""
    return f"{'<' if row.below else '>'} {with_unit(row.aim, row.unit)}"


def _reached(row: Row, found: dict) -> str:
    return {True: "yes", False: "NO", None: ""}[row.reached(found)]


def _cpu_lines(found: dict) -> list[str]:
    """Lines with the CPU time of each job by kind of process, of the measures that have it."""
    lines = []
    for name, figures in found["measures"].items():
        used = {k[4:-3]: v for k, v in figures.items() if k.startswith("cpu_")}
        if used:
            kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in used.items())
            lines.append(f"{name}: CPU in ms for each job: {kinds}, all {sum(used.values()):.2f}")
    return [*lines, ""] if lines else []


def shares(found: dict) -> list[tuple[str, float]]:
    """For each row with an aim: a label, and the reached share of the aim, which is 1 or more if the aim is reached."""
    rows = []
    for row in ROWS:
        value = row.value(found)
        if row.aim is None or value is None:
            continue
        part, whole = (row.aim, value) if row.below else (value, row.aim)
        label = f"{row.measure}: {row.what} {with_unit(value, row.unit)} ({_aim(row)})"
        # A slow-down of zero or less reaches every aim, and cannot be a divisor.
        rows.append((label, part / whole if whole > 0 else 10.0))
    return rows


def plot(found: dict, path: Path) -> bool:
    """Draws the plot; False: matplotlib is not installed, or no row has an aim."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    from matplotlib import pyplot as plt

    rows = shares(found)[::-1]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(11, 1 + 0.32 * len(rows)))
    colours = ["#2a7f4f" if share >= 1 else "#c0392b" for _, share in rows]
    axes.barh([label for label, _ in rows], [min(share, 3) for _, share in rows], color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, 3)
    axes.set_xlabel("so much of its aim is reached (1: the aim; 3: three times as good, or more)")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return True
