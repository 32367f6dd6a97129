"""Names of OwnPod's keys in Redis; ``common.lua``, ``journal.lua``, ``deliveries.lua``, ``offers.lua``, ``managed.lua``,
``sessions.lua``, ``tasks.lua``, ``sharing.lua``, ``agents.lua``, ``releases.lua``, ``outputs.lua``, ``budgets.lua`` and ``fronts.lua`` list types
and meanings.

Celery's own keys, the queues, are in :mod:`ownpod.broker.names`.
"""

PREFIX = "ownpod:"
SCHEMA = f"{PREFIX}schema"
JOB = f"{PREFIX}job:"
ENDPOINT = f"{PREFIX}endpoint:"
ENDPOINTS = f"{PREFIX}endpoints"
LEASES = f"{PREFIX}leases"
EXPIRIES = f"{PREFIX}expiries"
WEBHOOKS = f"{PREFIX}webhooks"
EVENTS = f"{PREFIX}events:"
PULL_EVENTS = f"{PREFIX}events"
CHUNKS = f"{PREFIX}chunks:"
JOURNAL = f"{PREFIX}journal:"
RUNS = f"{PREFIX}runs:"
WORKER = f"{PREFIX}worker:"
WAITING = f"{PREFIX}waiting:"
DELAYED = f"{PREFIX}delayed"
PREFERRING = f"{PREFIX}preferring"
ADDED = f"{PREFIX}workers:added"
PAUSED = f"{PREFIX}workers:paused"
PULLING = f"{PREFIX}workers:pulling"
HEARD = f"{PREFIX}workers:heard"
PULL = f"{PREFIX}pull:"
MANAGED = f"{PREFIX}managed"
MANAGED_ENTRIES = f"{PREFIX}workers:managed"
MANAGED_IDLE = f"{MANAGED}:idle"
MANAGED_FAILURES = f"{MANAGED}:failures:"
MANAGED_NOTICES = f"{MANAGED}:notices"
MANAGED_HOST = f"{MANAGED}:host:"
MANAGED_WANTED = f"{MANAGED}:wanted"
MANAGED_STOPPED = f"{MANAGED}:stopped"
OUTPUT = f"{PREFIX}output:"
DEVICES_HELD = f"{PREFIX}devices:held"
DEVICES_RESERVED = f"{PREFIX}devices:reserved"
DEVICES_NEXT = f"{PREFIX}devices:next"
AGENTS = f"{PREFIX}agents"
AGENTS_SEEN = f"{AGENTS}:seen"
AGENTS_DRAINING = f"{AGENTS}:draining"
RELEASES_NEXT = f"{PREFIX}releases:next"
RELEASES_LOOKS = f"{PREFIX}releases:looks"
TASK = f"{PREFIX}task:"
INSTANCE = f"{PREFIX}instance"
CATALOG = f"{PREFIX}catalog:"
CATALOG_VERSION = f"{CATALOG}version"
CATALOG_AUDIT = f"{CATALOG}audit"
CATALOG_DELETED = f"{CATALOG}deleted"
SECRETS = f"{PREFIX}secrets"
VOLUME_HOMES = f"{PREFIX}volumes:homes"
VOLUMES_DELETED = f"{PREFIX}volumes:deleted"
MODELS_NEWS = f"{PREFIX}models:news:"
MODELS_ORDERS = f"{PREFIX}models:orders:"
MODELS_FOR = f"{PREFIX}models:for:"
MODELS_PINNED = f"{PREFIX}models:pinned"
MODELS_FETCHES = f"{PREFIX}models:fetches:"
FRONTS = f"{PREFIX}fronts"
MODEL_LISTS = f"{PREFIX}openai:models:"
ATTENDED = f"{PREFIX}attended"
BUDGET = f"{PREFIX}budget:"
SWEEP_LOCK = f"{PREFIX}lock:sweep"


def job(job_id: str) -> str:
    return f"{JOB}{job_id}"


def chunks(job_id: str) -> str:
    return f"{CHUNKS}{job_id}"


def journal(job_id: str) -> str:
    return f"{JOURNAL}{job_id}"


def runs(worker_id: str) -> str:
    return f"{RUNS}{worker_id}"


def pull(worker_id: str) -> str:
    return f"{PULL}{worker_id}"


def managed(worker_id: str) -> str:
    return f"{MANAGED}:{worker_id}"


def task(worker_id: str) -> str:
    """The run of a one-off task's worker."""
    return f"{TASK}{worker_id}"


def output(worker_id: str) -> str:
    """The last lines of a managed worker's output."""
    return f"{OUTPUT}{worker_id}"


def output_state(worker_id: str) -> str:
    """How far a managed worker's output is kept."""
    return f"{OUTPUT}{worker_id}:state"


def idempotency(digest: str) -> str:
    return f"{PREFIX}idempotency:{digest}"


def model_list(endpoint: str) -> str:
    """The endpoint's last list of models, as OpenAI's clients read it."""
    return f"{MODEL_LISTS}{endpoint}"


def of_endpoint(endpoint: str, what: str) -> str:
    return f"{ENDPOINT}{endpoint}:{what}"


def recent(endpoint: str) -> str:
    return of_endpoint(endpoint, "recent")


def queued(endpoint: str) -> str:
    return of_endpoint(endpoint, "queued")


def private(endpoint: str) -> str:
    """Ids of jobs that wait for sessions and one-off tasks' workers."""
    return of_endpoint(endpoint, "private")


def sessions(endpoint: str) -> str:
    """Ids of the endpoint's sessions that are not stopped."""
    return of_endpoint(endpoint, "sessions")


def resumes(endpoint: str) -> str:
    """Ids of stopped workers that jobs wait for, so that they are to be started again."""
    return of_endpoint(endpoint, "resumes")


def waiting(queue: str) -> str:
    return f"{WAITING}{queue}"


def left(endpoint: str) -> str:
    return of_endpoint(endpoint, "left")


def running(endpoint: str) -> str:
    return of_endpoint(endpoint, "running")


def counts(endpoint: str) -> str:
    return of_endpoint(endpoint, "counts")


def housekeeping(host: str) -> str:
    """A string that a host's housekeeping node renews with each sweep; it expires when the node does not."""
    return f"{PREFIX}housekeeping:{host}"


def owner(worker_id: str) -> str:
    return f"{WORKER}{worker_id}:owner"


def worker(worker_id: str) -> str:
    return f"{WORKER}{worker_id}"
