"""One-off tasks without Celery: what a node is made of, and an agent with any engine, on a real Redis."""

import functools
import json
import threading

from helpers import job_store, load_settings, new_job, wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.steps import Host
from ownpod.node.breaker import Breaker
from ownpod.node.runner import JobRunner
from ownpod.node.slots import Slots
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.endpoints import WorkerKind, pull_worker
from ownpod.rules.managed import Phase
from ownpod.rules.placement import pools_of
from ownpod.rules.presets import OutputMode
from ownpod.rules.sessions import Reason
from ownpod.rules.templates import ManagedSpec, Protocol, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.notices import Notices
from ownpod.store.outputs import Outputs
from ownpod.store.sessions import Sessions
from ownpod.workers import Exchange, driver_for

W = "aaaaaaaaaaaaaa"
JOB = "job-1"


class Node:
    """What the node of a task worker is made of, but for Celery."""

    def __init__(self, client, *, lease_s=10):
        self.store = job_store(client)
        spec = pull_worker("ep", W, 1)
        spec = type(spec)(**{**vars(spec), "kind": WorkerKind.CONTAINER, "private": True})
        self.notices = Notices(client, keys.task(W))
        exchange = Exchange(
            None, functools.partial(self.notices.subscribe, end_only=False), Managed(client).tasks
        )
        self.worker = driver_for(spec, load_settings(), lambda: exchange)
        self.slots = Slots(
            self.store,
            self.worker,
            lease_s=lease_s,
            on_change=lambda: self.breaker.wake(),  # noqa: PLW0108 - made below
        )
        self.breaker = Breaker(
            self.worker.probe, lambda _: None, publish_every_s=5, slots=self.slots
        )
        self.runner = JobRunner(self.store, self.worker, self.slots, self.breaker, worker_id=W)
        self.slots.start()

    def start(self, job_id=JOB):
        thread = threading.Thread(target=self.runner.run, args=(job_id,), daemon=True)
        thread.start()
        return thread


class Turning:
    """An agent that turns in a thread, without the subscriptions of its own loop."""

    def __init__(self, agent):
        self.agent = agent
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopped.wait(0.02):
            self.agent.turn()

    def end(self):
        """As the end of an agent's process; its workers go on."""
        self._stopped.set()
        self._thread.join()
        self.agent.leave()


class Rig:
    """One task worker, ``W``, whose agent and node a test may replace.

    ``make_engine``: makes an engine that knows nothing of the one before, of its instance's id. ``make_models``: the same of
    the models of the host; None: it has none.
    """

    def __init__(self, client, make_engine, make_models=None):
        self.client = client
        self._make_models = make_models
        self._make_engine = make_engine
        self.managed = Managed(client)
        self.store = job_store(client)
        self.sessions = Sessions(self.store, result_ttl_s=600)
        self.instance = self.managed.instance().id
        self.turning = None
        self.engines = []
        self.next_agent()
        self.node = Node(client)

    def next_agent(self):
        """An agent as a process of its own would be: with nothing that an earlier one knew."""
        if self.turning:
            self.turning.end()
        engine, client = self._make_engine(self.instance), self.client
        engine.check()
        self.engine = engine
        self.engines.append(engine)
        agent = Agent(
            Host("h", "http://127.0.0.1:8000", {}),
            engine,
            Devices(DeviceChoice(stand_ins=2), {}, pools_of=pools_of),
            managed=self.managed,
            agents=Agents(client),
            outputs=Outputs(client),
            wakeups=Wakeups(client),
            environ={},
            models=self._make_models() if self._make_models else None,
        )
        self.turning = Turning(agent)

    def replace_agents(self, *, each, seconds):
        """Replaces the agent three times, each time when more than ``each`` further characters of output are there, or when the
        task, which goes on, has ended; the first time it has not.
        """
        for number in range(3):
            seen = len(self.text())
            wait_until(
                lambda n=seen: len(self.text()) > n + each or self.job().status.terminal, seconds
            )
            assert number or not self.job().status.terminal
            self.next_agent()

    def runs(self):
        """Whether the task's process or container runs; False also if it was never started."""
        found = self.engine.list().get(W)
        return found is not None and found.running

    def submit(
        self, command, *, data=None, mode=OutputMode.AUTO, most=1, timeout_ms=200_000, **template
    ):
        spec = ManagedSpec(
            Template(command=tuple(command), protocol=Protocol.CONTAINER, **template)
        )
        assert self.sessions.open_task(W, "ep", spec=spec, job_id=JOB, owner="", output=mode)
        self.store.jobs.create(
            new_job(
                JOB,
                input=json.dumps(data if data is not None else {}),
                queue=self.store.messages.own_queue("ep", W),
                private=W,
                max_attempts=most,
                execution_timeout_ms=timeout_ms,
            )
        )
        wait_until(lambda: self.managed.get(W).phase is Phase.STARTING, 20)

    def run(self, command, **options):
        """The job, once a task with this command has ended."""
        self.submit(command, **options)
        return self.finish(self.node.start())

    def finish(self, thread):
        thread.join(100)
        assert not thread.is_alive()
        return self.job()

    def job(self):
        return self.store.jobs.get(JOB, "ep")

    def chunks(self):
        return [json.loads(text) for text in self.client.lrange(keys.chunks(JOB), 0, -1)]

    def text(self):
        return "".join(chunk for chunk in self.chunks() if isinstance(chunk, str))

    def journal(self, event=None):
        entries = map(json.loads, self.client.lrange(keys.journal(JOB), 0, -1))
        return [entry[4] for entry in entries if event in {None, entry[3]}]

    def logs(self):
        return [entry["log"] for entry in self.journal("logs")]

    def drain(self):
        worker = self.managed.get(W)
        return self.sessions.end_private(worker, Reason.MANUAL, how="drain")

    def end(self):
        self.node.notices.stop()
        if self.turning:
            self.turning.end()
        for worker_id in self.engine.list():
            self.engine.stop(worker_id, 0)
        for engine in self.engines:
            # The shells of processes are this process's children, which Python wants to be waited for.
            engine.list()
