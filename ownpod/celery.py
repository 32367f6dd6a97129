"""The Celery application: ``celery -A ownpod ...`` finds it here. Settings: :mod:`ownpod.celeryconfig`."""

from celery import Celery

from ownpod import settings
from ownpod.broker import control, names, workarounds
from ownpod.broker.messages import make_templates
from ownpod.settings import Settings
from ownpod.store.client import connect
from ownpod.store.store import Store

workarounds.apply()

app = Celery(
    "ownpod",
    include=[
        "ownpod.node.tasks",
        "ownpod.node.signals",
        "ownpod.housekeeping.tasks",
        "ownpod.housekeeping.signals",
    ],
    amqp="ownpod.broker.queues:LiveAMQP",
)
# By its full name: another project may have a module `celeryconfig` in the current folder.
app.config_from_object("ownpod.celeryconfig")


def open_store(config: Settings, *, client_name: str) -> Store:
    """The jobs in the Redis of the settings. Nothing is sent before the first call.

    Raises:
        ConfigurationError: they name none.
    """
    messages = make_templates(
        app, description_prefix=config.description_prefix, log_inputs=config.log_inputs
    )
    client = connect(config.broker_url(), client_name=client_name)
    return Store(client, messages, result_ttl_s=config.result_ttl_s)


def _purge_jobs(queue: str) -> int | None:
    """Cancels the jobs of an endpoint's queue when ``celery -A ownpod purge`` empties it.

    Otherwise recovery would publish their messages again, because lost messages look the same.
    """
    endpoint = names.endpoint_of(queue)
    if endpoint is None:
        return None
    store = open_store(settings.current(), client_name="ownpod-purge")
    with store.client:
        return store.queue.purge(endpoint, reason="purged with Celery's tools")


# Imported for its commands, which `celery inspect` and `celery control` list.
__all__ = ["app", "control", "open_store"]

workarounds.on_purge(_purge_jobs)
