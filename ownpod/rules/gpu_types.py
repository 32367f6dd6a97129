"""RunPod's GPU types and pools, and how its three APIs name the GPUs of an endpoint. Pure.

The ids are those that ``nvidia-smi`` prints for most cards. Source: RunPod's list of GPU types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ownpod.rules.catalog import Gpu


@dataclass(frozen=True)
class GpuType:
    """A GPU type. ``pool``: the serverless pool that it belongs to; None: none."""

    id: str
    name: str
    memory_gb: int
    pool: str | None = None
    manufacturer: str = "Nvidia"


_TABLE = """
NVIDIA GeForce RTX 4090|RTX 4090|24|ADA_24
NVIDIA GeForce RTX 5090|RTX 5090|32|ADA_32_PRO
NVIDIA GeForce RTX 3090|RTX 3090|24|AMPERE_24
NVIDIA RTX A5000|RTX A5000|24|AMPERE_24
NVIDIA L4|L4|24|AMPERE_24
NVIDIA RTX A4000|RTX A4000|16|AMPERE_16
NVIDIA RTX A4500|RTX A4500|20|AMPERE_16
NVIDIA RTX 4000 Ada Generation|RTX 4000 Ada|20|AMPERE_16
NVIDIA RTX 2000 Ada Generation|RTX 2000 Ada|16|AMPERE_16
NVIDIA A40|A40|48|AMPERE_48
NVIDIA RTX A6000|RTX A6000|48|AMPERE_48
NVIDIA L40|L40|48|ADA_48_PRO
NVIDIA L40S|L40S|48|ADA_48_PRO
NVIDIA RTX 6000 Ada Generation|RTX 6000 Ada|48|ADA_48_PRO
NVIDIA A100 80GB PCIe|A100 PCIe|80|AMPERE_80
NVIDIA A100-SXM4-80GB|A100 SXM|80|AMPERE_80
NVIDIA H100 80GB HBM3|H100 SXM|80|ADA_80_PRO
NVIDIA H100 PCIe|H100 PCIe|80|ADA_80_PRO
NVIDIA H100 NVL|H100 NVL|94|ADA_80_PRO
NVIDIA H200|H200 SXM|141|HOPPER_141
NVIDIA RTX PRO 6000 Blackwell Server Edition|RTX PRO 6000|96|BLACKWELL_96
NVIDIA RTX PRO 6000 Blackwell Workstation Edition|RTX PRO 6000 WK|96|BLACKWELL_96
NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition|RTX PRO 6000 MaxQ|96|BLACKWELL_96
NVIDIA B200|B200|180|BLACKWELL_180
NVIDIA H200 NVL|H200 NVL|143|
NVIDIA A30|A30|24|
NVIDIA RTX 4000 SFF Ada Generation|RTX 4000 Ada SFF|20|
NVIDIA RTX 5000 Ada Generation|RTX 5000 Ada|32|
NVIDIA RTX A2000|RTX A2000|6|
NVIDIA GeForce RTX 3070|RTX 3070|8|
NVIDIA GeForce RTX 3080|RTX 3080|10|
NVIDIA GeForce RTX 3080 Ti|RTX 3080 Ti|12|
NVIDIA GeForce RTX 3090 Ti|RTX 3090 Ti|24|
NVIDIA GeForce RTX 4070 Ti|RTX 4070 Ti|12|
NVIDIA GeForce RTX 4080|RTX 4080|16|
NVIDIA GeForce RTX 4080 SUPER|RTX 4080 SUPER|16|
NVIDIA GeForce RTX 5080|RTX 5080|16|
Tesla T4|Tesla T4|16|
Tesla V100-PCIE-16GB|Tesla V100|16|
Tesla V100-FHHL-16GB|V100 FHHL|16|
Tesla V100-SXM2-16GB|V100 SXM2|16|
Tesla V100-PCIE-32GB|V100 32GB|32|
Tesla V100-SXM2-32GB|V100 SXM2 32GB|32|
AMD Instinct MI300X OAM|MI300X|192|
"""


def _parsed() -> dict[str, GpuType]:
    found = {}
    for line in _TABLE.strip().splitlines():
        type_id, name, memory, pool = line.split("|")
        maker = "AMD" if type_id.startswith("AMD") else "Nvidia"
        found[type_id] = GpuType(type_id, name, int(memory), pool or None, maker)
    return found


GPU_TYPES: Mapping[str, GpuType] = _parsed()
"""RunPod's GPU types by id."""

POOLS: Mapping[str, tuple[str, ...]] = {
    pool: tuple(t.id for t in GPU_TYPES.values() if t.pool == pool)
    for pool in dict.fromkeys(t.pool for t in GPU_TYPES.values() if t.pool)
}
"""Ids of the GPU types of each pool."""


def normal(type_id: str) -> str:
    """A type's id with single spaces: RunPod's own lists have some with two."""
    return " ".join(type_id.split())


def types_of(gpu: Gpu) -> tuple[str, ...]:
    """The ids of GPU types that a need allows, in order of preference, as REST v1 shows them (``gpuTypeIds``)."""
    of_pools = (t for pool in gpu.pools for t in POOLS.get(pool, ()))
    found = dict.fromkeys((*gpu.types, *(t for t in of_pools if t not in gpu.excluded)))
    return tuple(found)


def pools_of_need(gpu: Gpu) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pools and excluded types of a need, as REST v2 shows them: types become their pools without the others.

    A type that belongs to no pool stays as its own name.
    """
    if not gpu.types:
        return gpu.pools, gpu.excluded
    pools = dict.fromkeys(
        (
            *gpu.pools,
            *(GPU_TYPES[t].pool or t if t in GPU_TYPES else t for t in map(normal, gpu.types)),
        )
    )
    wanted = {normal(t) for t in gpu.types} | {t for p in gpu.pools for t in POOLS.get(p, ())}
    left_out = (t for pool in pools for t in POOLS.get(pool, ()) if t not in wanted)
    return tuple(pools), tuple(dict.fromkeys((*gpu.excluded, *left_out)))


def gpu_ids(gpu: Gpu) -> str:
    """The need as GraphQL's ``gpuIds``: pools, then ``-`` and the id of each excluded type."""
    pools, excluded = pools_of_need(gpu)
    return ",".join((*pools, *(f"-{name}" for name in excluded)))


def from_gpu_ids(text: str, count: int) -> Gpu:
    """The need of a GraphQL ``gpuIds``. Ids of types, which old scripts have, stay types."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    excluded = tuple(normal(part[1:]) for part in parts if part.startswith("-"))
    included = [part for part in parts if not part.startswith("-")]
    return Gpu(
        pools=tuple(part for part in included if part in POOLS),
        types=tuple(normal(part) for part in included if part not in POOLS),
        excluded=excluded,
        count=count,
    )


def unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names of GPUs or pools that neither RunPod's list nor ``known``, those of the hosts, has."""
    all_known = {*GPU_TYPES, *POOLS, *map(normal, known)}
    return [name for name in names if normal(name) not in all_known]
