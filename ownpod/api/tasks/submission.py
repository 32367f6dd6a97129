"""Submitting tasks: which session or container runs one, without Flask. A task is a job of a private worker."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

from ownpod.api.jobs.submissions import Submission, Submissions
from ownpod.errors import (
    BadRequest,
    NoDeviceFree,
    OwnPodError,
    RedisUnavailable,
    SessionEnded,
    SessionNotFound,
    SessionQueueFull,
)
from ownpod.rules.about import ANY_SESSION, about_of
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.jobs import new_job_id
from ownpod.rules.managed import new_worker_id
from ownpod.rules.presets import Preset, longest_wait_s
from ownpod.rules.sessions import Reason, Session, reason_of, wish_for
from ownpod.rules.task_views import TaskFacts, TaskType, task_facts
from ownpod.rules.templates import ManagedSpec, spec_text
from ownpod.store.sessions import Opened, Sessions
from ownpod.store.store import Store

MOST_OPENINGS = 5
"""Number of sessions that are tried for one task, because a session may end, or others may fill its queue, before its job is
created."""


@dataclass(frozen=True, kw_only=True)
class TaskWish:
    """A task that a client wants.

    Attributes:
        endpoint: of its preset.
        type: whether a session or a fresh container runs it.
        difficulty: the pool of its device; None: the preset's.
        metadata: its input, JSON text of an object.
        timeout_s: seconds for which it may run.
        wait_s: seconds for which a new worker may wait for a device; None: as long as its job does, 0: it is refused if none
            is free or freeable.
        session_id: the session that the client names; None: any, or a new one.
        create_session: always a new session.
        on_disconnect: a word of :class:`ownpod.rules.task_views.OnDisconnect`.
        spec: of a custom task, what its container is started from; None: as the preset has it.
        model_id: of a custom task; None: the preset's.
    """

    endpoint: Endpoint
    type: TaskType
    difficulty: str | None
    metadata: str
    timeout_s: int
    wait_s: int | None
    session_id: str | None = None
    create_session: bool = False
    on_disconnect: str
    spec: ManagedSpec | None = None
    model_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Client:
    """The client of a task.

    Attributes:
        owner: owns the sessions that it makes.
        sees: the owner whose sessions it may use; None: all.
        request_id: its ``X-Request-ID``.
        idempotency_key: its ``Idempotency-Key``, checked; None: there is none.
        caller: its identity, so that two clients can use the same key.
    """

    owner: str = ""
    sees: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    caller: str = ""


@dataclass(frozen=True)
class TaskSubmitted:
    """A task that is in a queue. ``session_id``: None for a one-off task. ``earlier``: an earlier request created it."""

    job_id: str
    endpoint: str
    session_id: str | None
    earlier: bool


class Tasks:
    """Creates tasks.

    Args:
        submissions: creates their jobs.
        sessions: the private workers.
        store: the job records.
    """

    def __init__(self, submissions: Submissions, sessions: Sessions, store: Store) -> None:
        self._submissions = submissions
        self._sessions = sessions
        self._store = store

    def submit(self, wish: TaskWish, client: Client) -> TaskSubmitted:
        """Queues a task. Nothing has changed when it is refused.

        Raises:
            BadRequest: the preset has no such tasks, or the session is of another preset.
            SessionNotFound: there is no such session, or it is another key's.
            SessionEnded: it takes no more tasks.
            SessionQueueFull: as many tasks as may wait for it already.
            NoDeviceFree: no device is free or freeable, and the task does not wait for one.
            IdempotencyConflict: the key was used for another body.
            RedisUnavailable: Redis does not answer.
        """
        preset = wish.endpoint.preset
        if preset is None:
            raise BadRequest(f"endpoint {wish.endpoint.id!r} is no preset")
        submission = _submission(wish, preset, client)
        # Before a session is opened: a repeated request must not open another one.
        if (earlier := self._submissions.earlier(submission)) is not None:
            return self._earlier(earlier)
        if wish.type is TaskType.ONE_OFF:
            return self._one_off(wish, preset, submission, client)
        if wish.session_id is not None:
            if not self._sessions.takes_tasks(wish.session_id, wish.endpoint.id, client.sees):
                check_fits(self.session(wish.session_id, client.sees), wish.endpoint, preset)
            submission = replace(submission, private=wish.session_id)
            return self._create(submission, wish.session_id, found=True)
        return self._of_some_session(wish, submission, client)

    def session(self, session_id: str, sees: str | None) -> Session:
        """A session that takes tasks. Raises: SessionNotFound, SessionEnded."""
        session = self._sessions.get(session_id, sees)
        if session is None:
            raise SessionNotFound(session_id)
        if not session.takes_tasks:
            raise SessionEnded(session_id, reason_of(session.worker) or "")
        return session

    def _of_some_session(
        self, wish: TaskWish, submission: Submission, client: Client
    ) -> TaskSubmitted:
        wanted = wish_for(wish.endpoint, wish.difficulty, wait_s=wish.wait_s)
        if not wish.create_session:
            wanted = replace(wanted, for_task=ANY_SESSION)
        for left in reversed(range(MOST_OPENINGS)):
            opened = self._sessions.open(
                wanted,
                owner=client.owner,
                worker_id=new_worker_id(),
                reuse=not wish.create_session,
            )
            try:
                submitted = self._create(
                    replace(submission, private=opened.id, movable=True),
                    opened.id,
                    found=not opened.created,
                )
            except (SessionEnded, SessionQueueFull):
                if not left:
                    raise
            except OwnPodError:
                self._give_up(opened)
                raise
            else:
                if submitted.earlier:
                    self._give_up(opened)
                return submitted
        raise NoDeviceFree(wanted.difficulty)

    def _give_up(self, opened: Opened) -> None:
        """Ends a session that was opened for a task which it does not get."""
        if opened.created:
            # Otherwise its idle time ends it.
            with contextlib.suppress(RedisUnavailable, SessionNotFound):
                self._sessions.end(opened.id, Reason.MANUAL, drain=True)

    def _one_off(
        self, wish: TaskWish, preset: Preset, submission: Submission, client: Client
    ) -> TaskSubmitted:
        spec = wish.spec or preset.one_off
        if spec is None:
            raise BadRequest(
                f"task_type: preset {preset.name!r} of model {preset.model_id!r} has sessions only"
            )
        spec = preset.for_difficulty(spec, wish.difficulty, at_once=True)
        difficulty = wish.difficulty or preset.difficulty
        if wish.wait_s == 0 and not self._sessions.has_room(wish.endpoint.id, spec):
            raise NoDeviceFree(difficulty)
        worker_id, job_id = new_worker_id(), new_job_id(sync=False)
        self._sessions.open_task(
            worker_id,
            wish.endpoint.id,
            spec=spec,
            job_id=job_id,
            owner=client.owner,
            model_id=wish.model_id or preset.model_id,
            preset=preset.name,
            difficulty=difficulty,
            output=preset.output.value,
            spill=preset.later(wish.difficulty),
            wait_s=longest_wait_s(wish.wait_s),
        )
        # A worker whose job is not created, or was by an earlier request, is ended by housekeeping.
        return self._create(
            replace(submission, private=worker_id, one_off=True, job_id=job_id), None
        )

    def _create(
        self, submission: Submission, session_id: str | None, *, found: bool = False
    ) -> TaskSubmitted:
        if found:
            facts = replace(task_facts(submission.task), found=True)
            # Not in its body, because a repeated request may find the session that the first one has made.
            submission = replace(submission, task=facts.text())
        submitted = self._submissions.submit(submission)
        if submitted.earlier:
            return self._earlier(submitted.job_id)
        return TaskSubmitted(submitted.job_id, submission.endpoint, session_id, earlier=False)

    def _earlier(self, job_id: str) -> TaskSubmitted:
        job, facts, private = self._store.listing.task(job_id)
        session = private if facts.type == TaskType.SESSION else None
        return TaskSubmitted(job_id, job.endpoint, session, earlier=True)


def check_fits(session: Session, endpoint: Endpoint, preset: Preset) -> None:
    """Checks that a session is one of a preset. Raises: BadRequest, which names both."""
    if session.worker.endpoint == endpoint.id:
        return
    known = about_of(session.worker)
    raise BadRequest(
        f"session_id: session {session.id} is of model {known.get('model_id')!r} and preset {known.get('preset')!r}, "
        f"not of {preset.model_id!r} and {preset.name!r}"
    )


def _submission(wish: TaskWish, preset: Preset, client: Client) -> Submission:
    difficulty = wish.difficulty or preset.difficulty
    facts = TaskFacts(
        type=wish.type.value,
        model_id=wish.model_id or preset.model_id,
        preset=preset.name,
        difficulty=difficulty,
        timeout_seconds=wish.timeout_s,
        on_disconnect=wish.on_disconnect,
    )
    body: dict[str, Any] = {
        "input": wish.metadata,
        "policy": {"execution_timeout_ms": wish.timeout_s * 1000},
        "webhook": None,
        "s3_config": None,
        # For the comparison with an earlier request of the same idempotency key.
        "task": [
            facts.text(),
            wish.session_id,
            wish.create_session,
            wish.wait_s,
            spec_text(wish.spec) if wish.spec else "",
        ],
    }
    return Submission(
        endpoint=wish.endpoint.id,
        body=body,
        request_id=client.request_id,
        idempotency_key=client.idempotency_key,
        caller=client.caller,
        task=facts.text(),
        owner=client.owner,
    )
