"""What ``celery inspect``, ``celery control`` and Flower's buttons do to a worker's node.

Celery's own commands that would only change the process's memory act on what stands in Redis, so that
job records agree afterwards and a restart forgets nothing. On a node that is no worker's they do what
Celery does.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery.worker import control as celery_control
from celery.worker.control import control_command, inspect_command

from ownpod import broker
from ownpod.errors import OwnPodError
from ownpod.node import Node, this_node

log = logging.getLogger(__name__)

Reply = dict[str, Any]

_celery = {
    name: getattr(celery_control, name)
    for name in ("revoke", "shutdown", "cancel_consumer", "add_consumer")
}


def _aside(call: Callable[..., None], *arguments: str) -> None:
    """In a thread of its own: commands come in the node's event loop, which must not wait."""

    def run() -> None:
        try:
            call(*arguments)
        except OwnPodError as error:
            log.warning("not done: %s", error)

    threading.Thread(target=run, name="control", daemon=True).start()


@control_command(name=broker.LOOK)  # type: ignore[untyped-decorator]
def look(_state: Any) -> None:
    """A job that this node runs was cancelled: forward it to the worker now."""
    if node := this_node():
        node.look()


@inspect_command(name="ownpod_node")  # type: ignore[untyped-decorator]
def describe(_state: Any) -> Reply:
    """The RunPod worker of this node, how it is, and its jobs."""
    node = this_node()
    return node.describe() if node else {"worker": None}


@control_command(  # type: ignore[untyped-decorator]
    name="ownpod_pause", args=[("reason", str)], signature="[reason]"
)
def pause(_state: Any, reason: str = "by hand") -> Reply:
    """Take no more jobs, until ownpod_resume; what runs is finished."""
    return _pause(this_node(), f"paused {reason}")


@control_command(name="ownpod_resume")  # type: ignore[untyped-decorator]
def resume(_state: Any) -> Reply:
    """Take jobs again."""
    node = this_node()
    if node is None:
        return {"error": "this node has no worker"}
    _aside(node.resume)
    return {"ok": "resumed"}


def _pause(node: Node | None, reason: str) -> Reply:
    if node is None:
        return {"error": "this node has no worker"}
    _aside(node.pause, reason)
    return {"ok": reason}


@control_command(args=[("queue", str)], signature="<queue>")  # type: ignore[untyped-decorator]
def cancel_consumer(state: Any, queue: str, **options: Any) -> Any:
    """Stop consuming from a queue; of a worker's endpoint: as ownpod_pause."""
    node = this_node()
    if node is not None and queue == node.queue:
        _pause(node, "paused by cancel_consumer")
        return {"ok": f"no longer consuming from {queue}"}
    return _celery["cancel_consumer"](state, queue, **options)


@control_command(  # type: ignore[untyped-decorator]
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(state: Any, queue: str, *arguments: Any, **options: Any) -> Any:
    """Consume from a queue; from a worker's endpoint's: as ownpod_resume."""
    node = this_node()
    if node is not None and queue == node.queue:
        _aside(node.resume)
        return {"ok": f"add consumer {queue}"}
    if node is not None and broker.is_job_queue(queue):
        return {"error": f"this node's worker serves {node.queue} only"}
    return _celery["add_consumer"](state, queue, *arguments, **options)


@control_command(  # type: ignore[untyped-decorator]
    variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
)
def revoke(state: Any, task_id: Any, *arguments: Any, **options: Any) -> Any:
    """Cancel jobs, by their ids; whether they wait or run."""
    node = this_node()
    ids = [task_id] if isinstance(task_id, str) else list(task_id or [])
    if node is None:
        return _celery["revoke"](state, ids, *arguments, **options)
    for job_id in ids:
        _aside(node.cancel, str(job_id), "revoked with Celery's tools")
    return {"ok": f"tasks {', '.join(map(str, ids))} flagged as revoked"}


@control_command()  # type: ignore[untyped-decorator]
def shutdown(state: Any, **options: Any) -> Any:
    """Finish or hand back what runs, as at SIGTERM, and end."""
    node = this_node()
    if node is None:
        return _celery["shutdown"](state, **options)
    log.warning("shutdown from remote")
    node.stop_soon()
    return None
