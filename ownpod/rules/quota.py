"""The quota of workers of all endpoints together, as RunPod limits an account. Pure."""

from collections.abc import Iterable, Mapping

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.hours import most_workers


def quota_problem(workers_max: int, others: Iterable[Endpoint], quota: int) -> str:
    """Why an endpoint cannot have so many workers; "": it can. The text is RunPod's word for word, because programs read
    the numbers in it.

    Args:
        workers_max: the largest ``workersMax`` that the endpoint ever has.
        others: the other endpoints.
        quota: the largest sum of ``workersMax``; 0: any.
    """
    left = quota - sum(most_workers(other.managed) for other in others if other.managed is not None)
    if not quota or workers_max <= max(left, 0):
        return ""
    return (
        f"Max workers across all endpoints must not exceed your workers quota ({quota}). Reduce the max workers for other "
        f"endpoints or lower the max worker count for this endpoint to at most {max(left, 0)}."
    )


def first_over_quota(endpoints: Mapping[str, Endpoint], quota: int) -> tuple[str, str] | None:
    """The first endpoint, in the order of the file, that is over the quota: its id, and :func:`quota_problem`. None: no
    endpoint is.
    """
    before: list[Endpoint] = []
    for endpoint in endpoints.values():
        if endpoint.managed is not None:
            problem = quota_problem(most_workers(endpoint.managed), before, quota)
            if problem:
                return endpoint.id, problem
        before.append(endpoint)
    return None
