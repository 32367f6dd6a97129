"""Which backend of HAProxy an endpoint has while its home moves between fronts."""

from ownpod.front import plan
from ownpod.front.layout import Maps, backends
from ownpod.rules.balancing import FrontState, Route, Server

OWN = Route("ep", servers=(Server("w", "10.0.0.5", 8000),))
PASSED = Route("ep", servers=(Server("front-b", "10.0.0.9", 8000, is_front=True),))


def test_an_endpoint_that_is_passed_on_has_another_backend_and_finds_its_own_again():
    own, _ = plan.assign({"ep": OWN}, {}, backends(4))
    owners = {own["ep"]: plan.owner_of(OWN)}
    passed, _ = plan.assign({"ep": PASSED}, owners, backends(4))
    assert passed["ep"] != own["ep"]
    owners[passed["ep"]] = plan.owner_of(PASSED)
    assert plan.assign({"ep": OWN}, owners, backends(4))[0] == own
    assert plan.assign({"ep": PASSED}, owners, backends(4))[0] == passed


def test_only_the_backend_of_the_front_gets_the_headers_for_fronts():
    chosen, _ = plan.assign({"ep": PASSED}, {}, backends(4))
    maps = plan.maps_of(FrontState(routes={"ep": PASSED}), chosen, {"p003": "ep"}, "localhost")
    assert maps[Maps.REMOTE] == {chosen["ep"]: "1"}
    assert maps[Maps.OWNERS] == {"p003": "ep", chosen["ep"]: "ep@"}
    # One that is left goes on passing what it still has.
    own, _ = plan.assign({"ep": OWN}, {}, backends(4))
    maps = plan.maps_of(FrontState(routes={"ep": OWN}), own, {"p003": "ep@"}, "localhost")
    assert maps[Maps.REMOTE] == {"p003": "1"}


def test_a_backend_that_was_left_is_free_once_it_is_empty():
    owners = {"p000": "ep", "p001": "ep@"}
    assert plan.unused(owners, {"ep@"}, {"p000"}, {}) == (set(), {"p000": "ep"})
    counts = {"ep": {"conn_cur": 1}}
    assert plan.unused(owners, {"ep@"}, (), counts) == (set(), {"p000": "ep"})
    assert plan.unused(owners, {"ep@"}, (), {}) == ({"p000"}, {})
