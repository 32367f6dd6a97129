"""The remote commands of a worker's node, for ``celery inspect``, ``celery control`` and Flower's buttons.

Some of Celery's built-in commands only change the memory of the node's process. The commands here have the same
names, and change the records in Redis instead, so that job records agree with them and a restart keeps the change.
They replace the built-in ones because Celery uses the last command that was registered under a name. On the
housekeeping node, which has no worker, they call the built-in command.
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
    """The part of a worker's node that commands use; see :class:`ownpod.node.node.Node`."""

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
    """Makes the commands of this process act on this node. Until then they act as on the housekeeping node."""
    global _node  # noqa: PLW0603 - one process, one node
    _node = node


# Read before the functions below are defined, because those replace them in Celery's registry.
_celery = {
    name: getattr(celery_control, name)
    for name in ("revoke", "shutdown", "cancel_consumer", "add_consumer")
}


def _in_thread(call: Callable[..., None], *arguments: str) -> None:
    """Calls a function in a new thread, because commands run in the node's event loop, which must not block."""

    def run() -> None:
        try:
            call(*arguments)
        except OwnPodError as error:
            log.warning("remote command not executed: %s", error)
        except Exception:
            # An exception that leaves a thread ends the node, and its running jobs with it.
            log.exception("remote command not executed")

    threading.Thread(target=run, name="control", daemon=True).start()


@control_command(name=names.LOOK)  # type: ignore[untyped-decorator]
def look(_state: Any) -> None:
    """Check now whether a job of this node was cancelled, and forward that to the worker."""
    if _node is not None:
        _node.look()


@inspect_command(name="ownpod_node")  # type: ignore[untyped-decorator]
def describe(_state: Any) -> Reply:
    """Show the RunPod worker of this node, its state and its jobs."""
    return {"worker": None} if _node is None else _node.describe()


@control_command(  # type: ignore[untyped-decorator]
    name="ownpod_pause", args=[("reason", str)], signature="[reason]"
)
def pause(_state: Any, reason: str = "by hand") -> Reply:
    """Take no more jobs until ownpod_resume. Running jobs finish."""
    return _pause(f"paused {reason}")


@control_command(name="ownpod_resume")  # type: ignore[untyped-decorator]
def resume(_state: Any) -> Reply:
    """Take jobs again."""
    if _node is None:
        return {"error": "this node has no worker"}
    _in_thread(_node.resume)
    return {"ok": "resumed"}


def _pause(reason: str) -> Reply:
    if _node is None:
        return {"error": "this node has no worker"}
    _in_thread(_node.pause, reason)
    return {"ok": reason}


@control_command(args=[("queue", str)], signature="<queue>")  # type: ignore[untyped-decorator]
def cancel_consumer(state: Any, queue: str, **options: Any) -> Any:
    """Stop consuming from a queue. For the queue of the worker's endpoint: the same as ownpod_pause."""
    if _node is not None and queue == _node.queue:
        _pause("paused by cancel_consumer")
        return {"ok": f"no longer consuming from {queue}"}
    return _celery["cancel_consumer"](state, queue, **options)


@control_command(  # type: ignore[untyped-decorator]
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(state: Any, queue: str, *arguments: Any, **options: Any) -> Any:
    """Consume from a queue. For the queue of the worker's endpoint: the same as ownpod_resume."""
    if _node is not None and queue == _node.queue:
        _in_thread(_node.resume)
        return {"ok": f"add consumer {queue}"}
    if _node is not None and names.is_job_queue(queue):
        return {"error": f"this node's worker serves {_node.queue} only"}
    return _celery["add_consumer"](state, queue, *arguments, **options)


@control_command(  # type: ignore[untyped-decorator]
    variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
)
def revoke(state: Any, task_id: Any, *arguments: Any, **options: Any) -> Any:
    """Cancel jobs by their ids, in the queue or running."""
    ids = [task_id] if isinstance(task_id, str) else list(task_id or [])
    if _node is None:
        return _celery["revoke"](state, ids, *arguments, **options)
    for job_id in ids:
        _in_thread(_node.cancel, str(job_id), "revoked with Celery's tools")
    return {"ok": f"tasks {', '.join(map(str, ids))} flagged as revoked"}


@control_command()  # type: ignore[untyped-decorator]
def shutdown(state: Any, **options: Any) -> Any:
    """Drain and end, as at SIGTERM: finish running jobs within the grace period, hand over the others."""
    if _node is None:
        return _celery["shutdown"](state, **options)
    log.warning("shutdown by remote command")
    _node.stop_soon()
    return None
