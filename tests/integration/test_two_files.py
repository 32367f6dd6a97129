"""The two files of a one-off task's output, which are read as a whole while they grow."""

import pytest

from ownpod.agent.files import KEPT_READ_BYTES, PIECE_BYTES, TwoFiles


@pytest.fixture
def paths(tmp_path):
    found = tmp_path / "output.log", tmp_path / "errors.log"
    for path in found:
        path.touch()
    return found


def source(paths, position="", *, runs=False):
    return TwoFiles(*paths, position, runs=lambda: runs, shorten=lambda: None)


def read_all(reader):
    parts = []
    while (part := reader.read(0)) is not None and part.data:
        parts.append(part)
    return parts


def stream(parts, *, is_error):
    return b"".join(part.data for part in parts if part.is_error is is_error)


def test_each_part_is_of_one_stream_and_both_have_their_turn(paths):
    paths[0].write_bytes(b"o" * 3 * PIECE_BYTES)
    paths[1].write_bytes(b"e")
    parts = read_all(source(paths))
    assert [part.is_error for part in parts] == [False, True, False, False]
    assert stream(parts, is_error=False) == b"o" * 3 * PIECE_BYTES


def test_the_next_reader_continues_in_both(paths):
    paths[0].write_bytes(b"abc")
    paths[1].write_bytes(b"xyz")
    first, second = read_all(source(paths))
    assert (first.position, second.position) == ("3,0", "3,3")
    paths[0].write_bytes(b"abcdef")
    (rest,) = read_all(source(paths, second.position))
    assert (rest.data, rest.is_error) == (b"def", False)
    assert [part.data for part in read_all(source(paths, first.position))] == [b"def", b"xyz"]


def test_nothing_is_left_out_of_what_was_written_fast_and_what_was_read_is_freed(paths):
    size = 5 * KEPT_READ_BYTES
    paths[0].write_bytes(b"x" * size)
    before = paths[0].stat().st_blocks
    parts = read_all(source(paths))
    assert sum(len(part.data) for part in parts) == size
    assert not any(part.skipped for part in parts)
    assert paths[0].stat().st_size == size
    assert paths[0].stat().st_blocks < before / 2


def test_a_reader_of_a_task_that_writes_nothing_is_woken(paths):
    reader = source(paths, runs=True)
    reader.wake()
    part = reader.read(60)
    assert (part.data, part.position) == (b"", "0,0")
    assert source(paths).read(60) is None
