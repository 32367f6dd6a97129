"""Which front is an endpoint's home."""

from collections import Counter

from helpers import worker_spec
from hypothesis import given
from hypothesis import strategies as st

from ownpod.rules.balancing import Balancing
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.homes import Front, home, home_of, is_limited, publisher_of

NAMES = st.text("abcdef0123456789", min_size=1, max_size=12)
ENDPOINTS = [f"ep-{n}" for n in range(200)]


def endpoint(capacity=0, workers=(), name="ep"):
    return Endpoint(name, workers, 1, 1, 1, 0, balancing=Balancing(capacity=capacity))


@given(st.sets(NAMES, min_size=1, max_size=8), NAMES)
def test_a_home_is_one_of_the_fronts_and_depends_on_nothing_else(fronts, name):
    found = home(name, fronts)
    assert found in fronts
    assert found == home(name, sorted(fronts)) == home(name, sorted(fronts, reverse=True))


@given(st.sets(NAMES, min_size=1, max_size=8), NAMES)
def test_a_front_that_comes_takes_endpoints_for_itself_only(fronts, new):
    before = {name: home(name, fronts) for name in ENDPOINTS}
    after = {name: home(name, fronts | {new}) for name in ENDPOINTS}
    assert all(after[name] in {before[name], new} for name in ENDPOINTS)


def test_endpoints_are_spread_evenly():
    counts = Counter(home(f"ep-{n}", [f"front-{i}" for i in range(4)]) for n in range(4000))
    assert all(800 < counts[f"front-{i}"] < 1200 for i in range(4))


def test_without_a_front_there_is_no_home():
    assert home("ep", ()) is None


def test_an_endpoint_is_limited_by_its_own_capacity_or_a_workers():
    assert not is_limited(endpoint())
    assert is_limited(endpoint(capacity=1))
    assert is_limited(endpoint(workers=(worker_spec("http://h", capacity=2),)))
    assert not is_limited(endpoint(workers=(worker_spec("http://h", capacity=0),)))


def test_a_front_is_the_home_of_endpoints_without_a_limit():
    me, other = Front("a", "h:1"), Front("b", "h:2")
    assert all(home_of(endpoint(name=n), me, (me, other)) == me for n in ENDPOINTS)


def test_all_fronts_agree_on_the_home_of_an_endpoint_with_a_limit():
    fronts = (Front("a", "h:1"), Front("b", "h:2"), Front("c"))
    homes = set()
    for name in ENDPOINTS:
        limited = endpoint(capacity=1, name=name)
        found = {home_of(limited, me, fronts).id for me in fronts}
        assert len(found) == 1
        assert {publisher_of(limited, me, fronts) for me in fronts} == found
        homes |= found
    # The one without an address cannot be reached.
    assert homes == {"a", "b"}


def test_without_addresses_each_front_is_a_home_and_one_publishes():
    fronts = (Front("a"), Front("b"))
    limited = endpoint(capacity=1)
    assert [home_of(limited, me, fronts) for me in fronts] == list(fronts)
    assert len({publisher_of(limited, me, fronts) for me in fronts}) == 1
