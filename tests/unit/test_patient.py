"""A store whose methods wait while Redis is away."""

import pytest
import redis
from helpers import job_messages

from ownpod.errors import RedisUnavailable
from ownpod.store import retry
from ownpod.store.retry import patient, unrepeatable
from ownpod.store.store import Store


class Part:
    """A part of a store for which Redis is away at the first calls."""

    name = "part"

    def __init__(self, away=1):
        self.calls, self.away = 0, away

    def _answer(self, value):
        self.calls += 1
        if self.calls <= self.away:
            raise RedisUnavailable("away")
        return value

    def read(self, key, *, more=0):
        """What it reads."""
        return self._answer((key, more))

    @unrepeatable
    def write(self):
        return self._answer("written")


def test_a_patient_part_repeats_a_call_until_redis_is_back():
    part = Part()
    assert patient(part).read("key", more=1) == ("key", 1)
    assert part.calls == 2


def test_a_patient_part_has_the_attributes_and_docstrings_of_the_part():
    assert patient(Part()).name == "part"
    assert patient(Part()).read.__doc__ == "What it reads."
    with pytest.raises(AttributeError):
        _ = patient(Part()).nothing


def test_a_call_that_must_not_be_executed_twice_is_not_repeated():
    part = Part()
    with pytest.raises(RedisUnavailable):
        patient(part).write()
    assert part.calls == 1


def test_patience_ends_after_its_time():
    part = Part(away=10)
    with pytest.raises(RedisUnavailable):
        patient(part, longest_s=retry.RETRY_S / 2).read("key")
    assert part.calls == 2


def test_the_parts_of_a_patient_store_are_patient():
    class Whole:
        PARTS = frozenset({"part"})

        def __init__(self):
            self.part, self.other = Part(), Part()

    whole = Whole()
    assert patient(whole).part.read("key") == ("key", 0)
    with pytest.raises(RedisUnavailable):
        patient(whole).other.read("key")


def test_a_store_names_its_parts():
    store = Store(redis.Redis(), job_messages(), result_ttl_s=60)
    assert set(vars(store)) - {"client", "messages", "schema", "scripts"} == Store.PARTS
    assert all(vars(store)[name].__module__.startswith("ownpod.store") for name in Store.PARTS)
