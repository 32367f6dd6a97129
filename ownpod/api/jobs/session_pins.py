"""Jobs of the queue API that name a session by RunPod's header ``X-Runpod-Worker-Id``."""

import contextlib
from collections.abc import Iterator

from ownpod.api.auth import seen_owner
from ownpod.api.services import services
from ownpod.errors import AffinityWorkerGone, QueueFull, SessionEnded, SessionQueueFull
from ownpod.rules.affinity import Pin
from ownpod.rules.managed import WORKER_ID


def session_of(endpoint_id: str, pin: Pin | None) -> str | None:
    """The session that a request names; None: it names none of this endpoint that its key may use.

    Raises:
        AffinityWorkerGone: it needs this session, which has ended.
        RedisUnavailable: Redis does not answer.
    """
    # An id of another form costs no command of Redis.
    if pin is None or not WORKER_ID.fullmatch(pin.worker_id):
        return None
    sessions, owner = services().sessions, seen_owner()
    if sessions.takes_tasks(pin.worker_id, endpoint_id, owner):
        return pin.worker_id
    session = sessions.get(pin.worker_id, owner)
    if session is None or session.worker.endpoint != endpoint_id:
        return None
    if session.takes_tasks:
        return session.id
    if pin.is_strict:
        raise AffinityWorkerGone(pin.worker_id)
    return None


@contextlib.contextmanager
def in_runpods_words() -> Iterator[None]:
    """Around a submission: the errors of sessions as RunPod's clients know them. Raises: AffinityWorkerGone, QueueFull."""
    try:
        yield
    except SessionEnded as error:
        raise AffinityWorkerGone(error.session_id) from None
    except SessionQueueFull as error:
        raise QueueFull(error.most, f"the queue of session {error.session_id}") from None
