"""A job that names its worker, RunPod's header ``X-Runpod-Worker-Id``. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum

from ownpod.rules.managed import SERVING, ManagedWorker
from ownpod.validation import NAME

HEADER = "X-Runpod-Worker-Id"

FORMS = "must be a worker's id, `strict <id>` or `strict-resume <id>`"


class Affinity(StrEnum):
    """How much a job needs the worker that it names."""

    SOFT = "soft"
    """This worker if it is there and has a free slot; otherwise any worker of the endpoint."""
    STRICT = "strict"
    """Only this worker."""
    STRICT_RESUME = "strict-resume"
    """Only this worker, which OwnPod starts again if it has stopped it."""


_WORD = f"{Affinity.STRICT_RESUME}|{Affinity.STRICT}"

_PIN = rf"(?!(?:{_WORD})$)(?:({_WORD}) +)?({NAME.pattern})"
"""A word without an id is more probably a mistake than the id of a worker."""

PATTERN = f"^(|{_PIN})$"
"""The values of the header, also valid in ECMAScript."""

_HEADER = re.compile(_PIN)


@dataclass(frozen=True)
class Pin:
    """The worker that a client's request names."""

    worker_id: str
    affinity: Affinity

    @property
    def is_strict(self) -> bool:
        return self.affinity is not Affinity.SOFT


def parse_pin(text: str) -> Pin | None:
    """The worker that a header's value names; None: the value is empty.

    Raises:
        ValueError: the value has another form.
    """
    if not text:
        return None
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ValueError(FORMS)
    return Pin(found[2], Affinity(found[1] or Affinity.SOFT))


def is_coming(record: ManagedWorker | None, endpoint_id: str) -> bool:
    """Whether a managed worker is one of the endpoint's and runs, or is on its way; not one that leaves.

    Args:
        record: the worker's; None: there is none.
        endpoint_id: the endpoint of the job.
    """
    return record is not None and record.endpoint == endpoint_id and record.phase in SERVING


def may_resume(record: ManagedWorker | None, endpoint_id: str, release: str | None) -> bool:
    """Whether OwnPod starts a managed worker again for a job. It must have been ready, have ended well, and be of the release
    that runs, because RunPod's worker of another release has another id.

    Args:
        record: the worker's; None: there is none.
        endpoint_id: the endpoint of the job.
        release: the id of the release that is to run; None: the endpoint starts no workers.
    """
    return (
        record is not None
        and record.endpoint == endpoint_id
        and record.phase not in SERVING
        and record.ready_ms is not None
        and not record.ended_badly
        and release is not None
        and record.release == release
    )


def gone(worker_id: str) -> str:
    """The error of a job whose worker has left while the job waited for it."""
    return f"affinity_worker_gone: worker {worker_id!r}, which this job needs, has left"
