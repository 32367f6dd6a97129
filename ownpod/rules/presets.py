"""Presets: how a model is run for a purpose, for sessions and one-off tasks. Pure.

Source: the GPU service's ``model_presets.yaml``. A preset is an endpoint, named ``<model id>-<preset>``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ownpod.preset_errors import UnknownDifficulty
from ownpod.rules.templates import ManagedSpec

LOW, HIGH = "low", "high"
"""The GPU service's two difficulties."""

DIFFICULTIES: Mapping[str, tuple[str, ...]] = {LOW: (LOW,), HIGH: (HIGH,)}
"""The pools of each difficulty, where the configuration says nothing."""


SESSION_WAIT_S = 60
"""Seconds for which a new session waits for a device by default, because a client waits for its first task."""


def device_wait_s(asked: int | None, configured: int | None, *, one_off: bool) -> int | None:
    """Seconds for which a new worker may wait for a device; None: as long as the job's ttl, 0: it is refused if none is free
    or freeable.

    Args:
        asked: what the client wants; None: it does not say.
        configured: ``OWNPOD_GPU_WAIT_S``; None: it is not set.
        one_off: the worker is a one-off task's.
    """
    if asked is not None:
        return asked
    return configured if configured is not None or one_off else SESSION_WAIT_S


UNPLACED_S = 60
"""Seconds after which a worker ends that found a free device at once, but no host has taken it: the host may refuse its image, or
its model cannot be had."""


def longest_wait_s(wait_s: int | None) -> int:
    """Seconds after which a wanted worker ends; 0: never. See :class:`ownpod.rules.sessions.SessionWish` for ``wait_s``."""
    return 0 if wait_s is None else wait_s or UNPLACED_S


class OutputMode(StrEnum):
    """What the plain lines are that a one-off task writes to its standard output."""

    AUTO = "auto"
    """Its text, until its first structured line; log lines afterwards."""
    TEXT = "text"
    EVENTS = "events"
    """Log lines; only structured lines are its text and output."""


@dataclass(frozen=True)
class SessionLimits:
    """When a session ends, and how many tasks may wait for it.

    Attributes:
        idle_timeout_s: seconds without work, 0: never.
        max_lifetime_s: seconds from ready, 0: never.
        queue: tasks that may wait, besides those that run.
        hard_lifetime: a task that runs at the end of the lifetime is ended, too.
        from_created: the lifetime begins when the session is created, as the GPU service had it.
        evictable: an idle session may give its device to another endpoint.
    """

    idle_timeout_s: int = 300
    max_lifetime_s: int = 3600
    queue: int = 5
    hard_lifetime: bool = False
    from_created: bool = False
    evictable: bool = False

    def excess(self, idle_s: int | None, life_s: int | None) -> str:
        """What is too long of a client's own limits, which name the field; "": nothing. None: the client has none."""
        for name, given, most in (
            ("idle_timeout_seconds", idle_s, self.idle_timeout_s),
            ("max_lifetime_seconds", life_s, self.max_lifetime_s),
        ):
            if given is not None and 0 < most < given:
                return f"{name}: must be at most {most}, the preset's, not {given}; only an admin key may have more"
        return ""


@dataclass(frozen=True)
class Preset:
    """What an endpoint is for sessions and tasks.

    Attributes:
        difficulty: the pool of a task that names none.
        one_off: how one-off tasks are run; None: the preset has sessions only.
        output: of one-off tasks.
        session: the limits of its sessions; None: the preset has one-off tasks only.
    """

    model_id: str
    name: str
    difficulty: str = LOW
    one_off: ManagedSpec | None = field(repr=False, default=None)
    output: OutputMode = OutputMode.AUTO
    session: SessionLimits | None = SessionLimits()
    spill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Difficulties whose devices a task of a difficulty may also use, in order; empty: its own only."""
    spill_after: Mapping[str, int] = field(default_factory=dict)
    """Seconds for which a task of a difficulty waits for a device of its own before it spills; a missing one: 0."""
    difficulties: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DIFFICULTIES))
    """The pools of each difficulty that a task may name."""

    @property
    def title(self) -> str:
        """Model and preset, for people."""
        return f"{self.model_id}/{self.name}"

    def pools(self, difficulty: str | None = None, *, at_once: bool = False) -> tuple[str, ...]:
        """The pools of a task, in order of preference.

        Args:
            difficulty: None: of a task that names none.
            at_once: only those that it has from the beginning.

        Raises:
            UnknownDifficulty: with those that there are.
        """
        wanted = self.difficulty if difficulty is None else difficulty
        if wanted not in self.difficulties:
            raise UnknownDifficulty(wanted, sorted(self.difficulties))
        later = at_once and self.spill_after_s(wanted) > 0
        names = (wanted, *(() if later else self.spill.get(wanted, ())))
        return tuple(dict.fromkeys(pool for name in names for pool in self.difficulties[name]))

    def spill_after_s(self, difficulty: str | None = None) -> int:
        """Seconds after which a task of a difficulty spills; 0: at once, or never. None: of a task that names none."""
        return self.spill_after.get(self.difficulty if difficulty is None else difficulty, 0)

    def later(self, difficulty: str | None = None) -> dict[str, Any]:
        """What a worker's description keeps of the pools that a task has later, for :func:`ownpod.rules.spill.spilled`; {}: there are none.

        Raises:
            UnknownDifficulty: as :meth:`pools`.
        """
        pools = self.pools(difficulty)
        if pools == self.pools(difficulty, at_once=True):
            return {}
        return {"spill": list(pools), "spill_after_s": self.spill_after_s(difficulty)}

    def for_difficulty(
        self, spec: ManagedSpec, difficulty: str | None = None, *, at_once: bool = False
    ) -> ManagedSpec:
        """A spec of this preset with the devices of a difficulty. ``at_once``: as for :meth:`pools`. Raises: UnknownDifficulty."""
        pools = self.pools(difficulty, at_once=at_once)
        return spec if spec.gpu is None else replace(spec, gpu=replace(spec.gpu, pools=pools))


def endpoint_id(model_id: str, preset: str) -> str:
    """The id of the endpoint of a preset: characters that an endpoint's id cannot have become ``-``."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{model_id}-{preset}")
