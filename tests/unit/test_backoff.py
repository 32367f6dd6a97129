import pytest
from helpers import load_settings

from ownpod.housekeeping.webhooks import Webhooks
from ownpod.processes import Backoff, Exit, describe_exit
from ownpod.rules.backoff import backoff_s, poll_pause_s


def test_pauses_double_from_the_first_to_the_longest():
    assert [backoff_s(n, 0.5, 5.0) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]


def test_a_thousand_failures_overflow_nothing():
    assert backoff_s(5000, 0.5, 30.0) == 30.0


@pytest.mark.parametrize(("polled_s", "pause_s"), [(0, 0.01), (2, 0.2), (60, 1.0)])
def test_polls_get_rarer_with_the_time_polled_so_far(polled_s, pause_s):
    assert poll_pause_s(polled_s, 0.01, 1.0) == pytest.approx(pause_s)


def test_a_process_that_has_served_for_a_while_is_restarted_at_once():
    backoff = Backoff()
    assert [backoff.next_s(Backoff.STEADY_S) for _ in range(20)] == [0] * 20


def test_pauses_of_a_process_that_ends_early_double_up_to_the_longest():
    backoff = Backoff()
    pauses = [backoff.next_s(0.1) for _ in range(9)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.failures == 9


def test_pauses_begin_again_after_a_process_has_served():
    backoff = Backoff()
    for _ in range(5):
        backoff.next_s(0)
    assert backoff.next_s(Backoff.STEADY_S + 1) == 0
    assert backoff.next_s(0) == Backoff.FIRST_S


def test_a_process_that_ends_thousands_of_times_still_gets_a_pause():
    backoff = Backoff()
    assert {backoff.next_s(0) for _ in range(3000)} == {0.5, 1, 2, 4, 8, 16, 30}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "ended by SIGKILL"),
        (2, "ended with exit code 2"),
        (Exit.FAILED, "ended with exit code 1"),
        (Exit.THREAD_DIED, "ended with exit code 70 (one of its threads died, see its log)"),
        (Exit.WORKER_LOST, "ended with exit code 71 (another node has acquired its worker)"),
    ],
)
def test_an_operator_reads_why_a_node_ended(code, words):
    assert describe_exit(code) == words


def test_every_exit_code_of_a_nodes_own_is_explained():
    assert {code for code in Exit if "(" not in describe_exit(code)} == {Exit.FAILED}


def test_the_pauses_of_a_webhook_double_after_three_tries():
    settings = load_settings(OWNPOD_WEBHOOK_DELAY_S=10)
    webhooks = Webhooks(None, settings)
    assert [webhooks._pause_s(tries) for tries in (1, 2, 3, 4, 5)] == [10, 10, 20, 40, 80]
