"""RunPod's GPU types and pools, in the three forms of its APIs."""

import pytest

from ownpod.rules.catalog import Gpu
from ownpod.rules.gpu_types import (
    GPU_TYPES,
    POOLS,
    from_gpu_ids,
    gpu_ids,
    pools_of_need,
    types_of,
    unknown,
)
from ownpod.rules.placement import pools_of


def test_the_pool_of_each_type_is_the_one_that_devices_get():
    wrong = [
        t.id
        for t in GPU_TYPES.values()
        if t.pool and t.pool not in pools_of(t.id, t.memory_gb * 1024)
    ]
    assert wrong == []


def test_types_of_pools_keep_the_order_and_leave_excluded_ones_out():
    gpu = Gpu(pools=("ADA_24", "AMPERE_24"), excluded=("NVIDIA L4",))
    assert types_of(gpu) == (
        "NVIDIA GeForce RTX 4090",
        "NVIDIA GeForce RTX 3090",
        "NVIDIA RTX A5000",
    )


def test_types_become_their_pools_without_the_other_types():
    pools, excluded = pools_of_need(Gpu(types=("NVIDIA L4", "NVIDIA GeForce RTX 4090")))
    assert pools == ("AMPERE_24", "ADA_24")
    assert set(excluded) == {"NVIDIA GeForce RTX 3090", "NVIDIA RTX A5000"}


@pytest.mark.parametrize(
    "text", ["ADA_24,AMPERE_24,-NVIDIA L4", "ADA_24", "", "AMPERE_80,HOPPER_141"]
)
def test_gpu_ids_read_back_as_they_were(text):
    assert gpu_ids(from_gpu_ids(text, 1)) == text


def test_full_type_ids_in_gpu_ids_are_types():
    gpu = from_gpu_ids("NVIDIA  RTX A4500, ADA_24", 2)
    assert gpu == Gpu(pools=("ADA_24",), types=("NVIDIA RTX A4500",), count=2)


def test_names_that_nobody_knows_are_found():
    assert unknown(["ADA_24", "NVIDIA L4", "RTX 9999", "My Card"], ["My Card"]) == ["RTX 9999"]
    assert len(POOLS) == 11
