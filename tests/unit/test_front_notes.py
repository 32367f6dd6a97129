"""The front's log."""

import logging

from helpers import worker_spec

from ownpod.front.notes import Notes
from ownpod.rules.balancing import Balancing, Server
from ownpod.rules.endpoints import Endpoint, WorkerKind
from ownpod.rules.fronts import View
from ownpod.rules.probing import HEALTHY, UNASKED, refused, soon, target_of


def test_a_normal_start_is_logged_without_a_question_about_the_port(caplog):
    caplog.set_level(logging.INFO)
    worker = worker_spec("http://127.0.0.1:8000", id="w", kind=WorkerKind.HTTP)
    balancing = Balancing()
    view = View(endpoints={"ep": Endpoint("ep", (worker,), 1, 1, 1, 0, balancing=balancing)})
    target = target_of(Server("w", "127.0.0.1", 8000), balancing, managed=True)
    notes, found = Notes(), refused(target, 8000)
    for verdict in (UNASKED, soon(found, target, 0), HEALTHY):
        notes.turn(view, {"w": verdict})
    assert [record.getMessage() for record in caplog.records] == [
        "endpoint ep is load-balanced: /lb/ep/",
        "worker w of ep is ready",
    ]
    notes.turn(view, {"w": found})
    assert "does it listen on PORT" in caplog.records[-1].getMessage()
