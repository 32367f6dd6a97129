"""The rows of the catalog: ids, versions, differences, and the entries that the rest of OwnPod runs."""

import re
from dataclasses import replace

import pytest

from ownpod.configuration import make_endpoint
from ownpod.rules.catalog import RESERVED, Container, EndpointRow, Gpu, Kind, new_id
from ownpod.rules.catalog_changes import (
    NO_TIMEOUT_MS,
    differences,
    entry_of,
    quota_problem,
    released,
)
from ownpod.rules.records import from_text, to_text

ROW = EndpointRow(
    "e", "name", Container(image="img:1", env={"A": "1"}), gpu=Gpu(pools=("ADA_24",), count=2)
)


@pytest.mark.parametrize(("kind", "length"), [(Kind.ENDPOINT, 14), (Kind.TEMPLATE, 10)])
def test_new_ids_have_runpods_shape_and_are_not_taken(kind, length):
    ids = {new_id(kind) for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(f"[a-z0-9]{{{length}}}", made) for made in ids)


def test_rows_are_the_same_after_redis():
    row = released(None, replace(ROW, sent={"v1": "{}"}), 5)
    assert from_text(EndpointRow, to_text(row)) == row


def test_a_structural_change_makes_a_version_and_tells_what_changed_without_values_of_variables():
    old = released(None, ROW, 1)
    new = released(
        old, replace(old, container=replace(old.container, env={"A": "secret", "B": "2"})), 7
    )
    assert (new.version, new.created_ms, len(new.releases)) == (2, 1, 2)
    (difference,) = new.releases[-1].differences
    assert (difference.field, difference.old) == ("template.env", "A")
    assert difference.new == "A, B (changed: A)"
    assert "secret" not in repr(new.releases)


@pytest.mark.parametrize(
    "change", [{"name": "x"}, {"workers_max": 9}, {"idle_s": 60}, {"timeout_ms": 5000}]
)
def test_names_scaling_and_time_limits_make_no_version(change):
    old = released(None, ROW, 1)
    assert released(old, replace(old, **change), 2).version == 1


def test_a_change_back_is_a_version_again_and_old_releases_go():
    row = released(None, ROW, 1)
    for number in range(30):
        row = released(
            row, replace(row, container=replace(row.container, image=f"i:{number}")), number
        )
    assert row.version == 31
    assert len(row.releases) == 20
    assert row.releases[-1].version == 31


def test_an_entry_can_be_used_as_an_endpoint():
    row = replace(
        ROW,
        container=replace(ROW.container, args="python -u 'my handler.py'", entrypoint=("sh", "-c")),
        gpu=Gpu(pools=("ADA_24",), types=("NVIDIA L4",), excluded=("NVIDIA A30",), count=2),
        workers_min=1,
        workers_max=4,
        timeout_ms=600_000,
    )
    endpoint = make_endpoint("e", entry_of(row))
    spec = endpoint.managed
    assert spec.template.command == ("python", "-u", "my handler.py")
    assert spec.template.entrypoint == ("sh", "-c")
    assert spec.gpu.pools == ("NVIDIA L4", "ADA_24", "-NVIDIA A30")
    assert (spec.gpu.count, spec.scaling.workers_min, spec.scaling.workers_max) == (2, 1, 4)
    assert endpoint.execution_timeout_ms == 600_000


def test_no_timeout_is_the_longest_one_and_no_gpu_is_none():
    endpoint = make_endpoint("e", entry_of(replace(ROW, gpu=None)))
    assert endpoint.execution_timeout_ms == NO_TIMEOUT_MS
    assert endpoint.managed.gpu is None


def test_paused_endpoints_may_have_a_workers_min():
    endpoint = make_endpoint("e", entry_of(replace(ROW, workers_min=2, workers_max=0)))
    assert endpoint.managed.scaling.workers_max == 0


def test_the_quota_has_runpods_words():
    rows = [replace(ROW, workers_max=3), replace(ROW, workers_max=2)]
    assert quota_problem(rows, 0, 0) == ""
    assert quota_problem(rows, 0, 5) == ""
    assert quota_problem(rows, 4, 5) == (
        "Max workers across all endpoints must not exceed your workers quota (5). Reduce the max workers for other "
        "endpoints or lower the max worker count for this endpoint to at most 0."
    )


def test_differences_name_gpus():
    found = differences(ROW, replace(ROW, gpu=None))
    assert [(d.field, d.old, d.new) for d in found] == [("gpu", "2 x ADA_24", "")]


def test_reserved_ids_are_those_of_rest_v2():
    assert {"serverless", "catalog", "billing"} <= RESERVED


def test_a_network_volume_is_mounted_where_runpod_mounts_it():
    endpoint = make_endpoint("e", entry_of(replace(ROW, volumes=("abcdefghij", "other"))))
    (mount,) = endpoint.managed.template.volumes
    assert (mount.name, mount.path) == ("nv-abcdefghij", "/runpod-volume")
