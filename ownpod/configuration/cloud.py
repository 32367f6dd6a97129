"""The keys of a cloud worker: an endpoint of RunPod, or of another OwnPod, to which jobs go that have waited too long."""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validates_schema

from ownpod.configuration.fields import (
    Keys,
    Parsed,
    choice,
    flag,
    listing,
    matching,
    nested,
    number,
    whole,
)
from ownpod.configuration.hours import DaysField, MinuteOfDayField, TimeZoneField
from ownpod.configuration.workers import WorkerSchema
from ownpod.rules.endpoints import WorkerKind, WorkerSource, WorkerSpec
from ownpod.rules.hours import MINUTES_OF_A_DAY
from ownpod.rules.overflow import CloudSpec, LanUrls, micro
from ownpod.rules.templates import Hours
from ownpod.settings import Settings
from ownpod.validation import NAME, check_file, check_http_url

DEFAULT_ID = "runpod"

MOST_MONEY = 1_000_000
"""Largest budget and price, in units of the currency."""

MOST_HOURS = 100
"""Maximum number of a cloud worker's hours."""

_MONEY = re.compile(r"[0-9]{1,7}(\.[0-9]{1,12})?")
_KEY = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]{0,254}|(?!env:)[!-~]{1,1000}")
_SPAN = re.compile(r"([0-9]{1,2})(?::([0-5][0-9]))? ?- ?([0-9]{1,2})(?::([0-5][0-9]))?")
_SPAN_FORM = 'hours such as "08-22" or "08:30-18:00", in quotes, or a list of objects with the keys days, from, to'


def _url(value: str) -> None:
    check_http_url(value)
    if not re.search(r"/v2/[A-Za-z0-9_-]{1,255}/?$", value):
        raise ValidationError(
            "must be the URL of an endpoint, like https://api.runpod.ai/v2/<its id>"
        )


def _money(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    # YAML reads 0.00034 as a float, whose shortest text has the digits of the file.
    text = value.strip() if isinstance(value, str) else f"{Decimal(repr(value)):f}"
    if not _MONEY.fullmatch(text):
        raise ValueError
    try:
        found = Decimal(text)
    except InvalidOperation:
        raise ValueError from None
    if found > MOST_MONEY:
        raise ValueError
    return found


def money(**options: Any) -> Parsed:
    """An amount of money as an exact decimal number."""
    return Parsed(_money, f"an amount of money such as 0.00034, from 0 to {MOST_MONEY}", **options)


class _BudgetSchema(Keys):
    error_messages = listing("perDay")

    per_day = money(data_key="perDay", required=True)


class _WindowSchema(Keys):
    error_messages = listing("days", "from", "to")

    days = DaysField(load_default=tuple(range(7)))
    from_min = MinuteOfDayField(data_key="from", required=True)
    to_min = MinuteOfDayField(data_key="to", required=True)


class _Windows(fields.Field[Any]):
    """``"08-22"``, ``"08:30-18:00"``, or a list of objects with days, from and to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": f"must be {_SPAN_FORM}"}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[Hours, ...]:
        if isinstance(value, str):
            return (self._span(value.strip()),)
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_HOURS:
            raise ValidationError(f"must be {_SPAN_FORM}")
        found = []
        for index, one in enumerate(value):
            try:
                found.append(Hours(**_WindowSchema().load(one)))
            except ValidationError as error:
                raise ValidationError({index: error.normalized_messages()}) from None
        return tuple(found)

    def _span(self, text: str) -> Hours:
        match = _SPAN.fullmatch(text)
        if match is None:
            raise ValidationError(f"must be {_SPAN_FORM}")
        start, end = (int(match[n]) * 60 + int(match[n + 1] or 0) for n in (1, 3))
        if start >= MINUTES_OF_A_DAY or end > MINUTES_OF_A_DAY or start == end:
            raise ValidationError(f"must be {_SPAN_FORM}")
        return Hours(tuple(range(7)), start, end)


class CloudWorkerSchema(Schema):
    """A cloud worker in ``workers.yaml``."""

    class Meta:
        unknown = RAISE

    error_messages = {  # noqa: RUF012 - marshmallow's own name
        "unknown": "is not a key of a cloud worker; the keys are cloud, key, id, after, max, budget, price, hours, "
        "timezone, allowSecrets, lanUrls, verifyTls, caBundle"
    }

    cloud = fields.String(required=True, validate=_url)
    key = matching(
        _KEY, "a key of visible characters, or env:<the variable that has it>", load_default=""
    )
    id = matching(NAME, "letters, digits, - and _", load_default=DEFAULT_ID)
    after_s = number(0, 86_400, data_key="after", load_default=30.0)
    max = whole(1, 1000, load_default=1)
    budget = nested(_BudgetSchema)
    price = money(load_default=Decimal(0))
    hours = _Windows(load_default=())
    timezone = TimeZoneField(load_default="")
    allow_secrets = flag(data_key="allowSecrets", load_default=False)
    lan_urls = choice(LanUrls, data_key="lanUrls", load_default=LanUrls.WARN)
    verify_tls = flag(data_key="verifyTls")
    ca_bundle = fields.String(data_key="caBundle", validate=check_file)

    @validates_schema
    def _has_a_price(self, values: dict[str, Any], **_: Any) -> None:
        if "budget" in values and not values["price"]:
            raise ValidationError({"price": ["is missing; a budget has no effect without it"]})


class WorkerField(fields.Field[dict[str, Any]]):
    """A worker of an endpoint in ``workers.yaml``: one with a ``url``, or with ``cloud``."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, Any]:
        is_cloud = isinstance(value, dict) and "cloud" in value
        schema: Schema = CloudWorkerSchema() if is_cloud else WorkerSchema()
        loaded: dict[str, Any] = schema.load(value)
        return loaded


def make_cloud_worker(
    endpoint_id: str, values: Mapping[str, Any], settings: Settings
) -> WorkerSpec:
    """A cloud worker from the values that :class:`CloudWorkerSchema` has loaded. ``OWNPOD_WORKER_HEADERS`` are not sent there,
    because they may be secrets of this network.
    """
    budget = values.get("budget")
    return WorkerSpec(
        id=values["id"],
        endpoint=endpoint_id,
        url=values["cloud"].rstrip("/"),
        capacity=values["max"],
        headers={},
        verify_tls=values.get("verify_tls", settings.worker_verify_tls),
        ca_bundle=values.get("ca_bundle", settings.worker_ca_bundle),
        kind=WorkerKind.CLOUD,
        source=WorkerSource.FILE,
        cloud=CloudSpec(
            key=values["key"],
            after_s=values["after_s"],
            price_micro_per_s=values["price"] * 1_000_000,
            budget_micro_per_day=None if budget is None else micro(budget["per_day"]),
            hours=values["hours"],
            timezone=values["timezone"],
            allow_secrets=values["allow_secrets"],
            lan_urls=values["lan_urls"],
        ),
    )
