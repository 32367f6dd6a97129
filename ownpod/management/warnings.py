"""What the management APIs accept although it has no effect on these hosts, in words for people. Pure."""

from collections.abc import Sequence

from ownpod.rules.catalog import EndpointRow, FlashBoot, VolumeRow
from ownpod.rules.launching import DATA_CENTER_LABEL, DEFAULT_DATA_CENTER
from ownpod.rules.managed import AgentInfo
from ownpod.rules.volumes import ANY_NETWORK

MB_PER_GB = 1024


def of_endpoint(row: EndpointRow, agents: Sequence[AgentInfo]) -> list[str]:
    """What of an endpoint has no effect."""
    found = _of_places(row.data_centers, agents)
    if row.cuda_allowed or row.cuda_min:
        found.append("CUDA versions are stored, and limit no host")
    if row.flashboot is not FlashBoot.OFF:
        found.append("flashboot is stored, and changes nothing")
    if len(row.volumes) > 1:
        found.append(f"workers have the first network volume only, {row.volumes[0]}")
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
