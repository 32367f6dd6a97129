"""The metrics of managed workers, their starts, hosts and devices."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from ownpod.rules.devices import STATES, state_of
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Hold, ManagedWorker, Phase
from ownpod.store.figures import EndpointStats, Histogram

FIGURES = {
    "memory_used_mb": ("memory_used_bytes", "Memory of a device that is in use", 1024**2),
    "utilization_percent": ("utilization_ratio", "Load of a device, from 0 to 1", 0.01),
    "temperature_c": ("temperature_celsius", "Temperature of a device", 1),
    "power_w": ("power_watts", "Power that a device draws", 1),
}
"""Name, help and unit of each figure of a device, see :class:`ownpod.rules.managed.Device`."""


class ManagedMetrics:
    """The metrics of managed workers by endpoint."""

    def __init__(self) -> None:
        self._workers = GaugeMetricFamily(
            "ownpod_managed_workers",
            "Workers that OwnPod starts, from wanted until stopped",
            labels=["endpoint", "phase"],
        )
        self._failed = CounterMetricFamily(
            "ownpod_managed_failed_starts",
            "Starts of workers that failed before the worker was ready",
            labels=["endpoint"],
        )
        self._swaps = CounterMetricFamily(
            "ownpod_worker_swaps",
            "Workers that gave their devices to a worker of another endpoint, which is `for`",
            labels=["endpoint", "for"],
        )
        self._starts = HistogramMetricFamily(
            "ownpod_cold_start_seconds",
            "Parts of the starts of workers that became ready: device (until it has a place), prepare (its image), "
            "create (its container or process), import (until its first request for jobs)",
            labels=["endpoint", "part"],
        )

    def add(
        self, endpoint: Endpoint, stats: EndpointStats, workers: Sequence[ManagedWorker]
    ) -> None:
        """Adds an endpoint, if it has or had managed workers. ``workers``: those of all endpoints that are not stopped."""
        phases = Counter(w.phase for w in workers if w.endpoint == endpoint.id)
        started = any(sum(part.buckets) for part in stats.starts.values())
        if endpoint.managed is None and not (phases or started or stats.failed_starts):
            return
        for phase in Phase:
            if phase is not Phase.STOPPED:
                self._workers.add_metric([endpoint.id, phase], phases[phase])
        self._failed.add_metric([endpoint.id], stats.failed_starts)
        for other, count in stats.swaps.items():
            self._swaps.add_metric([endpoint.id, other], count)
        for part, histogram in stats.starts.items():
            add_histogram(self._starts, [endpoint.id, part], histogram)

    @property
    def families(self) -> tuple[Metric, ...]:
        """The metrics of all endpoints that were added."""
        return self._workers, self._failed, self._swaps, self._starts


def device_metrics(
    agents: Iterable[AgentInfo], holds: Mapping[str, Sequence[Hold]]
) -> tuple[Metric, ...]:
    """The metrics of hosts and devices. ``holds``: what occupies devices, by host."""
    devices = GaugeMetricFamily(
        "ownpod_devices", "Devices: GPUs, and stand-ins for GPUs", labels=["host", "state"]
    )
    silent = GaugeMetricFamily(
        "ownpod_host_silent_seconds", "Time since a host's last heartbeat", labels=["host"]
    )
    labels = ["host", "device"]
    memory = GaugeMetricFamily("ownpod_device_memory_bytes", "Memory of a device", labels=labels)
    figures = {
        figure: GaugeMetricFamily(f"ownpod_device_{name}", text, labels=labels)
        for figure, (name, text, _) in FIGURES.items()
    }
    for agent in agents:
        held = holds.get(agent.host, ())
        states = Counter(state_of(device, agent, held).word for device in agent.devices)
        for state in STATES:
            devices.add_metric([agent.host, state], states[state])
        silent.add_metric([agent.host], agent.silent_s)
        if agent.silent_s >= HOST_SILENT_S:
            # Its figures are of the time of its last heartbeat.
            continue
        for device in agent.devices:
            if device.memory_mb:
                memory.add_metric([agent.host, device.id], device.memory_mb * 1024**2)
            for figure, (_, _, unit) in FIGURES.items():
                if figure in device.metrics:
                    figures[figure].add_metric(
                        [agent.host, device.id], device.metrics[figure] * unit
                    )
    return devices, silent, memory, *figures.values()


def add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram
) -> None:
    """Adds a histogram of Redis, which counts each bucket by itself; Prometheus expects cumulative counts."""
    ends = [*(str(end / 1000) for end in histogram.ends), "+Inf"]
    total, buckets = 0, []
    for end, count in zip(ends, histogram.buckets, strict=True):
        total += count
        buckets.append((end, total))
    family.add_metric(labels, buckets=buckets, sum_value=histogram.sum_ms / 1000)
