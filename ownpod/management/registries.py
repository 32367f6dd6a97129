"""The managing calls of registry credentials."""

from dataclasses import replace

from ownpod.errors import CatalogInUse, CatalogRefused
from ownpod.management.calls import Caller, Outcome, found, listed, newest_first, write
from ownpod.rules.catalog import Kind, RegistryRow, new_id, registry_secret
from ownpod.store.catalog import Catalog, Change, Snapshot
from ownpod.store.secrets import Secrets


class Registries:
    """Lists, adds, changes and deletes credentials of container registries. All calls may raise RedisUnavailable.

    Args:
        catalog: the rows in Redis.
        secrets: has the passwords.
    """

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        self._catalog = catalog
        self._secrets = secrets

    def list(self) -> list[RegistryRow]:
        """All registry credentials, without passwords, the newest first."""
        return newest_first(self._catalog.read().registries)

    def get(self, registry_id: str) -> RegistryRow:
        """One of them. Raises: CatalogNotFound."""
        return found(self._catalog.read().registries, Kind.REGISTRY, registry_id)

    def save(
        self,
        name: str,
        username: str,
        password: str,
        caller: Caller,
        *,
        registry_id: str | None = None,
    ) -> Outcome[RegistryRow]:
        """Adds registry credentials, or changes those with ``registry_id``.

        Args:
            name: unique; "" keeps the name of existing ones.
            username: of the registry's account.
            password: of the registry's account; encrypted before it is stored.
            caller: for the audit log, and whether it is a dry run.
            registry_id: None: new ones.

        Raises:
            CatalogNotFound: there are none with this id.
            CatalogRefused: others have this name.
            ConfigurationError: this host cannot encrypt, see :class:`ownpod.store.secrets.Secrets`.
        """
        made_id = registry_id or new_id(Kind.REGISTRY, self._catalog.read().registries)

        def compute(snapshot: Snapshot) -> tuple[Change, RegistryRow]:
            if registry_id is None:
                row = RegistryRow(made_id, name, username, snapshot.now_ms)
            else:
                old = found(snapshot.registries, Kind.REGISTRY, registry_id)
                row = replace(old, name=name or old.name, username=username)
            if any(o.name == row.name and o.id != made_id for o in snapshot.registries.values()):
                raise CatalogRefused(f"container registry auth with name {row.name!r} exists")
            return Change(put=(row,)), row

        action = "create" if registry_id is None else "update"
        if caller.dry_run:
            return write(self._catalog, action, Kind.REGISTRY, caller, compute)
        with self._secrets.putting(registry_secret(made_id), password) as edit:
            return write(self._catalog, action, Kind.REGISTRY, caller, compute, beside=edit)

    def delete(self, registry_id: str, caller: Caller) -> Outcome[RegistryRow]:
        """Deletes registry credentials; templates with them lose them, as in RunPod's. Raises: CatalogNotFound."""

        def compute(snapshot: Snapshot) -> tuple[Change, RegistryRow]:
            row = found(snapshot.registries, Kind.REGISTRY, registry_id)
            users = [
                e.name for e in snapshot.endpoints.values() if e.container.registry == registry_id
            ]
            if users:
                raise CatalogInUse(
                    f"container registry auth {registry_id!r} is in use by {listed(users)}"
                )
            put = tuple(
                replace(t, container=replace(t.container, registry=None))
                for t in snapshot.templates.values()
                if t.container.registry == registry_id
            )
            return Change(put=put, delete=((Kind.REGISTRY, registry_id),)), row

        edit = None if caller.dry_run else self._secrets.removing(registry_secret(registry_id))
        return write(self._catalog, "delete", Kind.REGISTRY, caller, compute, beside=edit)
