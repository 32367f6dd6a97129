"""The keys of a cloud worker in ``workers.yaml``."""

from decimal import Decimal

import pytest
import yaml
from helpers import load_settings

from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError
from ownpod.rules.endpoints import Overflow, WorkerKind
from ownpod.rules.overflow import LanUrls
from ownpod.rules.templates import Hours

URL = "https://api.runpod.ai/v2/abc123"
EVERY_DAY = tuple(range(7))


def loaded(tmp_path, *workers, **endpoint):
    file = tmp_path / "workers.yaml"
    file.write_text(yaml.safe_dump({"endpoints": {"ep": {"workers": list(workers), **endpoint}}}))
    settings = load_settings(
        OWNPOD_WORKERS_FILE=file, OWNPOD_WORKER_HEADERS='{"X-Local": "secret"}'
    )
    return load_endpoints(settings)["ep"]


def test_a_url_is_enough(tmp_path):
    endpoint = loaded(tmp_path, {"url": "http://localhost:18000"}, {"cloud": f"{URL}/"})
    assert endpoint.overflow is Overflow.ALLOWED
    local, worker = endpoint.workers
    assert (local.cloud, local.own_queue_only) == (None, False)
    assert (worker.id, worker.url, worker.capacity, worker.kind) == (
        *("runpod", URL, 1),
        WorkerKind.CLOUD,
    )
    assert (worker.has_node, worker.own_queue_only, worker.headers) == (True, True, {})
    assert (worker.cloud.after_s, worker.cloud.budget_micro_per_day) == (30.0, None)


def test_every_key_is_read(tmp_path):
    entry = {
        "cloud": URL,
        "key": "env:RUNPOD_API_KEY",
        "id": "burst",
        "after": 12.5,
        "max": 3,
        "budget": {"perDay": 5.00},
        "price": 0.00034,
        "hours": "08-22",
        "timezone": "UTC",
        "allowSecrets": True,
        "lanUrls": "refuse",
    }
    endpoint = loaded(tmp_path, entry, overflow="never")
    (worker,) = endpoint.workers
    cloud = worker.cloud
    assert (worker.id, worker.capacity, endpoint.overflow) == ("burst", 3, Overflow.NEVER)
    assert (cloud.key, cloud.after_s, cloud.allow_secrets) == ("env:RUNPOD_API_KEY", 12.5, True)
    assert (cloud.price_micro_per_s, cloud.budget_micro_per_day) == (Decimal(340), 5_000_000)
    assert (cloud.hours, cloud.timezone) == ((Hours(EVERY_DAY, 480, 1320),), "UTC")
    assert cloud.lan_urls is LanUrls.REFUSE
    assert "RUNPOD" not in repr(worker)


@pytest.mark.parametrize(
    ("hours", "found"),
    [
        ("08:30-18:00", (Hours(EVERY_DAY, 510, 1080),)),
        ("22-6", (Hours(EVERY_DAY, 1320, 360),)),
        (
            [{"days": "mon-fri", "from": "08:00", "to": "24:00"}],
            (Hours((0, 1, 2, 3, 4), 480, 1440),),
        ),
    ],
)
def test_hours_have_a_short_form_and_that_of_endpoints(tmp_path, hours, found):
    (worker,) = loaded(tmp_path, {"cloud": URL, "hours": hours}).workers
    assert worker.cloud.hours == found


@pytest.mark.parametrize(
    ("price", "micro"), [("0.0000125", Decimal("12.5")), (1e-05, Decimal(10)), (1, Decimal(10**6))]
)
def test_a_price_is_an_exact_decimal_number(tmp_path, price, micro):
    (worker,) = loaded(tmp_path, {"cloud": URL, "price": price}).workers
    assert worker.cloud.price_micro_per_s == micro


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"cloud": "https://api.runpod.ai/v2/"}, ".cloud: must be the URL of an endpoint"),
        ({"cloud": "ftp://api.runpod.ai/v2/x"}, ".cloud: must be an http"),
        ({"cloud": URL, "capacity": 3}, ".capacity: is not a key of a cloud worker"),
        ({"cloud": URL, "after": -1}, ".after: must be a number from 0"),
        ({"cloud": URL, "max": 0}, ".max: must be a whole number from 1"),
        ({"cloud": URL, "price": -1}, ".price: must be an amount of money"),
        ({"cloud": URL, "price": True}, ".price: must be an amount of money"),
        ({"cloud": URL, "budget": 5}, ".budget: must be an object with the keys perDay"),
        ({"cloud": URL, "budget": {"perDay": 5}}, ".price: is missing"),
        ({"cloud": URL, "hours": "8am"}, ".hours: must be hours such as"),
        ({"cloud": URL, "hours": "08-25"}, ".hours: must be hours such as"),
        ({"cloud": URL, "hours": [{"from": "08:00"}]}, ".hours.0.to: must be a time of day"),
        ({"cloud": URL, "timezone": "Mars"}, ".timezone: must be the name"),
        ({"cloud": URL, "lanUrls": "no"}, ".lanUrls: must be one of warn, refuse, allow"),
        ({"cloud": URL, "key": "k e y"}, ": must be a key of visible characters"),
        ({"cloud": URL, "key": "env:"}, ": must be a key of visible characters"),
        ({"url": "http://w", "price": 1}, ".price"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path, entry, problem):
    with pytest.raises(ConfigurationError) as error:
        loaded(tmp_path, entry)
    assert f"endpoints.ep.workers.0{problem}" in str(error.value)
    assert "\n" not in str(error.value)
    assert "k e y" not in str(error.value)


def test_two_cloud_workers_need_two_ids(tmp_path):
    with pytest.raises(ConfigurationError, match="under an `id` of its own"):
        loaded(tmp_path, {"cloud": URL}, {"cloud": f"{URL}x"})
    assert len(loaded(tmp_path, {"cloud": URL}, {"cloud": f"{URL}x", "id": "two"}).workers) == 2


def test_a_load_balanced_endpoint_has_none(tmp_path):
    with pytest.raises(ConfigurationError, match="none can go to a cloud worker"):
        loaded(tmp_path, {"cloud": URL}, type="LB")


def test_overflow_of_an_endpoint_is_never_or_allowed(tmp_path):
    with pytest.raises(ConfigurationError, match="overflow: must be one of never, allowed"):
        loaded(tmp_path, overflow=False)
