"""Why a worker ended, in words."""

import pytest

from ownpod.rules.endings import why_ended

TINI = "[FATAL tini (7)] exec nosuch failed: {}"
CATATONIT = "ERROR (catatonit:6): failed to exec pid1: {}"


@pytest.mark.parametrize(
    ("exit_code", "log", "words"),
    [
        (None, "", "ended, exit code unknown"),
        (0, "", "exit code 0"),
        (3, "", "exit code 3"),
        (-9, "", "killed by SIGKILL"),
        (-60, "", "killed by signal 60"),
        (127, "", "exit code 127"),
        (
            127,
            "a line\n" + TINI.format("No such file or directory"),
            "the image has no command nosuch",
        ),
        (
            126,
            TINI.format("Permission denied"),
            "the command nosuch cannot be started: Permission denied",
        ),
        (3, TINI.format("No such file or directory"), "exit code 3"),
        (1, CATATONIT.format("No such file or directory"), "the image does not have the command"),
        (
            1,
            CATATONIT.format("Permission denied"),
            "the command cannot be started: Permission denied",
        ),
        (3, CATATONIT.format("Permission denied"), "exit code 3"),
    ],
)
def test_the_reason_of_an_end_is_in_words(exit_code, log, words):
    assert why_ended(exit_code, log=log) == words


def test_out_of_memory_is_the_reason_whatever_the_exit_code():
    assert why_ended(-9, out_of_memory=True).startswith("out of memory")
