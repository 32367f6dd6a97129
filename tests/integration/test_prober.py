"""The health of a worker: a prober without Celery, and the breaker that a node adds."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from helpers import Answer, FakeWorker, environment, load_settings, wait_until, worker_spec

from ownpod.errors import RedisUnavailable, WorkerSilent, WorkerUnavailable
from ownpod.node.breaker import Breaker
from ownpod.rules.fleet import WorkerState
from ownpod.workers import driver_for
from ownpod.workers.prober import Prober


@pytest.fixture
def fake():
    with FakeWorker().serving() as worker:
        yield worker


def prober_of(fake, publish):
    driver = driver_for(worker_spec(fake.url), load_settings(OWNPOD_WORKER_CONNECT_TIMEOUT_S=5))
    return Prober(driver.probe, publish, publish_every_s=0.05)


def test_a_prober_publishes_that_a_worker_is_ready_ill_and_ready_again(fake):
    published = []
    prober = prober_of(fake, lambda status: published.append(status.state))
    prober.start()
    wait_until(lambda: WorkerState.READY in published)
    fake.routes["GET /health"] = Answer(503, {})
    prober.recheck()
    wait_until(lambda: WorkerState.UNHEALTHY in published)
    assert "HTTP 503" in prober.status.reason
    fake.routes["GET /health"] = Answer(200, {})
    # By itself, after a pause.
    wait_until(lambda: prober.status.state is WorkerState.READY, 5)
    assert len(published) > 2


def test_a_prober_outlives_a_redis_that_is_away(fake):
    published = []

    def publish(status):
        published.append(status)
        if len(published) == 1:
            raise RedisUnavailable

    prober_of(fake, publish).start()
    wait_until(lambda: len(published) > 2)


@pytest.mark.slow
def test_a_prober_needs_no_celery(fake):
    code = (
        "import sys, threading\n"
        "from ownpod import settings\n"
        "from ownpod.rules.endpoints import WorkerSpec\n"
        "from ownpod.workers import driver_for\n"
        "from ownpod.workers.prober import Prober\n"
        f"spec = WorkerSpec('w', 'ep', {fake.url!r}, 1, {{}}, True, None)\n"
        "ready = threading.Event()\n"
        "def publish(status):\n"
        "    if status.state == 'ready': ready.set()\n"
        "driver = driver_for(spec, settings.load({}))\n"
        "Prober(driver.probe, publish, publish_every_s=1).start()\n"
        "assert ready.wait(20)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'celery', 'kombu', 'redis'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50, env=environment())


@pytest.fixture
def slots():
    return SimpleNamespace(taken=0, lingering=0, begun=0)


@pytest.fixture
def breaker_of(slots):
    """A breaker whose probe does what it is given; it is probed by hand."""

    def make(probe, turns=None):
        on_change = (lambda: None) if turns is None else lambda: turns.append(1)
        return Breaker(probe, print, publish_every_s=1, slots=slots, on_change=on_change)

    return make


def raising(error):
    def probe():
        raise error

    return probe


def test_a_breaker_is_open_until_a_probe_succeeds(breaker_of):
    turns = []
    breaker = breaker_of(lambda: None, turns)
    assert not breaker.closed
    breaker.probe_once()
    assert breaker.closed
    breaker.open("it refused a job")
    assert (breaker.closed, breaker.status.state) == (False, WorkerState.UNHEALTHY)
    assert len(turns) == 2


def test_the_end_of_a_paused_worker_is_no_warning(slots, caplog):
    """A managed worker that was idle is paused before its agent stops it."""
    caplog.set_level("INFO")
    me, paused = threading.get_ident(), []

    def levels():
        return [record.levelname for record in caplog.records if record.thread == me]

    breaker = Breaker(
        lambda: None, print, publish_every_s=1, slots=slots, is_paused=lambda: bool(paused)
    )
    breaker.ready()
    paused.append("its endpoint is idle")
    breaker.fail("the worker closed its request for a job")
    assert breaker.status.state is WorkerState.UNHEALTHY
    # Threads of tests before this one may log, too.
    assert levels() == ["INFO", "INFO"]
    assert "the paused worker does not answer any more" in caplog.text
    breaker.ready()
    paused.clear()
    breaker.fail("does not answer")
    assert levels()[2:] == ["INFO", "WARNING"]


def test_a_breaker_that_is_open_keeps_its_reason_when_the_worker_leaves(breaker_of):
    breaker = breaker_of(lambda: None)
    breaker.open("it refused a job")
    breaker.open_if_closed("it left")
    assert breaker.status.reason == "it refused a job"


def test_a_busy_worker_is_not_probed(breaker_of, slots):
    probes = []
    breaker = breaker_of(lambda: probes.append(1))
    breaker.probe_once()
    slots.taken = 1
    breaker.probe_once()
    assert len(probes) == 1


def test_a_silent_worker_with_a_run_of_an_earlier_node_is_busy_not_ill(breaker_of, slots):
    breaker = breaker_of(raising(WorkerSilent("silent")))
    slots.taken = 1
    breaker.probe_once()
    assert (breaker.closed, breaker.status.state) == (False, WorkerState.BUSY)


def test_a_job_that_begins_during_a_probe_may_be_why_the_worker_is_silent(breaker_of, slots):
    probes = []

    def probe():
        probes.append(1)
        if len(probes) == 2:
            slots.taken = slots.begun = 1
            raise WorkerSilent("silent")

    breaker = breaker_of(probe)
    breaker.probe_once()
    breaker.probe_once()
    assert breaker.closed


def test_an_idle_worker_that_does_not_answer_opens_the_breaker(breaker_of):
    breaker = breaker_of(raising(WorkerUnavailable("cannot connect")))
    breaker.probe_once()
    assert breaker.status.state is WorkerState.UNHEALTHY


def test_the_status_counts_lingering_slots(breaker_of, slots):
    slots.lingering = 2
    assert breaker_of(lambda: None).status.lingering == 2
