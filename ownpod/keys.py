"""Names of everything OwnPod keeps in Redis; ``transitions.lua`` lists types and meanings.

Celery's own keys (queues, ``unacked``) are :mod:`ownpod.broker`'s.
"""

PREFIX = "ownpod:"
JOB = f"{PREFIX}job:"
ENDPOINT = f"{PREFIX}endpoint:"
LEASES = f"{PREFIX}leases"
EVENTS = f"{PREFIX}events"
SWEEP_LOCK = f"{PREFIX}lock:sweep"


def job(job_id: str) -> str:
    return f"{JOB}{job_id}"


def queued(endpoint: str) -> str:
    return f"{ENDPOINT}{endpoint}:queued"


def running(endpoint: str) -> str:
    return f"{ENDPOINT}{endpoint}:running"


def counts(endpoint: str) -> str:
    return f"{ENDPOINT}{endpoint}:counts"


def worker(worker_id: str) -> str:
    return f"{PREFIX}worker:{worker_id}"
