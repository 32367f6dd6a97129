"""What becomes of each request of a batch in the lane."""

from types import SimpleNamespace

from ownpod.api.serving.arrival import Arrival
from ownpod.api.serving.lane import BATCH, Lane
from ownpod.api.workers.reports import KnownHeader
from ownpod.errors import RedisUnavailable

CHUNK = b"POST /v2/ep/job-stream/w/%b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b"


class Connection:
    """A connection with a chunk. ``sends``: whether its response can be sent."""

    def __init__(self, run, sends=lambda: True):
        body = b'{"output": "of %b"}' % run.encode()
        arrival = Arrival()
        arrival.add(CHUNK % (run.encode(), len(body), body), 0.0)
        self.run, self.sent, self.goes_on = run, b"", False
        self.sock = SimpleNamespace(arrival=arrival, send_now=self._send)
        self._sends = sends

    def _send(self, data):
        self.sent = data
        return self._sends()

    def next_request(self):
        self.goes_on = True


class Reports:
    """``ended``: ids of the runs that have ended."""

    def __init__(self, *ended):
        self.ended = {("w", "ep", run) for run in ended}
        self.forgotten = []

    def not_running(self, runs):
        return self.ended & set(runs)

    def forget(self, header_digest):
        self.forgotten.append(header_digest)


class Chunks:
    """Gives the chunk of each run the answer that the test has chosen."""

    def __init__(self, **answers):
        self.answers, self.calls = answers, []

    def add_all(self, new):
        self.calls.append(new)
        return [self.answers[one.job_id] for one in new]


def batch(*conns):
    return [
        (conn, KnownHeader(("w", "ep", conn.run), (conn.run, 1), f"id-{conn.run}"))
        for conn in conns
    ]


def test_each_request_of_a_batch_gets_what_is_its_own():
    reports, chunks = Reports("b", "d"), Chunks(a=True, c=False, e=None, f=True)
    conns = [Connection(run) for run in "abcdef"]
    found = Lane(reports, chunks, None)._answered(batch(*conns))
    assert "".join(conn.run for conn in found.kept) == "acf"
    assert "".join(conn.run for conn in found.long_way) == "bde"
    assert found.broken == []
    (new,) = chunks.calls
    assert [(one.job_id, one.chunk) for one in new] == [(run, f'"of {run}"') for run in "acef"]
    assert [one.token for one in new] == [conns[at].sock.arrival.token for at in (0, 2, 4, 5)]
    assert len({one.token for one in new}) == 4
    assert reports.forgotten == [conns[at].sock.arrival.header_digest for at in (1, 2, 3, 4)]
    for conn in found.kept:
        assert conn.goes_on
        assert f"X-Request-ID: id-{conn.run}\r\n".encode() in conn.sent
        assert conn.sock.arrival.buffer == b""
    for conn in found.long_way:
        assert (conn.goes_on, conn.sent) == (False, b"")
        assert conn.sock.arrival.buffer.endswith(b'"}')


def test_a_connection_that_breaks_is_alone_in_that(caplog):
    def fails():
        raise ValueError("the test's")

    conns = [Connection("a"), Connection("b", lambda: False), Connection("c", fails)]
    conns.append(Connection("d"))
    found = Lane(Reports(), Chunks(a=True, b=True, c=True, d=True), None)._answered(batch(*conns))
    assert "".join(conn.run for conn in found.kept) == "ad"
    assert "".join(conn.run for conn in found.broken) == "bc"
    assert "a worker's connection is closed" in caplog.text


def test_without_redis_those_that_wait_go_the_long_way_too():
    class Away(Chunks):
        def add_all(self, new):
            raise RedisUnavailable("away")

    lane = Lane(Reports(), Away(), None)
    waiting = [Connection(f"w{number}") for number in range(BATCH + 6)]
    for one in batch(*waiting):
        lane._queue.put(one)
    first = [Connection("a"), Connection("b")]
    found = lane._answered(batch(*first))
    assert found.long_way == [*first, *waiting]
    assert (found.kept, found.broken) == ([], [])


def test_no_call_adds_more_than_a_batch():
    lane = Lane(Reports(), Chunks(), None)
    for one in batch(*(Connection(f"w{number}") for number in range(BATCH + 6))):
        lane._queue.put(one)
    assert len(lane._waiting(BATCH - 1)) == BATCH - 1
    assert len(lane._waiting(BATCH - 1)) == 7
