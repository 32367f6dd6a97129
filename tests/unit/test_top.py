"""The numbers and the screen of ``ownpod top``."""

import io

from rich.console import Console

from ownpod.tools.health import counts_text, healthy_workers
from ownpod.tools.top import Poller, screen

JOBS = {"completed": 3, "failed": 1, "inProgress": 1, "inQueue": 2}
COUNTS = {"ready": 1, "running": 1}
WORKER = {"id": "w1", "state": "ready", "running": 1, "held": 0, "capacity": 2, "jobs": ["j"]}
STARTING = {
    "id": "aaaaaaaaaaaaaa",
    "phase": "preparing",
    "reason": "is prepared: image pull 43 %",
    "host": "alpha",
    "devices": ["GPU-1"],
    "createdAt": 1000,
    "startedAt": None,
    "readyAt": None,
}
FAILURES = {
    "unhealthy": True,
    "count": 5,
    "pauseSeconds": 16,
    "worker": "bbbbbbbbbbbbbb",
    "reason": "it ended by itself",
    "exitCode": 3,
    "log": [f"line {n}" for n in range(50)],
}
DEVICE = {
    "id": "GPU-1",
    "index": 0,
    "name": "NVIDIA GeForce RTX 4090",
    "memoryMb": 24_576,
    "metrics": {"memory_used_mb": 1024, "utilization_percent": 37.0},
    "state": "busy",
    "workers": ["aaaaaaaaaaaaaa"],
    "reason": "",
}
HOST = {
    "host": "alpha",
    "state": "ready",
    "engine": "docker",
    "devices": [DEVICE],
    "workers": 1,
    "silentSeconds": 0.7,
    "problem": "",
}


class OneEndpoint:
    """A client whose endpoint has ended some jobs."""

    def __init__(self):
        self.endpoint = ""
        self.completed = 100

    def endpoints(self):
        return ["ep"]

    def call(self, method, path):
        assert (method, path, self.endpoint) == ("GET", "/health", "ep")
        return {"jobs": {"completed": self.completed, "failed": 1}}


def test_the_rate_counts_jobs_that_ended_since_the_poll_before():
    client = OneEndpoint()
    poller = Poller(client)
    assert poller.poll()["ep"]["perSecond"] == 0
    client.completed += 3
    assert poller.poll()["ep"]["perSecond"] > 0
    assert poller.poll()["ep"]["perSecond"] == 0


def health(workers=(), failures=None):
    return {
        "jobs": JOBS,
        "workers": COUNTS,
        "perSecond": 0.5,
        "ownpod": {
            "workers": [WORKER | {"reason": ""}],
            "managed": {"workers": list(workers), "failures": failures},
        },
    }


def lines(endpoints, hosts=(), width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(endpoints, list(hosts)))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_hosts_devices_and_managed_workers_are_shown_with_phase_and_reason():
    found = lines({"ep": health([STARTING], FAILURES)}, [HOST])
    (managed,) = (line for line in found if "preparing" in line)
    assert managed.split()[:3] == ["ep", "aaaaaaaaaaaaaa", "preparing"]
    assert "alpha/GPU-1" in managed
    assert managed.endswith("image pull 43 %")
    (device,) = (line for line in found if "RTX" in line)
    assert "1 of 24 GB" in device
    assert "37 %" in device
    assert device.endswith("aaaaaaaaaaaaaa")
    (host,) = (line for line in found if "docker" in line)
    assert host.split()[:3] == ["alpha", "ready", "docker"]
    assert "0 of 1" in host
    (why,) = (line for line in found if line.startswith("ep: "))
    assert "the last 5 starts in a row have failed: it ended by itself, exit code 3" in why
    assert found[-1] == "  line 49"


def test_a_value_begins_below_its_column_on_a_narrow_screen_too():
    many = [STARTING | {"id": letter * 14} for letter in "abcdef"]
    for width in (100, 160):
        found = lines({"ep": health(many)}, width=width)
        head = next(line for line in found if "PHASE" in line)
        for worker in many:
            (row,) = (line for line in found if worker["id"] in line)
            assert row.index("preparing") == head.index("PHASE")
            assert row.index("alpha") == head.index("DEVICES")


def test_without_managed_workers_and_hosts_their_tables_are_left_out():
    text = "\n".join(lines({"ep": health()}))
    assert "PHASE" not in text
    assert "HOST" not in text


def test_an_older_api_has_no_managed_workers():
    old = health()
    del old["ownpod"]["managed"]
    assert any("w1" in line for line in lines({"ep": old}))


SERVER = WORKER | {"capacity": None, "jobs": [], "reason": "", "open": 1, "waiting": 0, "total": 9}
FRONT = {"alive": 1, "problem": None, "open": 4, "waiting": 3, "total": 90}


def balanced(*workers, **front):
    return {
        "jobs": {"completed": 0, "failed": 0, "inProgress": 4, "inQueue": 3},
        "workers": COUNTS,
        "perSecond": 12.5,
        "ownpod": {
            "type": "LB",
            "front": FRONT | front,
            "workers": list(workers),
            "managed": {"workers": [], "failures": None},
        },
    }


def test_a_load_balanced_endpoint_shows_requests_and_any_capacity():
    refused = SERVER | {"id": "w2", "state": "unhealthy", "reason": "nothing listens", "running": 0}
    found = lines({"web": balanced(SERVER, refused), "ep": health()})
    rows = [line.split() for line in found]
    assert ["web", "LB", "3", "4", "12.5", "1/2"] in rows
    assert ["ep", "QB", "2", "1", "0.5", "3", "1", "1/1"] in rows
    assert ["web", "w1", "ready", "1/any"] in rows
    assert ["web", "w2", "unhealthy", "0/any", "nothing", "listens"] in rows


def test_an_endpoint_without_a_front_states_that():
    found = lines({"web": balanced(SERVER, alive=0, problem="no front runs: see ownpod doctor")})
    assert found[-1] == "web: no front runs: see ownpod doctor"


class Requests:
    """A client of a load-balanced endpoint."""

    def __init__(self):
        self.endpoint, self.total = "", 5

    def endpoints(self):
        return ["web"]

    def call(self, method, path):
        assert (method, path) == ("GET", "/health")
        return balanced(total=self.total)


def test_the_rate_of_a_load_balanced_endpoint_counts_requests_and_is_never_negative():
    client = Requests()
    poller = Poller(client)
    poller.poll()
    client.total += 3
    assert poller.poll()["web"]["perSecond"] > 0
    # A front has ended.
    client.total = 1
    assert poller.poll()["web"]["perSecond"] == 0


def test_health_counts_a_busy_worker_once():
    assert healthy_workers(health()) == 1
    assert healthy_workers(balanced(SERVER | {"state": "initializing"})) == 0
    assert counts_text(balanced()) == "waiting 3, open 4, total 90"
    assert counts_text(health()) == "completed 3, failed 1, inProgress 1, inQueue 2"
