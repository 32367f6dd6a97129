"""When a request is complete enough for a thread, and the time limits of slow requests."""

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod.api.serving.arrival import (
    BODY_BYTES,
    CREDIT_S,
    HEADER_BYTES,
    HEADER_S,
    Arrival,
    Budget,
    Pace,
    State,
)

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /run HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /run HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"
NOTHING = CHUNKED + b"0\r\n\r\n"
TRAILERS = CHUNKED + b"5\r\nhello\r\n0;x=1\r\nA: b\r\nC: d\r\n\r\n"
LOWER = b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length:5 \r\nA: b\r\n\r\nhello"
REQUESTS = [GET, POST, CHUNKS, NOTHING, TRAILERS, LOWER]


def arrived(*pieces, now_s=0.0):
    arrival = Arrival()
    for piece in pieces:
        arrival.add(piece, now_s)
    return arrival


@pytest.mark.parametrize("request_bytes", REQUESTS)
@given(data=st.data())
def test_a_request_is_ready_with_its_last_byte_however_it_is_cut(request_bytes, data):
    ends = st.lists(st.integers(1, len(request_bytes) - 1), unique=True, max_size=6)
    cuts = [0, *sorted(data.draw(ends)), len(request_bytes)]
    pieces = [request_bytes[a:b] for a, b in itertools.pairwise(cuts)]
    assert arrived(*pieces[:-1]).state is State.MORE
    found = arrived(*pieces)
    assert found.state is State.READY
    assert found.take(10**6) == request_bytes


def test_of_a_long_body_only_the_beginning_is_awaited_without_memory_for_more():
    header = b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n"
    found = arrived(header, b"x" * (BODY_BYTES - 1))
    assert found.state is State.MORE
    found.add(b"x", 0)
    assert found.state is State.READY
    found.await_body(3_000_000)
    assert found.state is State.MORE


def test_a_header_that_the_parser_refuses_is_ready_at_once():
    assert arrived(b"GET / HTTP/1.1\nHost: x").state is State.READY
    both = b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"
    assert arrived(b"POST / HTTP/1.1\r\n" + both + b"\r\n").state is State.READY
    assert arrived(b"GET / HTTP/1.1\r", b"\nHost: x").state is State.MORE


def test_a_header_without_end_is_too_large():
    assert arrived(b"x" * (HEADER_BYTES + 1)).state is State.TOO_LARGE


def test_who_waits_for_100_continue_is_known():
    expect = b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n"
    assert arrived(expect).expects
    assert not arrived(expect.replace(b"1.1", b"1.0")).expects
    assert not arrived(POST).expects


def test_a_header_has_10_s_from_its_first_byte_whatever_comes():
    found = Arrival()
    assert found.due_s is None
    for second in range(9):
        found.add(b"x", 100.0 + second)
    assert found.due_s == 100 + HEADER_S


def ends_after(bytes_per_s, total):
    """Seconds after which a body at this rate is refused; None: it arrives completely."""
    pace, sent = Pace(0), 0
    for second in range(1, 10_000):
        sent += bytes_per_s
        if pace.due_s < second:
            return second
        if sent >= total:
            return None
        pace.earn(bytes_per_s, second)
    raise AssertionError


def test_20_mb_at_100_kb_a_second_pass_and_a_byte_a_second_ends_after_30_s():
    assert ends_after(100_000, 20_000_000) is None
    assert ends_after(1, 20_000_000) == CREDIT_S + 1
    # A fast start does not extend the limit.
    pace = Pace(0)
    pace.earn(10**9, 1)
    assert pace.due_s == 1 + CREDIT_S


def test_a_budget_is_never_above_its_size():
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    budget.release(6)
    assert budget.take(10)


def test_a_workers_result_is_known_by_its_path():
    assert arrived(b"POST /v2/ep/job-done/w/r HTTP/1.1\r\nContent-Length: 5\r\n\r\n").is_result
    assert not arrived(POST).is_result
    assert not arrived(b"POST /v2/ep/job-d").is_result


def test_a_body_that_looks_like_last_chunks_throughout_costs_no_time():
    began = time.process_time()
    found = arrived(CHUNKED)
    for _ in range(3):
        found.add((b"0\r\n" * 5462)[:16383], 0)
    for _ in range(50):
        found.add(b"0\r\n", 0)
    assert found.state is State.MORE
    assert time.process_time() - began < 0.5
    found.add(b"\r\n", 0)
    assert found.state is State.READY


@given(st.lists(st.sampled_from([b"0", b"00;x=1", b"5", b"A: b", b"\r\n", b"\r\n"]), max_size=30))
def test_the_last_chunk_is_found_wherever_it_is_and_however_it_is_cut(pieces):
    body = b"".join(pieces)
    last = re.search(rb"\r\n0+(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n", b"\r\n" + body)
    found = arrived(CHUNKED, *(bytes([byte]) for byte in body))
    assert (found.state is State.READY) is (last is not None)
    assert arrived(CHUNKED + body).state is found.state


CHUNK = b"POST /v2/ep/job-stream/w/job-1?gpu=0 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"


def test_chunks_with_the_same_header_have_the_same_digest_whatever_their_lengths():
    found = [arrived(CHUNK % (size, b"x" * size)) for size in (1, 10, 1000, BODY_BYTES)]
    assert len({arrival.header_digest for arrival in found} - {None}) == 1
    assert all(arrival.state is State.READY for arrival in found)
    assert [len(arrival.body) for arrival in found] == [1, 10, 1000, BODY_BYTES]


def test_a_chunk_that_is_dropped_leaves_the_next_request():
    found = arrived(CHUNK % (5, b"hello"), GET)
    assert found.body == b"hello"
    found.drop()
    assert found.buffer == GET


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET,
        POST,
        CHUNK % (0, b""),
        CHUNK % (BODY_BYTES + 1, b"x" * (BODY_BYTES + 1)),
        (CHUNK % (5, b"hello")).replace(b"1.1", b"1.0"),
        (CHUNK % (5, b"hello")).replace(b"POST", b"PUT"),
        (CHUNK % (5, b"hello")).replace(b"job-stream", b"job-done"),
        (CHUNK % (5, b"hello")).replace(b"Host: x", b"Expect: 100-continue"),
        (CHUNK % (5, b"hello")).replace(b"Host: x", b"Transfer-Encoding: chunked"),
        (CHUNK % (5, b"hello")).replace(b"Content-Length: 5", b"Content-Length: +5"),
        (CHUNK % (5, b"hello")).replace(b"/w/", b"/w /"),
    ],
)
def test_other_requests_have_no_digest(request_bytes):
    assert arrived(request_bytes).header_digest is None


def test_a_second_length_is_part_of_the_digest():
    header = b"POST /v2/ep/job-stream/w/r HTTP/1.1\r\nContent-Length: 5\r\n%b\r\nhello"
    plain, twice = (
        arrived(header % more).header_digest for more in (b"", b"Content-Length: 6\r\n")
    )
    assert plain != twice
