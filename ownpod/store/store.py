"""The store: job records and their messages in Redis, as one object with a part for each noun.

Every change is one command of a Lua file, fenced by the attempt. Losing a race is a return value, not an
error. Any call raises :class:`~ownpod.errors.RedisUnavailable` when Redis is away or refuses to write,
and :class:`~ownpod.errors.AnswerLost` when Redis may have executed the command.

Instants are on Redis's clock: callers pass durations, and no host's clock is read here.
"""

from typing import ClassVar

import redis

from ownpod.store.chunks import Chunks
from ownpod.store.client import clock_ms, redis_errors, schema_version
from ownpod.store.common import common_constants
from ownpod.store.deliveries import Deliveries
from ownpod.store.figures import Figures
from ownpod.store.jobs import Jobs
from ownpod.store.journal import JOURNAL_CONSTANTS, Journal
from ownpod.store.listing import Listing
from ownpod.store.messages import Templates
from ownpod.store.overflow import OVERFLOW_CONSTANTS, Overflow
from ownpod.store.queue import Queue
from ownpod.store.runs import Runs
from ownpod.store.schema import Guard
from ownpod.store.scripts import Scripts

FILES = (
    *("common.lua", "journal.lua", "jobs.lua", "runs.lua", "queue.lua", "chunks.lua"),
    *("private.lua", "overflow.lua"),
)

REPEATABLE = frozenset(
    {
        *(
            "create",
            "retry",
            "claim",
            "renew",
            "finish",
            "callback",
            "requeue",
            "cancel",
            "subscribe",
        ),
        *("record_run", "clear_run", "hand_over", "adopt"),
        *(
            "expire",
            "expired",
            "publish_delayed",
            "release_preferring",
            "abandon",
            "purge",
            "purge_some",
            "sample",
        ),
        *("chunks", "progress", "save_cursor", "add_entry", "add_entries"),
        *("end_job", "move_private"),
        *("overflow_seen", "overflow_take", "overflow_keep", "overflow_remote"),
    }
)
"""Commands of :data:`FILES` that change nothing when they are executed a second time."""

INSIST = frozenset({"create", "retry", "cancel", "callback", "purge"})
"""The repeatable commands that clients send: an error would mean "not done" for a command that Redis
may have executed."""


class Store:
    """Job records, and the messages that go with them.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        messages: the templates of Celery's messages.
        result_ttl_s: seconds for which a finished job's record is kept.
    """

    PARTS: ClassVar = frozenset(
        {
            "jobs",
            "runs",
            "queue",
            "chunks",
            "journal",
            "figures",
            "listing",
            "deliveries",
            "overflow",
        }
    )
    """Attributes that :func:`ownpod.store.retry.patient` makes patient too."""

    def __init__(self, client: redis.Redis, messages: Templates, *, result_ttl_s: int) -> None:
        self.client = client
        self.messages = messages
        self.schema = Guard(lambda: schema_version(client))
        """Checks the version of the records, for what runs no script."""
        self.scripts = call = Scripts(
            client,
            *FILES,
            constants=common_constants(messages) + JOURNAL_CONSTANTS + OVERFLOW_CONSTANTS,
            repeatable=REPEATABLE,
            insist=INSIST,
        )
        self.jobs = Jobs(client, call, messages, result_ttl_s=result_ttl_s)
        self.runs = Runs(client, call, messages, result_ttl_s=result_ttl_s)
        self.queue = Queue(client, call, messages, result_ttl_s=result_ttl_s)
        self.chunks = Chunks(client, call, messages, result_ttl_s=result_ttl_s)
        self.journal = Journal(client, call, messages, result_ttl_s=result_ttl_s)
        self.figures = Figures(client, call, messages, result_ttl_s=result_ttl_s)
        self.overflow = Overflow(client, call, messages, result_ttl_s=result_ttl_s)
        self.listing = Listing(client)
        self.deliveries = Deliveries(client, messages)

    def now_ms(self) -> int:
        """Redis's clock, in ms since the epoch: what instants in records are compared with."""
        return clock_ms(self.client)

    @redis_errors
    def ping(self) -> None:
        """Raises: RedisUnavailable, if Redis does not answer."""
        self.client.ping()
