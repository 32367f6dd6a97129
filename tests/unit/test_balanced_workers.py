"""Managed workers of load-balanced endpoints: what their releases, ports, records and requests mean."""

from dataclasses import replace

import pytest

from ownpod.agent.container_options import address_of, labels_of, options
from ownpod.agent.engine import Launch, Started
from ownpod.agent.images import Image
from ownpod.agent.ports import ports_for
from ownpod.configuration import make_endpoint
from ownpod.rules.balancing import Balancing, RouteReading, ServerReading
from ownpod.rules.endpoints import WorkerKind
from ownpod.rules.fleet import Entries, merge
from ownpod.rules.loads import JobsView
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.rules.releases import Release, changed, effective, recorded
from ownpod.rules.templates import ManagedSpec, Protocol, Template, spec_in, spec_text
from ownpod.store.loads import MOST_WISHES, with_requests

LB = {"type": "LB", "template": {"command": ["w"]}}
W = "a" * 14


def spec(**balancing):
    template = Template(command=("w",), protocol=Protocol.HTTP, init_timeout_s=480)
    return ManagedSpec(template, balancing=Balancing(**balancing))


# The release.


def test_the_spec_of_an_endpoint_has_what_its_workers_notice():
    managed = make_endpoint("ep", {**LB, "port": 8000, "healthPath": "/up"}).managed
    assert (managed.balancing.port, managed.balancing.health_path) == (8000, "/up")
    assert managed.template.init_timeout_s == 480
    assert make_endpoint("q", {"template": {"command": ["w"]}}).managed.balancing is None


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({"port": 81}, False),
        ({"health_port": 81}, False),
        ({"health_path": "/up"}, False),
        ({"capacity": 1, "hold_s": 9, "limit_s": 9, "body_mb": 9}, True),
    ],
)
def test_what_a_worker_notices_makes_a_release_and_the_rest_does_not(values, same):
    assert (spec(**values).release == spec().release) is same


def test_releases_that_were_made_before_there_were_load_balanced_endpoints_keep_their_names():
    assert ManagedSpec(Template(image="i:1")).release == "feac36788076"


def test_a_release_keeps_its_ports_while_the_endpoint_has_others():
    old, now = spec(port=8000, capacity=4), spec(port=9000, capacity=8)
    release = Release(1, old.release, 0, recorded(old))
    assert release.spec.balancing == Balancing(8000)
    assert effective(release, now).balancing.port == 8000
    assert recorded(replace(old, balancing=None)).balancing is None


def test_a_release_names_the_ports_that_have_changed():
    old = Release(1, "a", 0, recorded(spec()))
    new = Release(2, "b", 0, recorded(spec(port=81, health_port=82, health_path="/up")))
    assert changed(old, new) == ("port", "healthPort", "healthPath")


def test_a_spec_in_redis_is_read_back_and_that_of_a_queue_has_no_new_field():
    assert spec_in(spec_text(spec(port=8000, health_port=81))) == spec(port=8000, health_port=81)
    assert '"balancing"' not in spec_text(ManagedSpec(Template(command=("w",))))


# The ports.


def launch(protocol=Protocol.HTTP, **balancing):
    template = Template(command=("w",), protocol=protocol)
    values = Balancing(**balancing) if protocol is Protocol.HTTP else None
    return Launch(W, "ep", "i1", template, {}, balancing=values)


def test_a_process_gets_a_loopback_port_of_its_own():
    ports = ports_for(launch(), ())
    assert ports.env == {"PORT": str(ports.serves), "PORT_HEALTH": str(ports.serves)}
    assert (ports.health, ports.arguments) == (None, ())


def test_a_process_whose_health_check_has_a_port_of_its_own_gets_two():
    ports = ports_for(launch(port=80, health_port=81), ())
    assert ports.env == {"PORT": str(ports.serves), "PORT_HEALTH": str(ports.health)}
    assert ports.serves != ports.health
    assert ports_for(launch(port=80, health_port=80), ()).health is None


def test_a_worker_that_is_pushed_to_gets_arguments_and_one_that_pulls_gets_nothing():
    pushed = ports_for(launch(Protocol.PUSH), ())
    assert pushed.arguments[-2:] == ("--rp_api_port", str(pushed.serves))
    assert pushed.env == {}
    assert ports_for(launch(Protocol.PULL), ()).serves is None


IMAGE = Image("sha256:1", "docker.io/team/worker:1", ())


def test_a_containers_labels_tell_where_it_serves():
    labels = labels_of(launch(port=80, health_port=81), IMAGE)
    assert address_of(labels, "10.0.0.2") == Started("http://10.0.0.2:80", 81)
    assert address_of(labels_of(launch(port=5000), IMAGE), "h") == Started("http://h:5000")
    assert address_of(labels_of(launch(Protocol.PUSH), IMAGE), "h") == Started("http://h:8000")
    assert address_of(labels_of(launch(Protocol.PULL), IMAGE), "h") == Started()


def test_a_container_of_an_earlier_version_serves_runpods_local_api():
    assert address_of({"ownpod.protocol": "push"}, "h") == Started("http://h:8000")


def test_a_container_publishes_no_port_and_gets_no_arguments():
    made = options(launch(port=80), IMAGE)
    assert made.container["command"] == ["w"]
    assert not {"port_bindings", "publish_all_ports", "sysctls"} & made.host.keys()


def test_podmans_worker_may_listen_on_runpods_default_port():
    host = options(launch(port=80), IMAGE, podman=(5, 4)).host
    assert host["sysctls"] == {"net.ipv4.ip_unprivileged_port_start": "0"}
    assert "sysctls" not in options(launch(Protocol.PULL), IMAGE, podman=(5, 4)).host


# The registry.


def merged(entry, *, pulling=None, balanced=True):
    found = make_endpoint("ep", {**LB, "capacity": 3} if balanced else {})
    entries = Entries(managed={W: entry} if entry else {}, pulling={W: pulling} if pulling else {})
    return merge({"ep": found}, entries, make_endpoint, lambda *_: None)


def test_a_started_worker_is_in_the_registry_once_it_has_an_address():
    without = '{"endpoint":"ep","kind":"http","draining":false,"stopping":false}'
    assert merged(without).endpoints["ep"].workers == ()
    text = '{"endpoint":"ep","kind":"http","url":"http://127.0.0.1:1","healthPort":2}'
    (worker,) = merged(text).endpoints["ep"].workers
    assert (worker.kind, worker.url, worker.health_port) == (
        WorkerKind.HTTP,
        "http://127.0.0.1:1",
        2,
    )
    assert (worker.capacity, worker.has_node) == (3, False)


@pytest.mark.parametrize("port", ['"80"', "0", "65536", "true", "1.5"])
def test_an_entry_whose_health_port_is_no_port_is_left_out(port):
    text = f'{{"endpoint":"ep","kind":"http","url":"http://h:1","healthPort":{port}}}'
    (left,) = merged(text).workers_left_out
    assert left.reason == "its healthPort is no port"


def test_a_worker_that_asks_a_load_balanced_endpoint_for_jobs_is_left_out():
    entry = '{"endpoint":"ep","capacity":1}'
    (left,) = merged(None, pulling=entry).workers_left_out
    assert left.reason == "it asked for jobs for another type of endpoint"
    assert merged(None, pulling=entry, balanced=False).workers_left_out == ()


# The requests.

VIEW = JobsView(now_ms=10_000, queued=5, oldest_wait_s=9.0, running={"job": 1}, lingering={})


def coming(created_ms, phase=Phase.WANTED):
    return ManagedWorker("w", "ep", "r", phase, created_ms)


def test_requests_count_as_jobs():
    reading = RouteReading(
        requests=7, servers={"a": ServerReading(open=2, waiting=1), "b": ServerReading()}
    )
    view = with_requests(VIEW, reading, ())
    assert (view.queued, view.running, view.are_requests) == (4, {"a": 3}, True)
    assert (view.jobs("a"), view.jobs("b"), view.oldest_wait_s) == (3, 0, 0.0)


def test_a_request_that_wants_a_worker_back_starts_no_other():
    view = with_requests(VIEW, RouteReading(requests=2, wishes=("x", "y")), ())
    assert (view.queued, view.wishes) == (0, ("x", "y"))
    many = RouteReading(requests=500, wishes=tuple(map(str, range(500))))
    assert len(with_requests(VIEW, many, ()).wishes) == MOST_WISHES


def test_what_waits_has_waited_since_its_first_worker_was_wanted():
    waiting = RouteReading(requests=1)
    workers = [coming(4000), coming(2000, Phase.STARTING), coming(0, Phase.READY)]
    assert with_requests(VIEW, waiting, workers).oldest_wait_s == 8.0
    assert with_requests(VIEW, RouteReading(), workers).oldest_wait_s == 0.0


def test_a_worker_that_had_requests_lately_still_has_work():
    view = replace(VIEW, lingering={"a": 1, "b": 1})
    reading = RouteReading(requests=1, servers={"a": ServerReading(open=1)})
    assert with_requests(view, reading, ()).lingering == {"b": 1}


def test_nothing_is_known_without_a_front():
    view = with_requests(VIEW, None, [coming(0)])
    assert (view.known, view.queued, view.running) == (False, 0, {})
