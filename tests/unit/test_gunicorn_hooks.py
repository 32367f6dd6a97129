"""The hooks of gunicorn: signals that arrive together, and the end of a process."""

import os
import signal
import sys

import pytest

from ownpod.api.serving.server import on_starting, worker_exit

HUP, TERM, CHLD = signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD


class Server:
    """gunicorn's arbiter, as far as the hooks use it."""

    def __init__(self, arrived: list[int]) -> None:
        self.wait_for_signals = lambda timeout=1.0: arrived


@pytest.mark.parametrize(
    ("arrived", "handled"),
    [
        ([HUP, HUP, HUP], [HUP]),
        ([HUP, CHLD, HUP, CHLD], [HUP, CHLD]),
        ([HUP, HUP, TERM], [TERM]),
        ([HUP, signal.SIGINT, CHLD], [signal.SIGINT, CHLD]),
        ([CHLD], [CHLD]),
        ([], []),
    ],
)
def test_changes_that_arrive_together_are_one_reload_and_none_delays_the_end(
    monkeypatch, tmp_path, arrived, handled
):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {workers: [{url: 'http://a:1'}]}}")
    monkeypatch.setenv("OWNPOD_WORKERS_FILE", str(file))
    server = Server(arrived)
    on_starting(server)
    assert server.wait_for_signals(timeout=1.0) == handled


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (3, 9), (None, 9)])
def test_only_a_process_that_ends_in_order_skips_pythons_own_end(code, ended):
    child = os.fork()
    if not child:
        try:
            if code is not None:
                sys.exit(code)
        except SystemExit:
            worker_exit(None, None)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ended
