"""The remote commands of a worker's node, for ``celery inspect``, ``celery control`` and Flower's buttons.

Four of Celery's own commands are replaced under their names, because Celery's only change the memory of the
process: OwnPod's change the records in Redis, so that a restart keeps the change. A node without a worker
executes Celery's own command.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery.worker import control as celery_control
from celery.worker.control import control_command, inspect_command

from ownpod.broker import names
from ownpod.broker.process import worker_node
from ownpod.errors import OwnPodError

log = logging.getLogger(__name__)

Reply = dict[str, Any]

NO_WORKER = {"error": "this node has no worker"}

_celery = {
    # Celery executes the command that was registered last under a name. The functions below have these names, so
    # they replace the built-in commands, which are kept here for nodes without a worker.
    name: getattr(celery_control, name)
    for name in ("revoke", "shutdown", "cancel_consumer", "add_consumer")
}


def _aside(call: Callable[..., None], *arguments: str) -> None:
    """Calls in a thread of its own, because commands come in the event loop, which must not wait for Redis."""

    def run() -> None:
        try:
            call(*arguments)
        except OwnPodError as error:
            log.warning("remote command not executed: %s", error)
        except Exception:
            # An exception that leaves a thread ends the node, and with it other jobs.
            log.exception("remote command not executed")

    threading.Thread(target=run, name="control", daemon=True).start()


@control_command(name=names.CHECK_RUNS)  # type: ignore[untyped-decorator]
def check_runs(_state: Any) -> None:
    """Check which jobs of this node were cancelled, and cancel them in the worker now."""
    if (node := worker_node()) is not None:
        node.check_runs()


@inspect_command(name="ownpod_node")  # type: ignore[untyped-decorator]
def describe(_state: Any) -> Reply:
    """The worker of this node, its state, and its jobs."""
    node = worker_node()
    return {"worker": None} if node is None else node.describe()


@control_command(  # type: ignore[untyped-decorator]
    name="ownpod_pause", args=[("reason", str)], signature="[reason]"
)
def pause(_state: Any, reason: str = "by hand") -> Reply:
    """Take no more jobs until ownpod_resume; running jobs are finished."""
    return _pause(f"paused {reason}")


@control_command(name="ownpod_resume")  # type: ignore[untyped-decorator]
def resume(_state: Any) -> Reply:
    """Take jobs again."""
    if (node := worker_node()) is None:
        return dict(NO_WORKER)
    _aside(node.resume)
    return {"ok": "resumed"}


def _pause(reason: str) -> Reply:
    if (node := worker_node()) is None:
        return dict(NO_WORKER)
    _aside(node.pause, reason)
    return {"ok": reason}


@control_command(args=[("queue", str)], signature="<queue>")  # type: ignore[untyped-decorator]
def cancel_consumer(state: Any, queue: str, **options: Any) -> Any:
    """Stop consuming from a queue; for a worker's endpoint the same as ownpod_pause."""
    node = worker_node()
    if node is not None and queue == node.queue:
        _pause("paused by cancel_consumer")
        return {"ok": f"no longer consuming from {queue}"}
    return _celery["cancel_consumer"](state, queue, **options)


@control_command(  # type: ignore[untyped-decorator]
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(state: Any, queue: str, *arguments: Any, **options: Any) -> Any:
    """Consume from a queue; for a worker's endpoint the same as ownpod_resume."""
    node = worker_node()
    if node is not None and queue == node.queue:
        _aside(node.resume)
        return {"ok": f"add consumer {queue}"}
    if node is not None and names.is_job_queue(queue):
        return {"error": f"this node's worker serves {node.queue} only"}
    return _celery["add_consumer"](state, queue, *arguments, **options)


@control_command(  # type: ignore[untyped-decorator]
    variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
)
def revoke(state: Any, task_id: Any, *arguments: Any, **options: Any) -> Any:
    """Cancel jobs by their ids, waiting or running."""
    ids = [task_id] if isinstance(task_id, str) else list(task_id or [])
    node = worker_node()
    if node is None:
        return _celery["revoke"](state, ids, *arguments, **options)
    for job_id in ids:
        _aside(node.cancel, str(job_id), "revoked with Celery's tools")
    return {"ok": f"tasks {', '.join(map(str, ids))} flagged as revoked"}


@control_command()  # type: ignore[untyped-decorator]
def shutdown(state: Any, **options: Any) -> Any:
    """Finish or requeue running jobs, as at SIGTERM, and end."""
    node = worker_node()
    if node is None:
        return _celery["shutdown"](state, **options)
    log.warning("shutdown from remote")
    node.stop_soon()
    return None
