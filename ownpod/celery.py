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
)
# By its full name: another project may have a module `celeryconfig` in the current folder.
app.config_from_object("ownpod.celeryconfig")


def open_store(config: Settings, *, client_name: str) -> Store:
    """The jobs in the Redis that the settings name. Nothing is sent before the first call.

    Raises:
        ConfigurationError: they name none.
    """
    messages = make_templates(
        app, description_prefix=config.description_prefix, log_inputs=config.log_inputs
    )
    client = connect(config.broker_url(), client_name=client_name)
    return Store(client, messages, result_ttl_s=config.result_ttl_s)


def _purge_jobs(queue: str) -> int | None:
    """``celery -A ownpod purge`` of an endpoint's queue: its jobs are CANCELLED, and say why.

    Unannounced it would look like a loss, and be made good.
    """
    endpoint = names.endpoint_of(queue)
    if endpoint is None:
        return None
    store = open_store(settings.current(), client_name="ownpod-purge")
    with store.client:
        return store.queue.purge(endpoint, reason="purged with Celery's tools")


# `celery inspect` and `celery control` look there for commands.
__all__ = ["app", "control", "open_store"]

workarounds.on_purge(_purge_jobs)
