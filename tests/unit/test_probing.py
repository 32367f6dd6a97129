"""What answers to health checks mean."""

import pytest

from ownpod.rules.balancing import Server
from ownpod.rules.homes import joined
from ownpod.rules.probing import (
    HEALTHY,
    PATIENCE_S,
    Target,
    refused,
    soon,
    tls_failed,
    verdict_of,
)

TARGET = Target(Server("w", "10.0.0.5", 8000, health_port=8001), "/ping")


def test_200_is_ready_and_204_is_starting_without_being_unhealthy():
    assert verdict_of(200, TARGET) == HEALTHY
    found = verdict_of(204, TARGET)
    assert (found.ready, found.starting) == (False, True)
    assert "204" in found.reason


@pytest.mark.parametrize(
    ("status", "managed", "words"),
    [
        (404, True, "404 on /ping: is HEALTH_CHECK_PATH right?"),
        (404, False, "404 on /ping: is healthPath right?"),
        (401, False, "without a key"),
        (302, False, "only 200 means ready"),
        (500, False, "500 on /ping"),
        (201, False, "201 on /ping"),
    ],
)
def test_any_other_status_is_a_reason(status, managed, words):
    found = verdict_of(status, Target(TARGET.server, "/ping", managed))
    assert not found.ready
    assert not found.starting
    assert words in found.reason


def test_a_refused_connection_names_the_port_and_what_to_check():
    managed = Target(TARGET.server, "/ping", managed=True)
    assert refused(managed, 8000).reason == (
        "connection refused on 10.0.0.5:8000: does it listen on PORT, and on 0.0.0.0 rather than 127.0.0.1?"
    )
    assert "PORT_HEALTH" in refused(managed, 8001).reason
    assert "PORT" not in refused(TARGET, 8000).reason


def test_a_worker_that_was_just_started_need_not_listen_yet():
    managed = Target(TARGET.server, "/ping", managed=True)
    found = refused(managed, 8000)
    early = soon(found, managed, PATIENCE_S - 1)
    assert (early.starting, early.ready) == (True, False)
    assert early.reason == "nothing listens on its port yet"
    assert soon(found, managed, PATIENCE_S) == found
    # Another one was there before: it is unhealthy at once.
    others = refused(TARGET, 8000)
    assert soon(others, TARGET, 0) == others
    assert soon(verdict_of(500, managed), managed, 0) == verdict_of(500, managed)


def test_failed_tls_names_the_setting():
    assert "caBundle" in tls_failed(TARGET, "self-signed", certificate=True).reason
    assert "http://" in tls_failed(TARGET, "wrong version", certificate=False).reason


def test_an_ipv6_address_has_brackets():
    assert joined("fd00::1", 80) == "[fd00::1]:80"
