"""The managing calls of network volumes."""

from collections.abc import Callable
from dataclasses import replace

from ownpod.errors import CatalogInUse, CatalogRefused
from ownpod.management.calls import Caller, Outcome, found, listed, newest_first, write
from ownpod.rules.catalog import Kind, VolumeRow, new_id
from ownpod.store.catalog import Catalog, Change, Snapshot


class Volumes:
    """Lists, adds, changes and deletes network volumes. All calls may raise RedisUnavailable.

    Args:
        catalog: the rows in Redis.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def list(self) -> list[VolumeRow]:
        """All network volumes, the newest first."""
        return newest_first(self._catalog.read().volumes)

    def get(self, volume_id: str) -> VolumeRow:
        """One network volume. Raises: CatalogNotFound."""
        return found(self._catalog.read().volumes, Kind.VOLUME, volume_id)

    def create(
        self, make: Callable[[Snapshot, str], VolumeRow], caller: Caller
    ) -> Outcome[VolumeRow]:
        """Adds a network volume; its directory is made where the first worker with it starts."""
        made_id = new_id(Kind.VOLUME, self._catalog.read().volumes)

        def compute(snapshot: Snapshot) -> tuple[Change, VolumeRow]:
            row = replace(make(snapshot, made_id), id=made_id, created_ms=snapshot.now_ms)
            return Change(put=(row,)), row

        return write(self._catalog, "create", Kind.VOLUME, caller, compute)

    def update(
        self, volume_id: str, change: Callable[[VolumeRow], VolumeRow], caller: Caller
    ) -> Outcome[VolumeRow]:
        """Changes a network volume, which may only grow. Raises: CatalogNotFound, CatalogRefused."""

        def compute(snapshot: Snapshot) -> tuple[Change, VolumeRow]:
            old = found(snapshot.volumes, Kind.VOLUME, volume_id)
            row = replace(change(old), id=volume_id, created_ms=old.created_ms)
            if row.size_gb < old.size_gb:
                raise CatalogRefused(
                    f"size can only be increased: the network volume has {old.size_gb} GB"
                )
            return Change(put=(row,)), row

        return write(self._catalog, "update", Kind.VOLUME, caller, compute)

    def delete(self, volume_id: str, caller: Caller) -> Outcome[VolumeRow]:
        """Deletes a network volume. Raises: CatalogNotFound; CatalogInUse: an endpoint has it."""

        def compute(snapshot: Snapshot) -> tuple[Change, VolumeRow]:
            row = found(snapshot.volumes, Kind.VOLUME, volume_id)
            users = [e.name for e in snapshot.endpoints.values() if volume_id in e.volumes]
            if users:
                raise CatalogInUse(f"network volume {volume_id!r} is in use by {listed(users)}")
            return Change(delete=((Kind.VOLUME, volume_id),)), row

        return write(self._catalog, "delete", Kind.VOLUME, caller, compute)
