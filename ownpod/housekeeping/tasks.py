"""The Celery task of housekeeping: one try of a webhook."""

import logging
import time

from celery.exceptions import Reject

from ownpod.broker import names
from ownpod.broker.process import current
from ownpod.celery import app
from ownpod.housekeeping.signals import Housekeeping

log = logging.getLogger(__name__)


@app.task(name=names.SEND_WEBHOOK)  # type: ignore[untyped-decorator]
def send_webhook(job_id: str) -> None:
    """One try of a finished job's webhook. The sweep publishes a lost task again."""
    housekeeping = current(Housekeeping)
    if housekeeping is None:
        log.error("job %s: its webhook came to a worker's node; its message is requeued", job_id)
        time.sleep(1)
        raise Reject("this node sends no webhooks", requeue=True)
    housekeeping.webhooks.send(job_id)
