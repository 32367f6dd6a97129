"""Whose running jobs tell how long a job of an endpoint waits."""

from types import SimpleNamespace

import pytest

from ownpod.api.jobs.estimates import Estimates
from ownpod.rules.estimates import Pace


@pytest.mark.parametrize(
    ("running", "seconds"),
    [({"own": (4.0,)}, 6), ({"cloud": (9.0,)}, None), ({"own": (4.0,), "cloud": (9.0,)}, 6)],
)
def test_a_job_at_a_cloud_worker_frees_no_slot_for_the_queue(running, seconds):
    workers = [
        SimpleNamespace(id="own", own_queue_only=False, private=False),
        SimpleNamespace(id="cloud", own_queue_only=True, private=False),
    ]
    endpoint = SimpleNamespace(id="ep", workers=workers, managed=None)
    estimates = Estimates(
        SimpleNamespace(endpoint=lambda _: endpoint),
        lambda _: (Pace(run_s=10.0, running=running), 0),
        SimpleNamespace(),
        SimpleNamespace(),
    )
    place = SimpleNamespace(worker_id=None, position=1)
    assert estimates.wait_s(SimpleNamespace(endpoint="ep"), place) == seconds
