"""The state of a container, as engines have it."""

import pytest

from ownpod.agent.container_states import OOM_S, end, runs, unsettled_s


@pytest.mark.parametrize(
    ("status", "running", "found"),
    [
        ("running", True, True),
        ("paused", True, True),
        ("exited", False, False),
        ("created", False, False),
        # Podman's, from SIGTERM to the end, and after it.
        ("stopping", False, True),
        ("stopped", False, False),
    ],
)
def test_a_container_runs_until_its_processes_have_ended(status, running, found):
    assert runs({"Status": status, "Running": running, "ExitCode": 0}) is found


@pytest.mark.parametrize(
    ("code", "killed", "found"),
    [
        (0, False, (0, False)),
        (143, False, (-15, False)),
        (137, True, (-9, True)),
        (137, False, (-9, False)),
        (0, True, (0, False)),
        (255, False, (255, False)),
    ],
)
def test_only_a_container_that_sigkill_ended_is_out_of_memory(code, killed, found):
    assert end({"ExitCode": code, "OOMKilled": killed}) == found


KILLED = {"ExitCode": 137, "OOMKilled": False, "FinishedAt": "1970-01-01T00:01:40.250000123Z"}


@pytest.mark.parametrize(
    ("changes", "now_s", "wait_s"),
    [
        ({}, 100.25, OOM_S),
        ({}, 100.5, OOM_S - 0.25),
        ({}, 100.25 + OOM_S, 0),
        ({"FinishedAt": "1970-01-01T01:01:40.25+01:00"}, 100.5, OOM_S - 0.25),
        # The clock of the engine's host is another one.
        ({}, 0, OOM_S),
        ({}, 9000, 0),
        ({"FinishedAt": "soon"}, 100.25, OOM_S),
        ({"OOMKilled": True}, 100.25, 0),
        ({"ExitCode": 0}, 100.25, 0),
    ],
)
def test_it_is_certain_a_moment_after_its_end_whether_the_memory_limit_ended_a_container(
    changes, now_s, wait_s
):
    assert unsettled_s({**KILLED, **changes}, now_s) == pytest.approx(wait_s, abs=1e-3)
