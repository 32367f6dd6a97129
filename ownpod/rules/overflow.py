"""Which jobs go to a cloud worker, when, and what they cost. Pure.

A cloud worker is an endpoint of RunPod, or of another OwnPod, that runs jobs which have waited too long here. Money is a whole
number of micro-units, 1e-6 of the currency of the prices, and is always rounded up.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any

from ownpod.rules.addresses import is_public
from ownpod.rules.hours import first_at
from ownpod.rules.runs import Attempt
from ownpod.rules.templates import Hours

MICRO = 1_000_000
"""Micro-units in one unit of the currency."""

LARGEST_INPUT = 10 * 1024 * 1024
"""Largest input of a job that goes to a cloud worker, in bytes: RunPod's limit of ``/run``."""

RESERVE_FACTOR = Decimal("1.5")
"""A reservation is for the 95th percentile of the endpoint's execution times, times this, because later jobs may be longer."""

FEWEST = 20
"""Least number of executions whose percentile is used, because that of fewer ones may be far off."""

TTL_EXTRA_MS = 600_000
"""Ms for which a job may wait at the other side, in addition to its ``executionTimeout``."""

WARN_PERCENT = 80
"""Share of the day's budget at which the node logs a warning."""

HOPS_HEADER, MOST_HOPS = "X-OwnPod-Hops", 1
"""The header with the number of OwnPods that a job has come through, and the largest number that a submission may have."""


class LanUrls(StrEnum):
    """What becomes of a job whose input names an address that only this network can reach."""

    WARN = "warn"
    REFUSE = "refuse"
    ALLOW = "allow"


@dataclass(frozen=True)
class CloudSpec:
    """When jobs go to a cloud worker, and what they may cost.

    Attributes:
        key: the API key there, or ``env:<variable>``, which the node's environment has; "": none.
        after_s: seconds for which a job must have waited here.
        price_micro_per_s: micro-units for each second of execution.
        budget_micro_per_day: micro-units that may be spent on one day of UTC; None: any number.
        hours: parts of the week in which jobs go there; (): always.
        timezone: of ``hours``; "": that of the node's process.
        allow_secrets: also jobs with an ``s3Config``, which has a client's credentials.
        lan_urls: what becomes of a job with an address of this network.
    """

    key: str = field(repr=False)
    after_s: float
    price_micro_per_s: Decimal
    budget_micro_per_day: int | None = None
    hours: tuple[Hours, ...] = ()
    timezone: str = ""
    allow_secrets: bool = False
    lan_urls: LanUrls = LanUrls.WARN


@dataclass(frozen=True)
class Spent:
    """Micro-units of a worker on the present day of UTC: spent by runs that have ended, and reserved for those that have not."""

    spent: int = 0
    reserved: int = 0

    @property
    def total(self) -> int:
        return self.spent + self.reserved


@dataclass(frozen=True)
class Decision:
    """Whether jobs go to a cloud worker now. ``reason``: why they do not; "": they go."""

    reason: str = ""

    @property
    def sends(self) -> bool:
        return not self.reason


def micro(amount: Decimal) -> int:
    """An amount of money in micro-units, rounded up."""
    return int((amount * MICRO).to_integral_value(ROUND_CEILING))


def amount(micro_units: int) -> str:
    """Micro-units as people read them: with two digits behind the point, or as many as there are."""
    units = Decimal(micro_units) / MICRO
    return f"{units:.2f}" if micro_units % 10_000 == 0 else f"{units.normalize():f}"


def cost_micro(ran_ms: int, price_micro_per_s: Decimal) -> int:
    """What a run costs. RunPod bills the worker's start and idle time, too, which this estimate does not have."""
    cost = Decimal(max(ran_ms, 0)) * price_micro_per_s / 1000
    return int(cost.to_integral_value(ROUND_CEILING))


def reserve_micro(execution_timeout_ms: int, p95_ms: int | None, price_micro_per_s: Decimal) -> int:
    """What is reserved for a run before it begins.

    Args:
        execution_timeout_ms: the longest time that the job may run.
        p95_ms: the 95th percentile of the endpoint's execution times; None: not known.
        price_micro_per_s: the price.
    """
    usual_ms = execution_timeout_ms if p95_ms is None else int(p95_ms * RESERVE_FACTOR)
    return cost_micro(min(execution_timeout_ms, usual_ms), price_micro_per_s)


def p95_ms(counts: Sequence[int], ends: Sequence[int]) -> int | None:
    """The 95th percentile of a histogram, in ms: the upper end of its bucket. None: there are too few values, or it is above
    the last end.

    Args:
        counts: number of values in each bucket, and of those above the last.
        ends: upper ends of the buckets, in ms.
    """
    total, below = sum(counts), 0
    if total < FEWEST:
        return None
    for count, end in zip(counts, ends, strict=False):
        below += count
        if below >= total * 0.95:
            return end
    return None


def fits(spec: CloudSpec, spent: Spent, next_micro: int) -> bool:
    """Whether the day's budget has room for a further reservation."""
    limit = spec.budget_micro_per_day
    return limit is None or spent.total + next_micro <= limit


def decide(
    spec: CloudSpec,
    *,
    oldest_wait_s: float | None,
    now_ms: int,
    spent: Spent,
    next_reserve: int,
    breaker: str = "",
    allowed: bool = True,
) -> Decision:
    """Whether jobs go to a cloud worker now.

    Args:
        spec: of the worker.
        oldest_wait_s: seconds for which the oldest job that may go there has waited; None: there is none.
        now_ms: ms since the epoch, for the hours.
        spent: the money of the present day.
        next_reserve: micro-units that the oldest job would reserve.
        breaker: why the other side takes no jobs now; "": it may take some.
        allowed: whether the endpoint allows overflow.
    """
    if not allowed:
        return Decision("the endpoint's `overflow` is never")
    if breaker:
        return Decision(breaker)
    if spec.hours and first_at(spec.hours, spec.timezone, now_ms) is None:
        return Decision("it is outside of its hours")
    if not fits(spec, spent, next_reserve):
        return Decision(over_budget(spec, spent))
    if oldest_wait_s is None or oldest_wait_s < spec.after_s:
        return Decision(f"not needed: no job that may go there has waited {spec.after_s:g} s")
    return Decision()


def over_budget(spec: CloudSpec, spent: Spent) -> str:
    """Why there is no money for another job."""
    limit = spec.budget_micro_per_day or 0
    return (
        f"the day's budget of {amount(limit)} has no room for another job: "
        f"{amount(spent.spent)} spent, {amount(spent.reserved)} reserved"
    )


def refusal(attempt: Attempt, spec: CloudSpec) -> str | None:
    """Why a job never goes to a cloud worker; None: it may. A pinned job is in another queue, and never gets here."""
    if attempt.stays:
        return "its policy.overflow is false, or its client's key is in OWNPOD_OVERFLOW_NEVER_KEYS"
    if attempt.hops >= MOST_HOPS:
        return "it came from another OwnPod"
    if len(attempt.input.encode()) > LARGEST_INPUT:
        return f"its input is larger than {LARGEST_INPUT // 1024 // 1024} MiB"
    if attempt.s3_config is not None and not spec.allow_secrets:
        return "it has an s3Config, and `allowSecrets` is not set"
    if spec.lan_urls is LanUrls.REFUSE and (host := lan_host(attempt.input)) is not None:
        return f"its input names {host}, an address of this network"
    return None


# It begins with "://", because a search for a scheme's letters first takes a minute for 50 KiB of them.
_URL = re.compile(r"://(?:[^\s/\"'<>\\]*@)?(\[[^\]]*\]|[^\s/:?#\"'<>,;)}\\]+)")
_LOCAL_ENDS = (".local", ".lan", ".internal", ".home.arpa", ".localhost", ".localdomain")


def lan_host(text: str) -> str | None:
    """The first host in the URLs of a JSON text that only this network can reach; None: there is none."""
    for part in _texts(text):
        for match in _URL.finditer(part):
            host = match[1].strip("[]").rstrip(".").lower()
            if host and not _is_outside(host):
                return host[:100]
    return None


def _texts(text: str) -> Iterator[str]:
    """The parts of a JSON text that may have URLs, without JSON's escapes."""
    if "://" not in text and "\\" not in text:
        return
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        yield text
        return
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            left += reversed(found)
        elif isinstance(found, dict):
            left += reversed([*found.keys(), *found.values()])


def _is_outside(host: str) -> bool:
    """Whether a host may be on the internet: a public address, or a name with a dot that is not local."""
    host = unicodedata.normalize("NFKC", host)
    # A number at the end makes an address of it, also in forms that only some clients read, like 0x7f.1.
    if ":" in host or re.fullmatch(r"0x[0-9a-f]*|[0-9]+", host.rpartition(".")[2]):
        return is_public(host)
    return "." in host and not host.endswith(_LOCAL_ENDS)
