"""The queues that Celery knows: those of the endpoints that exist when the queues are used.

Celery reads ``task_queues`` once, when the first message is published. The endpoints are live data, so here they
are read at each use.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from celery.app.amqp import AMQP, Queues
from kombu import Queue

from ownpod import settings
from ownpod.broker.messages import make_queue
from ownpod.broker.names import HOUSEKEEPING_QUEUE, endpoint_queue
from ownpod.configuration import kept_endpoints
from ownpod.errors import ConfigurationError
from ownpod.registry import Registry
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet


class LiveQueues:
    """The value of ``task_queues``: each iteration yields the queue of housekeeping and those of the endpoints.

    Its first iteration ends the process with one line if the endpoints cannot be read from the configuration.
    """

    def __iter__(self) -> Iterator[Queue]:
        endpoints = self._registry.endpoints
        for name in (HOUSEKEEPING_QUEUE, *map(endpoint_queue, endpoints)):
            yield make_queue(name)

    @functools.cached_property
    def _registry(self) -> Registry:
        config = settings.current()
        try:
            configured = kept_endpoints(config)
            client = connect(config.broker_url(), client_name="ownpod-queues")
        except ConfigurationError as error:
            settings.exit_on(error)
        return Registry(configured, Fleet(client), config)


class _KnownQueues(Queues):  # type: ignore[misc]
    """``app.amqp.queues``, without reading the endpoints before all queues are asked for.

    Publishing a message and selecting a node's queues need none but those that they name.
    """

    def __init__(self, queues: Iterable[Queue], **options: Any) -> None:
        super().__init__(None, **options)
        self._live = queues

    def keys(self) -> Any:
        """The names of all queues, for ``celery purge``."""
        self._read()
        return super().keys()

    @property
    def consume_from(self) -> Any:
        """The queues that were selected; all queues if none were, for ``app.control.purge()``."""
        if self._consume_from is None:
            self._read()
        return super().consume_from

    def _read(self) -> None:
        # Without add(), because that would make a node consume from them.
        for queue in self._live:
            self.setdefault(queue.name, queue)
            self._default_consume_from.setdefault(queue.name, queue)


class LiveAMQP(AMQP):  # type: ignore[misc]
    """Celery's ``app.amqp`` with the live queues."""

    queues_cls = _KnownQueues
