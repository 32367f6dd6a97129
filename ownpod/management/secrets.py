"""The managing calls of secrets."""

import json
from dataclasses import dataclass, replace

from ownpod.errors import CatalogNotFound, CatalogRefused
from ownpod.management.calls import Caller, Outcome, write
from ownpod.rules.catalog import REGISTRY_SECRET, Kind, SecretRow
from ownpod.rules.secrets import check_name, check_value
from ownpod.store.catalog import Audit, Catalog, Change, Snapshot
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

    def put(self, name: str, value: str, caller: Caller) -> Outcome[SecretRow]:
        """Adds a secret, or gives one another value. Raises: as :meth:`create` and :meth:`update`."""
        if any(row.id == name for row in self.list()):
            return self.update(name, value, None, caller)
        return self.create(name, value, "", caller)

    def delete(self, name: str, caller: Caller) -> Outcome[SecretRow]:
        """Deletes a secret; workers that need it cannot start afterwards. Raises: CatalogNotFound."""
        return self._delete(self.get(name), caller)

    def remove(self, name: str, caller: Caller) -> bool:
        """As :meth:`delete`, also of the password of registry credentials. False: there is none of this name."""
        check_name(name)
        if all(secret.name != name for secret in self.secrets.all()):
            return False
        self._delete(SecretRow(name), caller)
        return True

    def rotate(self, caller: Caller) -> int:
        """Encrypts all secrets with a new key. Returns their number.

        Raises:
            BadRequest: a secret cannot be read; nothing was changed.
            ConfigurationError: the file with the keys cannot be used.
        """
        with self.secrets.rotating() as edit:

            def compute(_snapshot: Snapshot) -> Change:
                told = json.dumps({"encrypted again": ["", str(len(edit.new))]})
                return Change(audit=Audit(caller.by, caller.door, "rotate secrets", "all", told))

            self.catalog.change(compute, edit)
        return len(edit.new)

    def _delete(self, row: SecretRow, caller: Caller) -> Outcome[SecretRow]:
        change = Change(delete=((Kind.SECRET, row.id),))
        edit = None if caller.dry_run else self.secrets.removing(row.id)
        return write(
            self.catalog,
            "delete",
            Kind.SECRET,
            caller,
            lambda _snapshot: (change, row),
            beside=edit,
        )

    def _save(
        self, action: str, row: SecretRow, value: str | None, caller: Caller
    ) -> Outcome[SecretRow]:
        def compute(snapshot: Snapshot) -> tuple[Change, SecretRow]:
            made = replace(row, created_ms=row.created_ms or snapshot.now_ms)
            return Change(put=(made,)), made

        if value is None or caller.dry_run:
            return write(self.catalog, action, Kind.SECRET, caller, compute)
        with self.secrets.putting(row.id, value) as edit:
            return write(self.catalog, action, Kind.SECRET, caller, compute, beside=edit)
