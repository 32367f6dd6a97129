"""What wakes the scaler and the agents, and managed workers in a Redis that loses answers."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import RedisServer, wait_until
from slow_redis import SlowRedis

from ownpod.errors import RedisUnavailable
from ownpod.rules.managed import AgentInfo, Phase
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.client import connect
from ownpod.store.managed import Managed

W = "aaaaaaaaaaaaaa"
SPEC = ManagedSpec(Template(command=("python", "w.py")), gpu=GpuNeed())


@pytest.fixture
def wakeups(client):
    found = Wakeups(client)
    # The first wait subscribes, so notices from before may have been missed.
    assert found.wait(60)
    yield found
    found.close()


@pytest.fixture
def placed(client):
    managed, agents = Managed(client), Agents(client)
    agents.heartbeat(AgentInfo("h", "process"), "t")
    managed.want(W, "ep", spec=SPEC)
    managed.place(W, "h", "t", ["gpu-0"])
    return managed


def stop(managed):
    return managed.stopped(W, "h", exit_code=0, reason="idle", failed=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.want("b" * 14, "ep", spec=SPEC),
        lambda m: m.drain(W, "idle"),
        lambda m: m.ready(W),
        stop,
        lambda m: m.lost(W, "silent"),
        lambda m: m.notice(),
    ],
)
def test_a_change_that_others_act_on_wakes_them(placed, wakeups, change):
    with ThreadPoolExecutor(1) as pool:
        woken = pool.submit(wakeups.wait, 30)
        change(placed)
        assert woken.result()


def test_notices_that_come_together_wake_once_and_without_one_the_wait_ends(placed, wakeups):
    for _ in range(20):
        placed.notice()
    assert wakeups.wait(60)
    # The last of them may arrive a moment after its command's answer.
    wakeups.wait(0.2)
    assert not wakeups.wait(0.2)


def test_a_subscription_that_was_lost_is_made_again(tmp_path):
    server = RedisServer(tmp_path)
    with connect(server.url) as client:
        wakeups = Wakeups(client)
        try:
            assert wakeups.wait(60)
            client.client_kill_filter(_type="pubsub")
            assert wait_until(lambda: wakeups.wait(1))
            Managed(client).notice()
            assert wait_until(lambda: wakeups.wait(1))
            server.stop()
            assert not wakeups.wait(0.1)
            assert not wakeups.wait(0.1)
        finally:
            wakeups.close()
            server.stop()


@pytest.fixture
def slow(redis_server, client):
    with SlowRedis(redis_server.port).serving() as proxy:
        yield proxy


def test_a_move_whose_answer_is_lost_is_made_once_and_reported(placed, slow, client):
    for sources in (placed._script.sources, Agents(client)._script.sources):
        for source in sources.values():
            client.script_load(source)
    with connect(slow.url) as lossy:
        managed, agents = Managed(lossy), Agents(lossy)
        managed.list()

        def lost(method, *arguments, **options):
            slow.lose = 1
            answer = method(*arguments, **options)
            assert slow.lose == 0
            return answer

        other = "b" * 14
        assert lost(managed.want, other, "ep", spec=SPEC)
        assert lost(managed.place, other, "h", "t", ["gpu-1"])
        assert lost(managed.started, other, "h")
        assert lost(agents.heartbeat, AgentInfo("h", "process"), "t").owned
        assert lost(managed.stopping, other, "h")
        lost(managed.stopped, other, "h", exit_code=1, reason="crash", failed=True)
        assert managed.get(other).phase is Phase.STOPPED
        assert managed.failures("ep").count == 1
        assert [hold.device for hold in agents.holds("h")] == ["gpu-0"]


def test_without_redis_every_call_raises_that_it_is_away():
    with connect("redis://127.0.0.1:1/0") as client:
        managed, agents = Managed(client), Agents(client)
        for call in (
            managed.list,
            managed.wanted,
            managed.notice,
            managed.instance,
            lambda: managed.ready(W),
            lambda: managed.of_host("h"),
            lambda: managed.views({"ep": "r"}, []),
            agents.agents,
            agents.all_holds,
            lambda: agents.heartbeat(AgentInfo("h", "process"), "t"),
        ):
            with pytest.raises(RedisUnavailable):
                call()
