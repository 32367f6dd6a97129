"""Celery's settings, the same for the API, the nodes, ``celery -A ownpod`` and Flower.

Reads no endpoints and connects to nothing. Most settings have a reason in Celery's or kombu's behaviour on
Redis; see docs/architecture.md.
"""

from ownpod import settings
from ownpod.broker import names
from ownpod.broker.queues import LiveQueues
from ownpod.errors import ConfigurationError
from ownpod.rules import redis_url

try:
    broker_url = redis_url.for_celery(settings.current().broker_url())
except ConfigurationError as error:
    settings.exit_on(error)

# The queues that `celery -A ownpod purge` empties and Flower shows. A node selects its own in ownpod/node/node.py.
# Read when they are used, because endpoints come and go at run time.
task_queues = LiveQueues()

# Celery stores no results, because a job's record has its result.
result_backend = None
task_ignore_result = True
task_serializer = "json"
accept_content = ["json"]

# A node reconnects without a limit, because its worker continues to run jobs while Redis is away.
broker_connection_retry_on_startup = True
broker_connection_retry = True
broker_connection_max_retries = None
broker_channel_error_retry = True
broker_pool_limit = 16
broker_pool_acquire_timeout = 5
broker_transport_options = {
    # Without copies of messages in `unacked` while jobs run. They would cost two transactions for each job, and no
    # component needs them: the job's record has a lease, and the recovery publishes a lost message again.
    "ack_emulation": False,
    "priority_steps": names.PRIORITY_STEPS,
    "sep": names.PRIORITY_SEPARATOR,
    # Queues are consumed in the order in which they were added: the worker's own queue before its endpoint's.
    "queue_order_strategy": "priority",
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # Limits the retries of publishers. By default they would block while Redis is away.
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.1,
    "interval_max": 0.2,
}
task_publish_retry = True
task_publish_retry_policy = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.1,
    "interval_max": 0.2,
}

# A message is acknowledged after its task, even if the task raised an error (Celery's default). A message that came
# back would loop; the job's record decides on another attempt.
task_acks_late = True
task_default_queue = names.HOUSEKEEPING_QUEUE
task_create_missing_queues = True
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
worker_pool = "ownpod.broker.workarounds:JobPool"
worker_cancel_long_running_tasks_on_connection_loss = False
worker_disable_rate_limits = True
worker_detect_quorum_queues = False

# Nodes send task events only while a monitor receives them, because each event costs CPU. Flower switches them on
# itself; for other monitors use `celery -A ownpod control enable_events`.
worker_enable_remote_control = True
worker_send_task_events = False
task_send_sent_event = False
worker_redirect_stdouts = False
worker_hijack_root_logger = False
