"""What ``celery inspect``, ``celery control`` and Flower's buttons do to a worker's node.

Celery's own commands that would only change the process's memory act on what stands in Redis, so that
job records agree afterwards and a restart forgets nothing. On a node that is no worker's they do what
Celery does.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from celery.worker import control as celery_control
from celery.worker.control import control_command, inspect_command

from ownpod.broker import names
from ownpod.errors import OwnPodError

log = logging.getLogger(__name__)

Reply = dict[str, Any]


class Node(Protocol):
    """A worker's node, see :class:`ownpod.node.node.Node`."""

    @property
    def queue(self) -> str: ...
    def describe(self) -> Reply: ...
    def look(self) -> None: ...
    def pause(self, reason: str) -> None: ...
    def resume(self) -> None: ...
    def cancel(self, job_id: str, reason: str) -> None: ...
    def stop_soon(self) -> bool: ...


_node: Node | None = None


def act_on(node: Node) -> None:
    """This process is a worker's node."""
    global _node  # noqa: PLW0603 - one process, one node
    _node = node


_celery = {
    # Celery executes the command that was registered last under a name. The functions below have these names, so
    # they replace the built-in commands, which are kept here for nodes without a worker.
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
        except Exception:
            # A thread that dies would end the node, and with it other jobs.
            log.exception("the command was not executed")

    threading.Thread(target=run, name="control", daemon=True).start()


@control_command(name=names.LOOK)  # type: ignore[untyped-decorator]
def look(_state: Any) -> None:
    """A job that this node runs was cancelled: forward it to the worker now."""
    if _node is not None:
        _node.look()


@inspect_command(name="ownpod_node")  # type: ignore[untyped-decorator]
def describe(_state: Any) -> Reply:
    """The RunPod worker of this node, how it is, and its jobs."""
    return {"worker": None} if _node is None else _node.describe()


@control_command(  # type: ignore[untyped-decorator]
    name="ownpod_pause", args=[("reason", str)], signature="[reason]"
)
def pause(_state: Any, reason: str = "by hand") -> Reply:
    """Take no more jobs, until ownpod_resume; what runs is finished."""
    return _pause(f"paused {reason}")


@control_command(name="ownpod_resume")  # type: ignore[untyped-decorator]
def resume(_state: Any) -> Reply:
    """Take jobs again."""
    if _node is None:
        return {"error": "this node has no worker"}
    _aside(_node.resume)
    return {"ok": "resumed"}


def _pause(reason: str) -> Reply:
    if _node is None:
        return {"error": "this node has no worker"}
    _aside(_node.pause, reason)
    return {"ok": reason}


@control_command(args=[("queue", str)], signature="<queue>")  # type: ignore[untyped-decorator]
def cancel_consumer(state: Any, queue: str, **options: Any) -> Any:
    """Stop consuming from a queue; of a worker's endpoint: as ownpod_pause."""
    if _node is not None and queue == _node.queue:
        _pause("paused by cancel_consumer")
        return {"ok": f"no longer consuming from {queue}"}
    return _celery["cancel_consumer"](state, queue, **options)


@control_command(  # type: ignore[untyped-decorator]
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(state: Any, queue: str, *arguments: Any, **options: Any) -> Any:
    """Consume from a queue; from a worker's endpoint's: as ownpod_resume."""
    if _node is not None and queue == _node.queue:
        _aside(_node.resume)
        return {"ok": f"add consumer {queue}"}
    if _node is not None and names.is_job_queue(queue):
        return {"error": f"this node's worker serves {_node.queue} only"}
    return _celery["add_consumer"](state, queue, *arguments, **options)


@control_command(  # type: ignore[untyped-decorator]
    variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
)
def revoke(state: Any, task_id: Any, *arguments: Any, **options: Any) -> Any:
    """Cancel jobs, by their ids; whether they wait or run."""
    ids = [task_id] if isinstance(task_id, str) else list(task_id or [])
    if _node is None:
        return _celery["revoke"](state, ids, *arguments, **options)
    for job_id in ids:
        _aside(_node.cancel, str(job_id), "revoked with Celery's tools")
    return {"ok": f"tasks {', '.join(map(str, ids))} flagged as revoked"}


@control_command()  # type: ignore[untyped-decorator]
def shutdown(state: Any, **options: Any) -> Any:
    """Finish or hand back what runs, as at SIGTERM, and end."""
    if _node is None:
        return _celery["shutdown"](state, **options)
    log.warning("shutdown from remote")
    _node.stop_soon()
    return None
