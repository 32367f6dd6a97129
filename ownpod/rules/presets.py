"""Presets: how a model is run for a purpose, for sessions and one-off tasks. Pure.

Source: the GPU service's ``model_presets.yaml``. A preset is an endpoint, named ``<model id>-<preset>``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ownpod.preset_errors import UnknownDifficulty
from ownpod.rules.templates import ManagedSpec

LOW, HIGH = "low", "high"
"""The GPU service's two difficulties."""

DIFFICULTIES: Mapping[str, tuple[str, ...]] = {LOW: (LOW,), HIGH: (HIGH,)}
"""The pools of each difficulty, where the configuration says nothing."""


SESSION_WAIT_S = 60
"""Seconds for which a new session waits for a device by default, because a client waits for its first task."""


def device_wait_s(asked: int | None, configured: int | None, *, one_off: bool) -> int | None:
    """Seconds for which a new worker may wait for a device; None: as long as the job's ttl, 0: it is refused if none is free.

    Args:
        asked: what the client wants; None: it does not say.
        configured: ``OWNPOD_GPU_WAIT_S``; None: it is not set.
        one_off: the worker is a one-off task's.
    """
    if asked is not None:
        return asked
    return configured if configured is not None or one_off else SESSION_WAIT_S


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
    difficulties: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DIFFICULTIES))
    """The pools of each difficulty that a task may name."""

    @property
    def title(self) -> str:
        """Model and preset, for people."""
        return f"{self.model_id}/{self.name}"

    def pools(self, difficulty: str | None = None) -> tuple[str, ...]:
        """The pools of a task, in order of preference; None: of one that names no difficulty.

        Raises:
            UnknownDifficulty: with those that there are.
        """
        wanted = self.difficulty if difficulty is None else difficulty
        if wanted not in self.difficulties:
            raise UnknownDifficulty(wanted, sorted(self.difficulties))
        names = (wanted, *self.spill.get(wanted, ()))
        return tuple(dict.fromkeys(pool for name in names for pool in self.difficulties[name]))

    def for_difficulty(self, spec: ManagedSpec, difficulty: str | None = None) -> ManagedSpec:
        """A spec of this preset with the devices of a difficulty. Raises: UnknownDifficulty."""
        pools = self.pools(difficulty)
        return spec if spec.gpu is None else replace(spec, gpu=replace(spec.gpu, pools=pools))


def endpoint_id(model_id: str, preset: str) -> str:
    """The id of the endpoint of a preset: characters that an endpoint's id cannot have become ``-``."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{model_id}-{preset}")
