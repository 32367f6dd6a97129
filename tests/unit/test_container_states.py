"""The state of a container, as engines have it."""

import pytest

from ownpod.agent.container_states import end, runs


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
