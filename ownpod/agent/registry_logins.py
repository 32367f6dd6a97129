"""The credentials with which this host pulls images: those of the catalog, by the id that a template has."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ownpod.agent.engine import EngineError
from ownpod.errors import RedisUnavailable
from ownpod.rules.catalog import registry_secret
from ownpod.store.catalog import Catalog
from ownpod.store.secrets import Secrets


@dataclass(frozen=True)
class Login:
    """An account of a container registry."""

    username: str
    password: str = field(repr=False)

    def as_auth(self) -> dict[str, str]:
        """As Docker's API has it."""
        return {"username": self.username, "password": self.password}


Logins = Callable[[str], Login | None]
"""Gives the credentials of an id; None for "", so that the login of the agent's user counts. Raises: EngineError."""


def no_logins(registry_id: str) -> Login | None:
    """There are no credentials. Raises: EngineError."""
    if not registry_id:
        return None
    raise EngineError(f"registry credentials {registry_id!r} are not there")


class StoredLogins:
    """The credentials in Redis, whose passwords are encrypted secrets.

    Args:
        catalog: the names of users.
        secrets: the passwords.
    """

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        self._catalog = catalog
        self._secrets = secrets

    def __call__(self, registry_id: str) -> Login | None:
        """See :data:`Logins`."""
        if not registry_id:
            return None
        try:
            row = self._catalog.read().registries.get(registry_id)
            name = registry_secret(registry_id)
            values, problems = self._secrets.values([name])
        except RedisUnavailable as error:
            raise EngineError(
                f"registry credentials {registry_id!r} cannot be read: {error}"
            ) from None
        if row is None or name not in {**values, **problems}:
            raise EngineError(f"registry credentials {registry_id!r} are not there")
        if name in problems:
            raise EngineError(
                f"registry credentials {registry_id!r} cannot be read: {problems[name]}"
            )
        return Login(row.username, values[name])
