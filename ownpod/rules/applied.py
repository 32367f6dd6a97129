"""Endpoints of a file for ``ownpod apply``: what would change, and the catalog's endpoints as such a file. Pure.

The keys are those of ``workers.yaml``, and a few of RunPod's. A key that the file does not have means its default.
What such a file cannot have (``ports``, ``flashboot``, CUDA versions, ...) stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ownpod.rules.catalog import Container, Difference, EndpointRow, EndpointType, Gpu
from ownpod.rules.catalog_changes import (
    IN_PLACE,
    differences,
    entry_of,
    gpu_names,
    scaler_of,
    timeout_of,
)
from ownpod.rules.gpu_types import GPU_TYPES
from ownpod.rules.secrets import is_reference
from ownpod.rules.templates import ScalerType

FILE_KEYS = ("name", "networkVolumeIds", "dataCenterIds")
"""Keys of an endpoint of such a file besides those of ``workers.yaml``."""


class VariableUnknown(ValueError):
    """A variable has no value in the file (``null``), and the endpoint has none either."""


@dataclass(frozen=True)
class Wanted:
    """An endpoint as the file describes it; with the defaults of what the file leaves out.

    Attributes:
        env: None as a value: that of the endpoint stays.
        gpu: names of pools and types in order of preference, and the devices of one worker; None: no device.
        own: see :class:`ownpod.rules.catalog.EndpointRow`.
    """

    id: str
    name: str
    image: str
    command: tuple[str, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str | None] = field(repr=False)
    gpu: tuple[tuple[str, ...], int] | None
    workers_min: int
    workers_max: int
    idle_s: int
    scaler: ScalerType
    scaler_value: float
    timeout_ms: int
    expires_ms: int | None = None
    registry: str | None = None
    volumes: tuple[str, ...] = ()
    data_centers: tuple[str, ...] = ()
    own: Mapping[str, str] = field(repr=False, default_factory=dict)
    type: EndpointType = EndpointType.QUEUE


class Action(StrEnum):
    """What applying a file does to an endpoint."""

    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True)
class Step:
    """One endpoint that applying a file changes.

    Attributes:
        row: the endpoint afterwards; of a deletion, as it was.
        restarts: whether its workers are replaced, or stopped.
    """

    action: Action
    row: EndpointRow
    differences: tuple[Difference, ...] = ()
    restarts: bool = False


def step_of(old: EndpointRow | None, wanted: Wanted, applied: str = "") -> Step | None:
    """What makes an endpoint so; None: it is so.

    Args:
        old: the endpoint in the catalog; None: there is none.
        wanted: the endpoint as it should be.
        applied: the mark of the file, for an endpoint that is made now.

    Raises:
        VariableUnknown: a variable that should stay does not exist.
    """
    if old is None:
        row = replace(as_row(None, wanted), applied=applied)
        empty = EndpointRow(row.id, row.name, Container())
        found = (*differences(empty, row), *differences(empty, row, IN_PLACE))
        return Step(Action.CREATE, row, found)
    row = as_row(old, wanted)
    if row == old:
        return None
    structural = differences(old, row)
    found = (*structural, *differences(old, row, IN_PLACE))
    return Step(Action.CHANGE, row, found, restarts=bool(structural))


def left_over(
    rows: Mapping[str, EndpointRow], wanted: Sequence[Wanted], applied: str
) -> list[EndpointRow]:
    """The endpoints that the file has made and does not have any more."""
    names = {one.id for one in wanted}
    return [
        row
        for row in sorted(rows.values(), key=lambda row: row.id)
        if applied and row.applied == applied and row.id not in names
    ]


def as_row(old: EndpointRow | None, wanted: Wanted) -> EndpointRow:
    """The endpoint as it should be. A field whose value means the same in the file stays as it was sent.

    Raises:
        VariableUnknown: a variable that should stay does not exist.
    """
    row = old or EndpointRow(wanted.id, wanted.name, Container())
    changes: dict[str, Any] = {
        "name": wanted.name,
        "type": wanted.type,
        "idle_s": wanted.idle_s,
        "scaler_value": wanted.scaler_value,
        "expires_ms": wanted.expires_ms,
        "volumes": wanted.volumes,
        "data_centers": wanted.data_centers,
        "own": dict(wanted.own),
        "container": _container(row.container, wanted),
        "gpu": _gpu(row.gpu, wanted.gpu),
    }
    if (min(row.workers_min, row.workers_max), row.workers_max) != (
        wanted.workers_min,
        wanted.workers_max,
    ):
        changes |= {"workers_min": wanted.workers_min, "workers_max": wanted.workers_max}
    if old is None or scaler_of(row) is not wanted.scaler:
        changes["scaler"] = wanted.scaler
    if timeout_of(row) != wanted.timeout_ms:
        changes["timeout_ms"] = wanted.timeout_ms
    if wanted.gpu is not None:
        changes["cpus"] = ()
    if changes["container"] != row.container and not row.own_template:
        # Otherwise the next edit of the template would undo the change.
        changes["template_id"] = None
    return replace(row, **changes)


def _container(old: Container, wanted: Wanted) -> Container:
    if unknown := sorted(n for n, v in wanted.env.items() if v is None and n not in old.env):
        raise VariableUnknown(
            f"template.env.{unknown[0]}: has no value in the file, and the endpoint has none that could stay"
        )
    env = {name: old.env[name] if text is None else text for name, text in wanted.env.items()}
    made = replace(
        old,
        image=wanted.image,
        entrypoint=wanted.entrypoint,
        env=env,
        # "" and None mean the same in a row.
        registry=wanted.registry or (None if old.registry else old.registry),
    )
    if _words(old) == wanted.command:
        return made
    return replace(made, args=None, command=wanted.command)


def _words(container: Container) -> tuple[str, ...] | None:
    try:
        return container.words
    except ValueError:
        return None


def _gpu(old: Gpu | None, wanted: tuple[tuple[str, ...], int] | None) -> Gpu | None:
    if wanted is None:
        return None
    names, count = wanted
    if old is not None and (gpu_names(old), old.count) == (names, count):
        return old
    plain = [name for name in names if not name.startswith("-")]
    made = Gpu(
        pools=tuple(name for name in plain if name not in GPU_TYPES),
        types=tuple(name for name in plain if name in GPU_TYPES),
        excluded=tuple(name[1:] for name in names if name.startswith("-")),
        count=count,
    )
    # A pool before a type, or an exclusion alone: only a list of names keeps their order.
    return made if gpu_names(made) == names else Gpu(pools=names, count=count)


def file_entry(row: EndpointRow, *, with_values: bool) -> dict[str, Any]:
    """An endpoint of the catalog as the file has it.

    Args:
        row: the endpoint.
        with_values: whether the values of variables are in it; without them a variable is ``null``, which keeps its
            value. A reference to a secret is always in it.

    Raises:
        ValueError: the quotes of its command do not match.
    """
    entry = entry_of(row)
    template = dict(entry.pop("template"))
    if row.volumes:
        template["volumes"] = template["volumes"][1:]
    if not template.get("volumes", True):
        del template["volumes"]
    if not with_values:
        template["env"] = {n: v if is_reference(v) else None for n, v in template["env"].items()}
    if not template["env"]:
        del template["env"]
    made = {"name": row.name, "template": template, **entry}
    if row.volumes:
        made["networkVolumeIds"] = list(row.volumes)
    if row.data_centers:
        made["dataCenterIds"] = list(row.data_centers)
    return made
