"""The Celery application: ``celery -A ownpod ...`` finds it here. Settings: :mod:`ownpod.celeryconfig`."""

from celery import Celery

from ownpod import settings
from ownpod.broker import control, names, workarounds
from ownpod.broker.messages import JobMessages
from ownpod.settings import Settings
from ownpod.store.client import connect
from ownpod.store.jobs import JobStore

workarounds.apply()

app = Celery("ownpod", include=["ownpod.node.tasks", "ownpod.node.node"])
# By its full name: another project may have a module `celeryconfig` in the current folder.
app.config_from_object("ownpod.celeryconfig")


def open_store(config: Settings, *, client_name: str) -> JobStore:
    """The job store, in the Redis that the settings name. It connects at the first call.

    Raises:
        ConfigurationError: the settings name no Redis.
    """
    messages = JobMessages(
        app, description_prefix=config.description_prefix, log_inputs=config.log_inputs
    )
    client = connect(config.broker_url(), client_name=client_name)
    return JobStore(client, messages, result_ttl_s=config.result_ttl_s)


def _purge_jobs(queue: str) -> int | None:
    """Cancels the waiting jobs of an endpoint, for ``celery -A ownpod purge``; returns their number.

    Without this the recovery would publish the deleted messages again, because their jobs still wait. None: the
    queue belongs to no endpoint.
    """
    endpoint = names.endpoint_of(queue)
    if endpoint is None:
        return None
    store = open_store(settings.current(), client_name="ownpod-purge")
    with store.client:
        return store.purge(endpoint, reason="purged with Celery's tools")


# `control` is imported because that registers the commands of `celery inspect` and `celery control`.
__all__ = ["app", "control", "open_store"]

workarounds.on_purge(_purge_jobs)
