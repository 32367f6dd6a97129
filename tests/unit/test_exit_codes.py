"""The exit code of a managed worker in words."""

import pytest

from ownpod.rules.managed_states import with_exit_code


@pytest.mark.parametrize(
    ("reason", "exit_code", "words"),
    [
        ("exit code 3", 3, "exit code 3"),
        ("it was ended by SIGKILL", -9, "it was ended by SIGKILL, exit code -9"),
        ("the image has no command x", None, "the image has no command x"),
        ("", 3, "exit code 3"),
        ("", None, ""),
    ],
)
def test_an_exit_code_is_shown_once(reason, exit_code, words):
    assert with_exit_code(reason, exit_code) == words
