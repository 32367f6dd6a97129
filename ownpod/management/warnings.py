"""What the management APIs accept although it has no effect on these hosts, in words for people. Pure."""

from collections.abc import Sequence

from ownpod.rules.balancing import DEFAULT_PORT
from ownpod.rules.catalog import EndpointRow, FlashBoot, VolumeRow
from ownpod.rules.launching import DATA_CENTER_LABEL, DEFAULT_DATA_CENTER
from ownpod.rules.managed import AgentInfo
from ownpod.rules.templates import ScalerType
from ownpod.rules.volumes import ANY_NETWORK

MB_PER_GB = 1024

PORT = "PORT"
"""RunPod's variable of a worker with the port on which it serves."""


def of_endpoint(row: EndpointRow, agents: Sequence[AgentInfo]) -> list[str]:
    """What of an endpoint has no effect."""
    found = _of_places(row.data_centers, agents)
    if row.cuda_allowed or row.cuda_min:
        found.append("CUDA versions are stored, and limit no host")
    if row.flashboot is not FlashBoot.OFF:
        found.append("flashboot is stored, and changes nothing")
    if row.is_balanced:
        found += _of_balancing(row)
    if len(row.volumes) > 1:
        found.append(f"workers have the first network volume only, {row.volumes[0]}")
    return found


def _of_balancing(row: EndpointRow) -> list[str]:
    found = []
    if row.scaler is not ScalerType.REQUEST_COUNT:
        found.append(
            "a load-balanced endpoint has no queue, so it scales by REQUEST_COUNT instead of "
            f"{row.scaler}"
        )
    if row.timeout_ms:
        found.append(
            "executionTimeout is stored, and limits no request of a load-balanced endpoint: `ownpod endpoints update "
            f"{row.id} --request-timeout` does"
        )
    ports = [port for port in row.container.ports if port.endswith("/http")]
    if ports and "port" not in row.own and PORT not in row.container.env:
        found.append(
            f"workers get PORT={DEFAULT_PORT}, not {ports[0]}, because the variable PORT is not set"
        )
    return found


def of_volume(row: VolumeRow, agents: Sequence[AgentInfo]) -> list[str]:
    """What of a network volume has no effect, or cannot be kept."""
    found = _of_places((row.data_center,), agents)
    free_mb = [
        volume.free_mb for agent in agents for volume in agent.volumes if volume.name == ANY_NETWORK
    ]
    if free_mb and max(free_mb) < row.size_gb * MB_PER_GB:
        found.append(
            f"no host has {row.size_gb} GB free for network volumes, the most is {max(free_mb) // MB_PER_GB} GB"
        )
    return found


def _of_places(names: Sequence[str], agents: Sequence[AgentInfo]) -> list[str]:
    places = {agent.labels.get(DATA_CENTER_LABEL, DEFAULT_DATA_CENTER) for agent in agents}
    unknown = [name for name in names if name not in places]
    if not agents or not unknown:
        return []
    there = ", ".join(sorted(places))
    return [
        f"no host has the data center {', '.join(unknown[:5])} (they have {there}): workers start on any host"
    ]
