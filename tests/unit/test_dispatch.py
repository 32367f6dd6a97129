"""The dispatcher's decisions."""

from ownpod.supervisor import STARTS, _Child, to_start


def test_a_thousand_workers_that_come_at_once_are_started_a_few_at_a_time():
    children = [_Child("runs", pid=1), _Child("pauses", start_at=5.0)]
    children += [_Child(f"w{number}") for number in range(1000)]
    first = to_start(children, now=1.0)
    assert [child.name for child in first] == [f"w{number}" for number in range(STARTS)]
    for child in first:
        child.pid = 2
    assert to_start(children, now=1.0)[0].name == f"w{STARTS}"
    assert to_start(children[:2], now=5.0) == [children[1]]
