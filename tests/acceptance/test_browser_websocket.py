"""A real browser holds a WebSocket through the front: by path, by name, and over HTTPS."""

import pytest
import requests
from balancing import DOMAIN, balancing
from helpers import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(150),
]

BROWSER_OPTIONS = ("--ignore-certificate-errors", "--host-resolver-rules=MAP *.test 127.0.0.1")

ECHOES = 30
"""Echoes for which a page waits; it sends ten messages a second, so its WebSocket is open for at least 3 s."""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    with balancing(tmp_path_factory.mktemp("local"), domain="localhost") as found:
        yield found


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    with balancing(tmp_path_factory.mktemp("named")) as found:
        yield found


def sockets(ownpod):
    """For each WebSocket that the worker has had: the messages that it has received."""
    return requests.get(f"{ownpod.worker_url}/sockets", timeout=9).json()


def holds(browser, ownpod, url):
    """Opens the worker's page, and holds a WebSocket until enough messages have come back."""
    before = len(sockets(ownpod))
    browser.open(url)
    browser.run("window.socket = start(); undefined")
    wait_until(lambda: browser.run("echoes.length + closed.length") >= ECHOES, 60, "the echoes")
    assert browser.run("closed") == []
    assert browser.run("socket.readyState") == 1
    expected = [f"echo of message {n}" for n in range(ECHOES)]
    assert browser.run(f"echoes.slice(0, {ECHOES})") == expected
    browser.run("socket.close(); undefined")
    # The worker is notified at once when a client leaves.
    wait_until(lambda: sockets(ownpod)[before][-1] == "closed", 10, "the end of the WebSocket")


@pytest.mark.parametrize("url", ["http://127.0.0.1:%d/lb/web/", "http://web.localhost:%d/"])
def test_a_page_holds_a_websocket_by_path_and_by_name(browser, local, url):
    holds(browser, local, url % local.port)


def test_a_page_holds_a_websocket_over_https(browser, named):
    holds(browser, named, f"https://web.{DOMAIN}:{named.tls_port}/")


def test_an_open_websocket_is_a_request_that_runs(browser, local):
    browser.open(f"http://web.localhost:{local.port}/")
    browser.run("window.socket = start(); undefined")

    def running():
        url = f"{local.root}/v2/web/health"
        return requests.get(url, timeout=9).json()["workers"]["running"]

    wait_until(lambda: running() == 1, 15, "a worker that runs")
    browser.run("socket.close(); undefined")
    wait_until(lambda: running() == 0, 15, "a worker that is idle")


def test_a_page_of_another_site_gets_no_websocket_while_no_key_is_needed(browser, local):
    before = len(sockets(local))
    other = f"http://other.test:{local.worker_url.rpartition(':')[2]}/"
    browser.open(other)
    browser.run(f"url.href = 'ws://127.0.0.1:{local.port}/lb/web/ws'; start(); undefined")
    wait_until(lambda: browser.run("closed.length") == 1, 30, "the end of the WebSocket")
    assert browser.run("echoes") == []
    assert len(sockets(local)) == before
