"""Where an agent gets the secrets of a template from: Redis first, then its own environment."""

from collections.abc import Mapping

from ownpod.agent.engine import Engine
from ownpod.errors import WorkerRecordBroken
from ownpod.rules.secrets import (
    given_in,
    mask,
    of_environment,
    resolve,
    secrets_in,
    why_missing,
)
from ownpod.rules.templates import ManagedSpec
from ownpod.store.secrets import Secrets


class SecretValues:
    """The secrets of one agent. Templates without secrets cost nothing: no request, no file, no library.

    Args:
        environ: the agent's environment, with its variables ``OWNPOD_SECRET_<name>``.
        stored: the secrets in Redis; None: there are none.
        engine: knows the variables of workers that an earlier agent has started; None: there are none.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        stored: Secrets | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._own = of_environment(environ)
        self.own_names = tuple(sorted(self._own))
        """Names of the secrets in the agent's own variables."""
        self._stored = stored
        self._engine = engine
        self._given: dict[str, tuple[str, ...]] = {}
        """The values that a worker of this agent was started with, by the worker's id."""

    def problem(self, spec: ManagedSpec) -> str:
        """Why a template's secrets cannot be had here, in words for people; "": they can. Raises: RedisUnavailable."""
        names = secrets_in(spec.template.env)
        if not names:
            return ""
        values, problems = self._values(names)
        for name in names:
            if name in problems:
                return f"secret {name!r} cannot be read: {problems[name]}"
        missing = [name for name in names if name not in values]
        return why_missing(missing) if missing else ""

    def resolve(self, worker_id: str, spec: ManagedSpec, env: Mapping[str, str]) -> dict[str, str]:
        """A worker's variables with the secrets in place of their references.

        Args:
            worker_id: the worker, whose output :meth:`masked` hides these secrets in.
            spec: what the worker is started from.
            env: its variables, those of the template among them.

        Raises:
            SecretMissing: a secret is not there, or cannot be read.
            RedisUnavailable: Redis is away.
        """
        names = secrets_in(spec.template.env)
        values = self._values(names)[0] if names else {}
        if values:
            self._given[worker_id] = tuple(values.values())
        return resolve(env, values)

    def masked(self, worker_id: str, spec: ManagedSpec | None, text: str) -> str:
        """A worker's output without the secrets that the worker was started with.

        Where the agent was restarted meanwhile, those that the worker's variables show are hidden, with those that the
        template has now. If one is in neither, nothing of the output is returned but the reason, because it may have the
        secret.

        Args:
            worker_id: the worker.
            spec: what it was started from; None: secrets that this agent has not given to it need not be hidden.
            text: its output, or a part of it.

        Raises:
            RedisUnavailable, EngineError: only for a worker that an earlier agent has started.
        """
        values = self._given.get(worker_id)
        if values is None and spec is not None and (names := secrets_in(spec.template.env)):
            found = self._values(names)[0]
            # A secret may have been changed since the worker was started.
            given = given_in(spec.template.env, self._engine.env(worker_id) if self._engine else {})
            unknown = next((name for name in names if name not in found | given), None)
            if unknown is not None:
                return (
                    f"(not kept, because the secret {unknown!r} cannot be read now to hide it)"
                    * bool(text)
                )
            values = (*found.values(), *given.values())
            self._given[worker_id] = values
        return mask(text, values) if values else text

    def forget(self, worker_id: str) -> None:
        """The worker has ended, and nothing of its output is read any more."""
        self._given.pop(worker_id, None)

    def _values(self, names: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
        """Values by name, and why others cannot be read. One that is in Redis is never taken from the environment."""
        try:
            values, problems = self._stored.values(names) if self._stored else ({}, {})
        except WorkerRecordBroken as error:
            # Workers of other templates must start nevertheless.
            return {}, dict.fromkeys(names, str(error))
        own = {name: self._own[name] for name in names if name in self._own}
        found = {name: value for name, value in (own | values).items() if name not in problems}
        return found, problems
