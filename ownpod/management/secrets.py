"""The managing calls of secrets."""

from dataclasses import dataclass, replace

from ownpod.errors import CatalogNotFound, CatalogRefused
from ownpod.management.calls import Caller, Outcome, write
from ownpod.rules.catalog import REGISTRY_SECRET, Kind, SecretRow
from ownpod.rules.secrets import check_name, check_value
from ownpod.store.catalog import Catalog, Change, Snapshot
from ownpod.store.secrets import Secrets


@dataclass(frozen=True)
class SecretCalls:
    """Lists, adds, changes and deletes secrets; no call returns a value. All may raise RedisUnavailable.

    Attributes:
        catalog: descriptions, and the audit log.
        secrets: the encrypted values.
    """

    catalog: Catalog
    secrets: Secrets

    def list(self) -> "list[SecretRow]":
        """All secrets, those of ``ownpod secrets set`` too, the newest first."""
        rows = self.catalog.read().secrets
        found = [
            rows.get(secret.name) or SecretRow(secret.name, created_ms=secret.set_ms or 0)
            for secret in self.secrets.all()
            if not secret.name.startswith(REGISTRY_SECRET)
        ]
        return sorted(found, key=lambda row: (-row.created_ms, row.id))

    def get(self, name: str) -> SecretRow:
        """One secret. Raises: CatalogNotFound."""
        found = next((row for row in self.list() if row.id == name), None)
        if found is None:
            raise CatalogNotFound(Kind.SECRET, name)
        return found

    def create(self, name: str, value: str, description: str, caller: Caller) -> Outcome[SecretRow]:
        """Adds a secret.

        Raises:
            BadRequest: the name or the value is not allowed.
            CatalogRefused: there is one with this name.
            ConfigurationError: this host cannot encrypt.
        """
        check_name(name)
        check_value(value)
        if name.startswith(REGISTRY_SECRET):
            raise CatalogRefused(f"a secret's name must not begin with {REGISTRY_SECRET}")
        if any(row.id == name for row in self.list()):
            raise CatalogRefused(f"secret {name!r} exists")
        return self._save("create", SecretRow(name, description), value, caller)

    def update(
        self, name: str, value: str | None, description: str | None, caller: Caller
    ) -> Outcome[SecretRow]:
        """Gives a secret another value or description. Workers that are started afterwards get the new value.

        Raises:
            BadRequest: the value is not allowed.
            CatalogNotFound: there is none with this name.
            ConfigurationError: this host cannot encrypt.
        """
        row = self.get(name)
        if description is not None:
            row = replace(row, description=description)
        return self._save("update", row, value, caller)

    def delete(self, name: str, caller: Caller) -> Outcome[SecretRow]:
        """Deletes a secret; workers that need it cannot start afterwards. Raises: CatalogNotFound."""
        row = self.get(name)
        outcome = write(
            self.catalog,
            "delete",
            Kind.SECRET,
            caller,
            lambda _snapshot: (Change(delete=((Kind.SECRET, name),)), row),
        )
        if not caller.dry_run:
            self.secrets.remove(name)
        return outcome

    def _save(
        self, action: str, row: SecretRow, value: str | None, caller: Caller
    ) -> Outcome[SecretRow]:
        if value is not None and not caller.dry_run:
            self.secrets.put(row.id, value)

        def compute(snapshot: Snapshot) -> tuple[Change, SecretRow]:
            made = replace(row, created_ms=row.created_ms or snapshot.now_ms)
            return Change(put=(made,)), made

        return write(self.catalog, action, Kind.SECRET, caller, compute)
