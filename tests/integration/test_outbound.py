"""POSTs to URLs that clients chose: deadline, address, environment; receivers on loopback."""

import contextlib
import gc
import select
import socket
import ssl
import struct
import sys
import threading
import time
import warnings

import psutil
import pytest
import trustme
from helpers import Answer, FakeWorker, load_settings, run_command, wait_until

from ownpod.housekeeping.outbound import Outbound, Unanswered, resolve
from ownpod.housekeeping.webhooks import make_outbound
from ownpod.processes import free_port


def anywhere(_address):
    return True


def outbound(**options):
    return Outbound(**{"allowed": anywhere, "deadline_s": 10} | options)


@pytest.fixture
def receiver():
    with FakeWorker({"POST /hook": Answer(body={})}).serving() as found:
        yield found


@contextlib.contextmanager
def listening(serve):
    """Starts a server that calls a function in a thread for each connection; returns its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run():
            with contextlib.suppress(OSError):
                while True:
                    connected, _ = server.accept()
                    threading.Thread(target=handle, args=(connected,), daemon=True).start()

        def handle(connected):
            with connected, contextlib.suppress(OSError):
                serve(connected)

        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def drip(data, pause_s=0.1):
    """Sends a byte at a time, for longer than any test."""

    def serve(connected):
        connected.recv(65536)
        for number in range(10_000):
            connected.sendall(data(number))
            time.sleep(pause_s)

    return serve


START = b"HTTP/1.1 200 OK\r\nX-Long: "


def one_byte_of_a_header(number):
    return START[number : number + 1] or b"x"


def continues(_number):
    return b"HTTP/1.1 100 Continue\r\n\r\n"


def read_nothing(connected):
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    time.sleep(30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(drip(one_byte_of_a_header), id="headers-byte-by-byte"),
        pytest.param(drip(continues), id="100-continue-for-ever"),
        pytest.param(lambda connected: time.sleep(30), id="no-answer"),
        pytest.param(read_nothing, id="body-not-read"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_receiver_is_ended_at_the_deadline(serve, scheme):
    with listening(serve) as port:
        began = time.monotonic()
        with pytest.raises(Unanswered) as failed:
            outbound(deadline_s=1).post(f"{scheme}://127.0.0.1:{port}/", bytes(10**7), {})
        took = time.monotonic() - began
    # This server speaks no TLS, so a try with https ends at once.
    assert failed.value.reason in ({"timeout"} if scheme == "http" else {"timeout", "unreachable"})
    assert took < 20


def test_an_answer_counts_whatever_becomes_of_its_body():
    def serve(connected):
        connected.recv(65536)
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        drip(lambda _number: b"x")(connected)

    with listening(serve) as port:
        began = time.monotonic()
        assert outbound().post(f"http://127.0.0.1:{port}/", b"{}", {}) == 200
        assert time.monotonic() - began < 20


def test_an_answer_before_the_end_of_a_large_body_counts():
    def serve(connected):
        connected.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        connected.recv(65536)
        # Closing with unread data sends a reset, after which sending fails.

    with listening(serve) as port:
        assert outbound().post(f"http://127.0.0.1:{port}/", bytes(10**7), {}) == 413


def test_a_name_service_that_hangs_ends_at_the_deadline():
    over = threading.Event()

    def hang(_host, _port):
        over.wait(30)
        return []

    with pytest.raises(Unanswered) as failed:
        outbound(deadline_s=0.3, resolve=hang).post("http://hook.example/", b"", {})
    over.set()
    assert failed.value.reason == "timeout"


def test_posts_leave_no_connection_and_no_thread_behind(receiver):
    sender = outbound()
    before = psutil.Process().num_fds()
    for _ in range(20):
        assert sender.post(f"{receiver.url}/hook", b"{}", {}) == 200
    wait_until(lambda: psutil.Process().num_fds() <= before + 2)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name == "resolve" or name.startswith("Timer")]


def test_a_name_is_resolved_once_and_that_address_connected_to_under_its_name(receiver):
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return resolve("127.0.0.1" if len(asked) == 1 else "127.0.0.2", port)

    checked = []

    def allowed(address):
        checked.append(address)
        return True

    receiver.routes["POST /hook?a=1"] = Answer(body={})
    sender = outbound(resolve=rebinding, allowed=allowed)
    assert sender.post(f"http://hook.example:{receiver.port}/hook?a=1#b", b"{}", {}) == 200
    assert (asked, checked) == (["hook.example"], ["127.0.0.1"])
    ((headers, _),) = receiver.raw
    assert headers["Host"] == f"hook.example:{receiver.port}"
    assert receiver.seen[0][:2] == ("POST", "/hook?a=1")


def test_of_a_names_addresses_only_those_that_are_allowed_are_connected_to(receiver):
    def both(_host, port):
        return [*resolve("127.0.0.9", port), *resolve("127.0.0.1", port)]

    sender = outbound(resolve=both, allowed=lambda address: address == "127.0.0.1")
    assert sender.post(f"http://hook.example:{receiver.port}/hook", b"{}", {}) == 200
    refusing = outbound(resolve=both, allowed=lambda _address: False)
    with pytest.raises(Unanswered) as failed:
        refusing.post(f"http://hook.example:{receiver.port}/hook", b"{}", {})
    assert failed.value.reason == "address not allowed"
    assert len(receiver.seen) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0", "2130706433", "[::ffff:127.0.0.1]", "[::1]"]
)
def test_public_refuses_every_form_of_this_machine(receiver, host):
    sender = make_outbound(load_settings(OWNPOD_WEBHOOK_ALLOW="public"))
    with pytest.raises(Unanswered) as failed:
        sender.post(f"http://{host}:{receiver.port}/hook", b"{}", {})
    assert failed.value.reason == "address not allowed"
    assert receiver.seen == []


def test_any_is_the_default_and_reaches_this_machine(receiver):
    assert make_outbound(load_settings()).post(f"{receiver.url}/hook", b"{}", {}) == 200


def not_http(connected):
    connected.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    connected.recv(65536)


def test_a_client_cannot_distinguish_closed_ports_from_services_that_are_not_http(receiver):
    with listening(not_http) as ssh, listening(lambda connected: None) as closing:
        urls = [
            f"http://127.0.0.1:{free_port()}/",
            f"http://127.0.0.1:{ssh}/",
            f"http://127.0.0.1:{closing}/",
            f"https://127.0.0.1:{ssh}/",
            f"https://127.0.0.1:{receiver.port}/hook",
            "http://127.0.0.1:99999/",
            "http://name.invalid/",
        ]
        for url in urls:
            with pytest.raises(Unanswered) as failed:
                outbound().post(url, b"{}", {})
            assert failed.value.reason == "unreachable", url


def test_https_is_verified_and_named_by_the_urls_host_not_by_the_address():
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hook.example").configure_cert(server)
    names = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    def serve(connected):
        with server.wrap_socket(connected, server_side=True) as secure:
            received = b""
            while not received.endswith(b"{}"):
                received += secure.recv(65536)
            secure.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    def here(_host, port):
        return resolve("127.0.0.1", port)

    with listening(serve) as port:
        sender = outbound(resolve=here, context=client)
        assert sender.post(f"https://hook.example:{port}/", b"{}", {}) == 204
        for untrusted in (
            lambda: sender.post(f"https://other.example:{port}/", b"{}", {}),
            lambda: outbound(resolve=here).post(f"https://hook.example:{port}/", b"{}", {}),
        ):
            with pytest.raises(Unanswered, match="CERTIFICATE_VERIFY_FAILED"):
                untrusted()
    assert names == ["hook.example", "other.example", "hook.example"]


class LateTLS(ssl.SSLContext):
    """Begins TLS only when the receiver has reset the connection, as a host under load may do."""

    def wrap_socket(self, sock, **options):
        self.is_connected.set()
        with select.epoll() as poll:
            poll.register(sock, select.EPOLLHUP)
            assert poll.poll(30)
        return super().wrap_socket(sock, **options)


@pytest.mark.parametrize("sends", [b"", b"x"])
def test_a_receiver_that_resets_before_tls_begins_leaves_no_socket_behind(sends):
    context = LateTLS(ssl.PROTOCOL_TLS_CLIENT)
    context.is_connected = threading.Event()

    def serve(connected):
        # A reset before that is an error of connect(), which is another case.
        context.is_connected.wait(30)
        connected.sendall(sends)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listening(serve) as port, warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        sender = outbound(context=context)
        with pytest.raises(Unanswered, match="before TLS began") as failed:
            sender.post(f"https://127.0.0.1:{port}/", b"{}", {})
        gc.collect()
    assert failed.value.reason == "unreachable"
    assert [str(warning.message) for warning in left] == []


def test_proxies_and_netrc_of_the_environment_are_not_used(receiver, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    proxy = f"http://127.0.0.1:{free_port()}"
    code = (
        "from ownpod.housekeeping.outbound import Outbound\n"
        "sender = Outbound(allowed=lambda address: True, deadline_s=10)\n"
        f"print(sender.post('{receiver.url}/hook', b'{{}}', {{}}))\n"
    )
    done = run_command(
        *(sys.executable, "-c", code),
        HOME=tmp_path,
        http_proxy=proxy,
        HTTP_PROXY=proxy,
        all_proxy=proxy,
        no_proxy="",
    )
    assert done.stdout == "200\n", done.stderr
    ((headers, _),) = receiver.raw
    assert "Authorization" not in headers
