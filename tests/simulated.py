"""A small world of hosts, endpoints and managed workers, in which only the pure rules decide.

A schedule is a row of bytes: the first ones make hosts and endpoints, each further pair is an event. What the world
does itself is what Redis, engines, nodes and workers do: its steps refuse what the Lua steps refuse.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from ownpod.rules.managed import (
    HOST_SILENT_S,
    SERVING,
    AgentInfo,
    Device,
    Hold,
    ManagedWorker,
    Phase,
    may_move,
)
from ownpod.rules.placement import groups, place
from ownpod.rules.reconcile import (
    Adopt,
    Ended,
    Found,
    Free,
    Knowledge,
    Launch,
    Remove,
    Stop,
    first_unknown,
    plan,
    unrecorded,
)
from ownpod.rules.scaling import (
    Discard,
    Drain,
    EndpointView,
    Recycle,
    Start,
    WorkerView,
    decide,
    start_pause_s,
)
from ownpod.rules.templates import ScalerType, Scaling

IDLE_TIMEOUT_S = 5
POOLS = [(), ("low",), ("high",), ("high", "low")]


@dataclass
class Container:
    """What really runs on a host."""

    endpoint: str
    devices: tuple[str, ...]
    started_s: float
    running: bool = True
    exit_code: int | None = None


@dataclass
class Host:
    name: str
    devices: tuple[Device, ...]
    reachable: bool = True
    drained: bool = False
    seen_s: float = 0.0
    containers: dict[str, Container] = field(default_factory=dict)
    unknown: dict[str, float] = field(default_factory=dict)
    waiting: list = field(default_factory=list)
    """Steps of the last plan that the agent has not done yet."""

    @property
    def info(self):
        return AgentInfo(self.name, "simulated", self.devices, draining=self.drained)


@dataclass
class Endpoint:
    id: str
    scaling: Scaling
    gpu_count: int
    pools: tuple[str, ...]
    release: int = 0
    broken: bool = False
    queue: list[float] = field(default_factory=list)
    """When each waiting job came, in seconds."""
    failures: int = 0
    pause_until_s: float = 0.0


class World:
    def __init__(self, schedule: bytes) -> None:
        self._bytes = iter(schedule)
        self.now_s = 1000.0
        self.emptied_s = 0.0
        """When Redis came back empty, if it did."""
        self.records: dict[str, ManagedWorker] = {}
        self.stopped: set[str] = set()
        self.holds: dict[tuple[str, str, int], str] = {}
        self.reserved: set[tuple[str, str]] = set()
        self.jobs: Counter[str] = Counter()
        self.idle_since: dict[str, float] = {}
        self.paused: set[str] = set()
        self.stuck: set[str] = set()
        self.problems: Counter[str] = Counter()
        """Number of violations of each property."""
        self.hosts = {name: self._host(name) for name in "abc"[: 1 + self._byte() % 3]}
        self.endpoints = {name: self._endpoint(name) for name in "xyz"[: 1 + self._byte() % 3]}
        self._number = 0

    def _byte(self) -> int:
        return next(self._bytes)

    def _host(self, name):
        byte = self._byte()
        devices = tuple(
            Device(
                f"{name}{n}",
                n,
                "card",
                pools=("low",) if n % 2 else ("high",),
                slots=2 if byte & 16 and not n else 1,
            )
            for n in range(byte % 5)
        )
        return Host(name, devices, seen_s=self.now_s)

    def _endpoint(self, name):
        byte, need = self._byte(), self._byte()
        least, most = byte % 3, 1 + (byte >> 2) % 4
        scaler = ScalerType.QUEUE_DELAY if byte & 64 else ScalerType.REQUEST_COUNT
        scaling = Scaling(min(least, most), most, IDLE_TIMEOUT_S, scaler, 1 + (byte >> 7))
        return Endpoint(name, scaling, need % 4, POOLS[(need >> 2) % 4])

    # What Redis does

    def move(self, worker_id, phase, host=None, **values):
        record = self.records.get(worker_id)
        if record is None or not may_move(record.phase, phase):
            return False
        if host is not None and record.host != host:
            return False
        self.records[worker_id] = replace(record, phase=phase, **values)
        return True

    def want(self, endpoint, count):
        for _ in range(count):
            self._number += 1
            worker_id = f"w{self._number:04}"
            self.records[worker_id] = ManagedWorker(
                worker_id,
                endpoint.id,
                str(endpoint.release),
                Phase.WANTED,
                int(self.now_s * 1000) + self._number,
                gpu_count=endpoint.gpu_count,
                pools=endpoint.pools,
            )

    def placed(self, worker, host, devices):
        slots = []
        for device in host.devices:
            if device.id in devices:
                used = {s for (h, d, s) in self.holds if (h, d) == (host.name, device.id)}
                free = [s for s in range(device.slots) if s not in used]
                if not free or (host.name, device.id) in self.reserved:
                    return False
                slots.append((host.name, device.id, free[0]))
        record = self.records.get(worker.id)
        if host.drained or record is None or record.phase is not Phase.WANTED:
            return False
        self.records[worker.id] = replace(
            record, phase=Phase.PREPARING, host=host.name, devices=devices
        )
        self.holds |= dict.fromkeys(slots, worker.id)
        return True

    def stop_record(self, worker_id, *, failed=False, free=True):
        record = self.records.pop(worker_id, None)
        if record is None:
            return
        self.stopped.add(worker_id)
        endpoint = self.endpoints[record.endpoint]
        if self.jobs.pop(worker_id, 0) and worker_id not in self.stuck:
            endpoint.queue.insert(0, self.now_s)
        if free:
            self.free(worker_id)
        if failed and record.phase in {Phase.PREPARING, Phase.STARTING}:
            endpoint.failures += 1
            endpoint.pause_until_s = self.now_s + start_pause_s(endpoint.failures)

    def free(self, worker_id):
        self.holds = {key: w for key, w in self.holds.items() if w != worker_id}

    def holds_of(self, host):
        held = [Hold(d, worker) for (h, d, _), worker in self.holds.items() if h == host.name]
        return held + [Hold(d, reserved="by hand") for h, d in self.reserved if h == host.name]

    # What the scaler does

    def view(self, endpoint):
        workers = tuple(
            WorkerView(
                r.id,
                r.phase,
                r.release,
                idle_s=0.0
                if self.jobs[r.id]
                else self.now_s - self.idle_since.get(r.id, self.now_s),
                jobs=self.jobs[r.id],
                created_ms=r.created_ms,
                host=r.host,
                stuck=r.id in self.stuck,
            )
            for r in self.records.values()
            if r.endpoint == endpoint.id
        )
        return EndpointView(
            endpoint.id,
            endpoint.scaling,
            str(endpoint.release),
            int(self.now_s * 1000),
            queued=len(endpoint.queue),
            oldest_wait_s=self.now_s - min(endpoint.queue, default=self.now_s),
            running=sum(w.jobs for w in workers if not w.stuck),
            workers=workers,
            failures_count=endpoint.failures,
            pause_s=max(endpoint.pause_until_s - self.now_s, 0.0),
        )

    def scale(self, endpoint):
        view = self.view(endpoint)
        actions = decide(view)
        for action in actions:
            match action:
                case Start(count):
                    self.want(endpoint, count)
                case Discard(worker):
                    assert self.records[worker].phase is Phase.WANTED
                    self.stop_record(worker)
                case Drain(worker, reason) | Recycle(worker, reason):
                    self.move(worker, Phase.DRAINING, reason=reason)
        self._check_scaling(view, actions)

    def lose_hosts(self):
        for host in self.hosts.values():
            if self.now_s - host.seen_s > HOST_SILENT_S:
                for record in [r for r in self.records.values() if r.host == host.name]:
                    self.stop_record(record.id, free=False)

    # What an agent does

    def agent(self, host, *, late):
        """One turn. ``late``: the steps of its plan are done in its next turn, when they are out of date."""
        if not host.reachable:
            return
        host.seen_s = self.now_s
        steps, host.waiting = host.waiting, []
        for step in steps:
            self._do(host, step)
        holds = self.holds_of(host)
        records = {r.id: r for r in self.records.values() if r.host == host.name}
        found = {
            i: Found(i, c.running, self.now_s - c.started_s, c.exit_code, devices=c.devices)
            for i, c in host.containers.items()
        }
        host.unknown = first_unknown(host.unknown, records, found, self.now_s)
        known = Knowledge(
            busy={i for i in records if self.jobs[i]},
            paused=self.paused,
            stuck=self.stuck,
            ended=self.stopped & found.keys(),
            unknown_s={i: self.now_s - first for i, first in host.unknown.items()},
        )
        steps = plan(
            records,
            found,
            holds,
            instance_known=True,
            known_for_s=self.now_s - self.emptied_s,
            knowledge=known,
        )
        if late:
            host.waiting = steps
            return
        for step in steps:
            self._do(host, step)
        self.place(host)

    def place(self, host):
        wanted = [r for r in self.records.values() if r.phase is Phase.WANTED]
        holds, used = self.holds_of(host), Counter()
        found = {
            i: Found(i, c.running, self.now_s - c.started_s, devices=c.devices)
            for i, c in host.containers.items()
        }
        holds += unrecorded(found, holds)
        for placement in place(wanted, host.info, holds):
            used.update(placement.devices)
            need, devices = placement.worker.gpu_count, placement.devices
            self._demand("whole need or nothing", len(set(devices)) == len(devices) == need)
            own = {d.id: d for d in host.devices}
            in_one_pool = need == 0 or any(
                set(devices) <= {d.id for d in group}
                for _, group in groups(host.devices, placement.worker.pools)
            )
            self._demand("whole need or nothing", set(devices) <= own.keys() and in_one_pool)
            done = self.placed(placement.worker, host, devices)
            self._demand("no device twice", done)

    def _do(self, host, step):
        container = host.containers.get(step.worker)
        match step:
            case Launch(worker):
                record = self.records.get(worker)
                if record is not None and container is None:
                    devices = record.devices
                    host.containers[worker] = Container(record.endpoint, devices, self.now_s)
                    self.move(worker, Phase.STARTING, host.name)
            case Adopt(worker):
                self.move(worker, Phase.STARTING, host.name)
            case Stop(worker, _, announce, failed):
                if announce and not self.move(worker, Phase.STOPPING, host.name):
                    return
                self._end(host, worker)
                self.stop_record(worker, failed=failed)
            case Ended(worker, _, _, failed):
                host.containers.pop(worker, None)
                record = self.records.get(worker)
                if record is not None and record.host == host.name:
                    self.stop_record(worker, failed=failed)
                else:
                    self.free(worker)
            case Remove(worker):
                self._end(host, worker)
                self.free(worker)
            case Free(worker):
                self.free(worker)

    def _end(self, host, worker):
        container = host.containers.pop(worker, None)
        if container is not None and container.running:
            idle = not self.jobs[worker] or worker in self.stuck
            self._demand("no busy worker is stopped", idle)

    # What workers and nodes do

    def serve(self):
        """Workers get jobs, and the nodes of draining workers pause."""
        for record in list(self.records.values()):
            open_to_jobs = record.phase is Phase.READY or (
                # Its node does not know yet.
                record.phase is Phase.DRAINING and record.id in self.idle_since
            )
            if record.id not in self.paused and open_to_jobs and not self.jobs[record.id]:
                queue = self.endpoints[record.endpoint].queue
                if queue and self._runs(record):
                    queue.pop(0)
                    self.jobs[record.id] = 1
            if record.phase is Phase.DRAINING:
                self.paused.add(record.id)

    def _runs(self, record):
        host = self.hosts.get(record.host or "")
        container = host.containers.get(record.id) if host else None
        return container is not None and container.running and host.reachable

    def become_ready(self, pick=lambda _: True):
        for record in list(self.records.values()):
            if record.phase is Phase.STARTING and self._runs(record) and pick(record):
                endpoint = self.endpoints[record.endpoint]
                if endpoint.broken:
                    self.crash(self.hosts[record.host], record.id)
                else:
                    self.move(record.id, Phase.READY)
                    self.idle_since[record.id] = self.now_s
                    endpoint.failures, endpoint.pause_until_s = 0, 0.0

    def finish(self, pick=lambda _: True):
        for worker_id in [w for w, jobs in self.jobs.items() if jobs and w not in self.stuck]:
            record = self.records.get(worker_id)
            if record is not None and self._runs(record) and pick(record):
                self.jobs[worker_id] = 0
                self.idle_since[worker_id] = self.now_s

    def crash(self, host, worker_id, *, removed=False):
        container = host.containers[worker_id]
        container.running, container.exit_code = False, 1
        if removed:
            del host.containers[worker_id]

    # Events

    def run(self):
        """All events of the schedule."""
        while True:
            try:
                event, argument = self._byte(), self._byte()
            except StopIteration:
                return
            self.event(event % 17, argument)
            self.turn(late=argument)

    def turn(self, *, late=0, elapse_s=1.0):
        """Scaler, agents, nodes and workers have one turn each."""
        self.now_s += elapse_s
        self.lose_hosts()
        if late & 1:
            self.serve()
        for endpoint in self.endpoints.values():
            self.scale(endpoint)
        if not late & 1:
            self.serve()
        for number, host in enumerate(self.hosts.values()):
            self.agent(host, late=bool(late & (8 << number)))
        self._check_devices()

    def event(self, event, argument):
        hosts, endpoints = list(self.hosts.values()), list(self.endpoints.values())
        host, endpoint = hosts[argument % len(hosts)], endpoints[argument % len(endpoints)]
        some = argument | 1
        match event:
            case 0 | 1 | 2:
                endpoint.queue += [self.now_s] * (1 + argument // 64)
            case 3 | 4:
                self.become_ready(lambda r: r.endpoint == endpoint.id)
            case 5 | 6:
                self.finish(lambda r: int(r.id[1:]) * some % 3)
            case 7:
                self.now_s += argument % 70
            case 8:
                host.reachable = not host.reachable
            case 9:
                for worker_id in list(host.containers):
                    self.crash(host, worker_id, removed=bool(argument & 64))
            case 10:
                for worker_id in list(host.containers)[: 1 + argument % 2]:
                    self.crash(host, worker_id, removed=bool(argument & 64))
            case 11:
                endpoint.release += 1
                endpoint.failures, endpoint.pause_until_s = 0, 0.0
            case 12:
                most = (argument >> 2) % 5
                least = min((argument >> 5) % 3, most)
                endpoint.scaling = replace(endpoint.scaling, workers_min=least, workers_max=most)
            case 13:
                endpoint.broken = not endpoint.broken
            case 14:
                if argument & 64:
                    host.drained = not host.drained
                elif host.devices:
                    key = (host.name, host.devices[argument % len(host.devices)].id)
                    self.reserved ^= {key}
            case 15:
                running = [w for w, jobs in self.jobs.items() if jobs and w in self.records]
                self.stuck |= set(running[:1])
            case 16 if argument < 64:
                self.empty()

    def empty(self):
        """Redis comes back without its records; what runs on the hosts goes on."""
        self.emptied_s = self.now_s
        for held in (self.records, self.stopped, self.holds, self.reserved, self.jobs, self.paused):
            held.clear()
        for endpoint in self.endpoints.values():
            endpoint.queue.clear()
            endpoint.failures, endpoint.pause_until_s = 0, 0.0

    def fits(self, endpoint):
        """Whether a host has the devices for a worker of the endpoint at all."""
        count = endpoint.gpu_count
        return any(
            count == 0 or any(len(g) >= count for _, g in groups(host.devices, endpoint.pools))
            for host in self.hosts.values()
        )

    def settle(self, turns=300):
        """Everything works again, devices come free, and small loads go on.

        Returns: the endpoints with jobs of the schedule that are still waiting.
        """
        for host in self.hosts.values():
            host.reachable, host.drained = True, False
        self.reserved.clear()
        for endpoint in self.endpoints.values():
            endpoint.broken = False
            most = max(endpoint.scaling.workers_max, 1)
            endpoint.scaling = replace(endpoint.scaling, workers_min=0, workers_max=most)
            endpoint.queue.append(self.now_s)
        able = [e for e in self.endpoints.values() if self.fits(e)]
        waiting = Counter({e.id: len(e.queue) for e in able})
        for turn in range(turns):
            lengths = {e.id: len(e.queue) for e in able}
            self.turn(elapse_s=3.0)
            for e in able:
                waiting[e.id] -= lengths[e.id] - len(e.queue)
            waiting = +waiting
            if not waiting:
                return []
            self.finish()
            self.become_ready()
            for number, e in enumerate(able):
                # Their workers come and go in turn, so that their devices are never all free at once.
                if e.id not in waiting and turn % 6 == 3 * (number % 2):
                    e.queue.append(self.now_s)
        return sorted(waiting)

    # Properties

    def _demand(self, name, holds):
        self.problems[name] += not holds

    def _check_scaling(self, view, actions):
        most = view.scaling.workers_max
        least = min(view.scaling.workers_min, most)
        mine = [r for r in self.records.values() if r.endpoint == view.id]
        serving = [r for r in mine if r.phase in SERVING]
        started = any(isinstance(action, Start) for action in actions)
        self._demand("within min and max", len(serving) <= most)
        self._demand("within min and max", not started or len(mine) <= most)
        may_start = not view.failures_count and not view.pause_s
        enough = len(serving) >= least or len(mine) >= most
        self._demand("within min and max", enough or not may_start)
        by_id = {w.id: w for w in view.workers}
        ready = sum(r.phase is Phase.READY for r in mine)
        for action in actions:
            if isinstance(action, Drain) and action.reason.startswith("it was idle"):
                self._demand("no busy worker is stopped", not by_id[action.worker].jobs)
                self._demand("within min and max", ready >= least)

    def _check_devices(self):
        for host in self.hosts.values():
            containers = [c for c in host.containers.values() if c.running]
            used = Counter(d for c in containers for d in c.devices)
            for device in host.devices:
                self._demand("no device twice", used[device.id] <= device.slots)
        held = Counter((host, worker) for (host, _, _), worker in self.holds.items())
        for record in self.records.values():
            if record.host is not None:
                whole = held[record.host, record.id] == record.gpu_count
                self._demand("whole need or nothing", whole)
