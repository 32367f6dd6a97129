"""``GET /v1/models`` below ``/openai``: a job as every other, whose answer is kept, because many clients ask for it again and again,
and each time would wake a stopped worker.
"""

import contextlib

from ownpod.api.services import Services
from ownpod.errors import RedisUnavailable
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState
from ownpod.rules.openai import Reply
from ownpod.rules.openai_models import is_made, is_model_list, list_of

FRESH_S = 60.0
"""Seconds for which a list is answered without a worker."""

NO_ROUTE = (404, 405)
"""What a worker answers that has no list. worker-sglang asks its server by POST, which the server refuses."""


def known_list(svc: Services, endpoint: Endpoint) -> Reply | None:
    """The kept list, while it is fresh or the endpoint has no ready worker; None: a worker is to be asked."""
    known = svc.model_lists.get(endpoint.id)
    if known is None:
        return None
    if known.age_s < FRESH_S or not _has_ready_worker(svc, endpoint):
        # A list of the template's has the name that the template has now: no worker is needed to know it.
        made = _list_of(endpoint) if is_made(known.body) else None
        return Reply(200, made or known.body)
    return None


def keep(svc: Services, endpoint: Endpoint, reply: Reply) -> Reply:
    """The response to a client whose request a worker has answered. A good list is kept; in place of an error, the kept one is
    answered.
    """
    if reply.status in NO_ROUTE and (made := _list_of(endpoint)) is not None:
        reply = Reply(200, made)
    with contextlib.suppress(RedisUnavailable):
        if reply.is_error:
            known = svc.model_lists.get(endpoint.id)
            return reply if known is None else Reply(200, known.body)
        if is_model_list(reply.body):
            svc.model_lists.put(endpoint.id, reply.body)
    return reply


def _list_of(endpoint: Endpoint) -> str | None:
    # The operator's names of the model are not secret: clients of the endpoint may see them.
    return None if endpoint.managed is None else list_of(endpoint.managed.template.env)


def _has_ready_worker(svc: Services, endpoint: Endpoint) -> bool:
    shared = tuple(worker for worker in endpoint.workers if not worker.private)
    statuses = svc.registry.fleet.statuses(shared)
    return any(status.state is WorkerState.READY for status in statuses.values())
