from ownpod.processes import Backoff


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
