"""The managing call that makes a release of an earlier one."""

import json
from dataclasses import dataclass

from ownpod.errors import CatalogRefused
from ownpod.management.calls import Caller
from ownpod.rules.catalog import Difference, Kind
from ownpod.rules.releases import target_of
from ownpod.store.catalog import Audit
from ownpod.store.releases import Releases


@dataclass(frozen=True)
class Rollback:
    """What a rollback has done, or would do.

    Attributes:
        of: number of the release whose workers come back.
        instead_of: number of the release that is given up.
        made: number of the new release; None: it was a dry run.
    """

    of: int
    instead_of: int
    made: int | None = None

    @property
    def difference(self) -> Difference:
        """What changes, as in the answer to any other dry run."""
        return Difference("release", str(self.instead_of), f"{self.of} again")


def roll_back(releases: Releases, endpoint_id: str, number: int | None, caller: Caller) -> Rollback:
    """Makes a release of an earlier one, with an entry in the audit log.

    Args:
        releases: of all endpoints.
        endpoint_id: of the catalog or of the configuration.
        number: of the wanted release; None: the last one before whose workers were ready.
        caller: for the audit log, and whether it is a dry run.

    Raises:
        BadRequest: there is no such release, or its workers are the same.
        CatalogRefused: the endpoint has no releases, or another one was made meanwhile.
        RedisUnavailable: Redis does not answer.
    """
    latest = releases.rollout(endpoint_id).latest
    if latest is None:
        raise CatalogRefused(f"endpoint {endpoint_id!r} has no releases")
    target = target_of(releases.releases(endpoint_id), latest, number)
    would = Rollback(target.number, latest.number)
    if caller.dry_run:
        return would
    change = would.difference
    # The step makes the release after the last one, or none.
    told = json.dumps({change.field: [change.old, f"{latest.number + 1}, which is {change.new}"]})
    made = releases.roll_back(
        endpoint_id,
        latest.number,
        target.number,
        f"rolled back to release {target.number}",
        Audit(caller.by, caller.door, f"rollback {Kind.ENDPOINT}", endpoint_id, told),
    )
    if not made:
        raise CatalogRefused("another release was made meanwhile; see `ownpod releases`")
    return Rollback(target.number, latest.number, made)
