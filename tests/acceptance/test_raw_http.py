"""Requests that no client library writes, against real gunicorn: the framing, the target, the sizes."""

import contextlib
import json
import re
import socket

import pytest
from helpers import one_api, wait_until

BODY = b'{"input": {}}'
RUN = b"POST /v2/ep/run HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
FORGED = b"[2026-01-01 00:00:00 +0000] [1] [INFO] forged"


def get(target, *lines, version=b"1.1"):
    head = [b"GET " + target + b" HTTP/" + version, b"Host: 127.0.0.1", *lines, b"", b""]
    return b"\r\n".join(head)


CASES = {
    "plain": (get(b"/health"), {200}),
    "http-1.0": (get(b"/health", version=b"1.0"), {200}),
    "http-0.9": (b"GET /health\r\n\r\n", {400}),
    "http-2.0": (get(b"/health", version=b"2.0"), {400, 505}),
    "absolute-form": (get(b"http://127.0.0.1/health"), {200, 404}),
    "another-host": (get(b"http://elsewhere/health"), {200, 403, 404}),
    "two-slashes": (get(b"//v2/ep/health"), {200, 308, 404}),
    "dots": (get(b"/page/../../../etc/passwd"), {404}),
    "encoded-dots": (get(b"/page/%2e%2e/%2e%2e/%2e%2e/etc/passwd"), {404}),
    "encoded-slash": (get(b"/v2/ep%2fhealth"), {200}),
    "nul": (get(b"/v2/%00/health"), {400}),
    "not-utf-8": (get(b"/v2/%ff%fe/health"), {400}),
    "line-in-target": (get(b"/v2/ep/job-take/a%0d%0a" + FORGED.replace(b" ", b"%20")), {429}),
    "raw-latin-1": (get(b"/v2/\xe9/health"), {400}),
    "fragment": (get(b"/health#x"), {200, 400}),
    "star": (b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {200, 400, 404, 405}),
    "connect": (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {400, 404, 405}),
    "lower-case-method": (b"get /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {400}),
    "line-in-method": (b"GE\x0bT /" + FORGED + b" HTTP/1.1\r\n\r\n", {400}),
    "bare-lf": (b"GET /health HTTP/1.1\nHost: 127.0.0.1\n" + FORGED + b"\n\n", {400}),
    "space-before-colon": (get(b"/health", b"X : 1"), {400}),
    "folded": (get(b"/health", b"X: 1", b" 2"), {400}),
    "nul-in-header": (get(b"/health", b"X: \0"), {400}),
    "two-hosts": (get(b"/health", b"Host: b"), {400}),
    "many-headers": (get(b"/health", *[b"X-%d: 1" % i for i in range(200)]), {431}),
    "long-header": (get(b"/health", b"X: " + b"x" * 9000), {431}),
    "long-header-section": (get(b"/health", *[b"X: " + b"x" * 8000] * 20), {431}),
    "long-target": (get(b"/" + b"x" * 9000), {414}),
    "no-end": (b"x" * 100_000, {400, 414, 431}),
    "expects-otherwise": (get(b"/health", b"Expect: the-unexpected"), {417}),
    "body": (RUN + LENGTH + b"\r\n" + BODY, {200}),
    "no-length": (RUN + b"\r\n" + BODY, {400}),
    "length-and-chunks": (RUN + LENGTH + CHUNKED + b"\r\n" + BODY, {400}),
    "two-lengths": (RUN + LENGTH + LENGTH + b"\r\n" + BODY, {400}),
    "signed-length": (RUN + b"Content-Length: +13\r\n\r\n" + BODY, {400}),
    "negative-length": (RUN + b"Content-Length: -1\r\n\r\n" + BODY, {400}),
    "wordy-length": (RUN + b"Content-Length: ten\r\n\r\n" + BODY, {400}),
    "huge-length": (
        RUN + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + b"x" * 70_000,
        {400, 413},
    ),
    "digits-of-5000": (RUN + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + BODY, {400, 413}),
    "short-body": (RUN + b"Content-Length: 7\r\n\r\n" + BODY, {400}),
    "chunks": (RUN + CHUNKED + b'\r\n6\r\n{"inpu\r\n7\r\nt": {}}\r\n0\r\n\r\n', {200}),
    "chunks-with-trailer": (RUN + CHUNKED + b"\r\nd\r\n" + BODY + b"\r\n0\r\nX: 1\r\n\r\n", {200}),
    "bad-chunk": (RUN + CHUNKED + b"\r\nxyz\r\n\r\n0\r\n\r\n", {400}),
    "negative-chunk": (RUN + CHUNKED + b"\r\n-1\r\n\r\n0\r\n\r\n", {400}),
    "stacked-codings": (RUN + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", {400}),
    "unknown-coding": (RUN + b"Transfer-Encoding: x\r\n\r\n", {400, 501}),
    "gzip-without-end": (RUN + b"Transfer-Encoding: gzip\r\n\r\n", {400, 501}),
    "deep-json": (RUN + b"Content-Length: 50000\r\n\r\n" + b"[" * 50_000, {400}),
    "tls-hello": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 90_000,
        {400, 414, 431},
    ),
    "forged-agent": (get(b"/nothing", b"User-Agent: a\x85" + FORGED, b"Referer: \x9b2J"), {404}),
}


@pytest.fixture(scope="module")
def api(redis_server, tmp_path_factory):
    options = ("--access-logfile", "-", "--access-logformat", '%(h)s "%(r)s" %(s)s "%(f)s" "%(a)s"')
    with one_api(tmp_path_factory.mktemp("api"), redis_server.url, *options) as found:
        yield found


def exchange(port, request):
    """Status, header and body of the answer; the request's side is closed after it."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 60)) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += data
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


@pytest.mark.parametrize("name", CASES)
def test_an_odd_request_gets_its_answer_as_json_and_no_500(api, name):
    port, process = api
    request, allowed = CASES[name]
    status, head, body = exchange(port, request)
    assert status in allowed, (head, body)
    if status >= 400:
        assert b"application/json" in head, head
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        assert isinstance(json.loads(body[:length])["error"], str)
    assert "Traceback" not in process.output


def test_a_body_that_ends_early_is_an_error_and_no_job(api, client):
    port, _ = api
    request = RUN + b"Content-Length: 100\r\n\r\n" + BODY
    assert exchange(port, request)[0] in {0, 400}
    assert client.llen("ownpod.ep") == 0
    assert not client.keys("ownpod:job:*")


def test_no_line_of_the_log_is_a_callers(api):
    port, process = api
    for request, _ in CASES.values():
        exchange(port, request)
    wait_until(lambda: "User-Agent" in process.output or "forged" in process.output)
    for line in process.output.splitlines():
        assert re.match(r'\[\d{4}-|\d\d:\d\d:\d\d |127\.0\.0\.1 "|  ', line), line
        assert not line.startswith(FORGED.decode()), line
    assert "\x85" not in process.output
    assert "\x9b" not in process.output
    assert "\x1b" not in process.output
