"""The check for requests that a web page of another site sends."""

import pytest

from ownpod.errors import ConfigurationError
from ownpod.rules.origins import host_name, is_foreign_page, is_named, is_own_host
from ownpod.settings import load


@pytest.mark.parametrize(
    ("header", "own"),
    [
        (None, True),
        ("", True),
        ("localhost", True),
        ("localhost:8000", True),
        ("LOCALHOST:8000", True),
        ("localhost.", True),
        ("app.localhost:8000", True),
        ("api", True),
        ("api:8000", True),
        ("my_container:8000", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("10.0.0.5:8000", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("[fe80::1%25eth0]:8000", True),
        ("host.docker.internal:8000", True),
        ("host.containers.internal", True),
        ("gpu.lan", True),
        ("GPU.LAN.:8000", True),
        ("other.lan", False),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("EVIL.example.", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("gpu.lan.evil.example", False),
        ("evildocker.internal", False),
        ("evil.example.gpu.lan", False),
        ("::1", False),
        ("localhost,evil.example", False),
        ("localhost, localhost", False),
        ("localhost:8000:9", False),
        ("localhost:x", False),
        ("localhost:123456", False),
        ("user@localhost", False),
        ("local host", False),
        ("localhost/x", False),
        ("[evil.example]", False),
        ("löcalhost", False),
        ("\x00", False),
        (".", False),
        ("..", False),
    ],
)
def test_a_host_header_names_this_host_or_not(header, own):
    assert is_own_host(header, {"gpu.lan"}) is own


@pytest.mark.parametrize(
    ("header", "name"),
    [("A.b.:80", "a.b"), ("[::1]:80", "::1"), ("a", "a"), ("a b", None), ("", None), (":80", None)],
)
def test_a_host_has_a_name(header, name):
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("origin", "site", "host", "foreign"),
    [
        # Programs send neither header.
        (None, None, "localhost:8000", False),
        (None, None, None, False),
        # The API's own page, and an address that the user typed.
        (None, "same-origin", "localhost:8000", False),
        (None, "none", "localhost:8000", False),
        ("http://localhost:8000", None, "localhost:8000", False),
        ("http://LOCALHOST:8000", None, "localhost.:8000", False),
        ("http://localhost:8000", "same-origin", "localhost:8000", False),
        ("http://[::1]:8000", None, "[::1]:8000", False),
        ("http://localhost", None, "localhost:80", False),
        ("https://gpu.lan", None, "gpu.lan", False),
        # A proxy has removed the port.
        ("http://localhost:8080", "same-origin", "localhost", False),
        # Pages of other sites.
        (None, "cross-site", "localhost:8000", True),
        (None, "same-site", "localhost:8000", True),
        (None, "CROSS-SITE", "localhost:8000", True),
        (None, "", "localhost:8000", True),
        (None, "garbage", "localhost:8000", True),
        ("http://evil.example", None, "localhost:8000", True),
        ("http://evil.example", "cross-site", "localhost:8000", True),
        ("http://localhost:9000", "same-site", "localhost:8000", True),
        ("http://localhost:9000", None, "localhost:8000", True),
        ("http://localhost:8000", None, "127.0.0.1:8000", True),
        ("http://localhost:8000", None, None, True),
        ("null", None, "localhost:8000", True),
        ("null", "cross-site", "localhost:8000", True),
        ("", None, "localhost:8000", True),
        ("file://", None, "localhost:8000", True),
        ("http://localhost:8000:1", None, "localhost:8000", True),
        ("http://[", None, "localhost:8000", True),
        ("chrome-extension://abc", None, "localhost:8000", True),
        # Pages of permitted origins.
        ("https://app.example", "cross-site", "localhost:8000", False),
        ("https://a.team.example", "cross-site", "localhost:8000", False),
        ("https://a.team.example.evil.example", "cross-site", "localhost:8000", True),
        ("https://app.example.evil.example", "cross-site", "localhost:8000", True),
        ("http://app.example", "cross-site", "localhost:8000", True),
    ],
)
def test_a_page_of_another_origin_is_distinguished_from_a_program(origin, site, host, foreign):
    allowed = ("https://app.example", r"https://[a-z]+\.team\.example")
    assert is_foreign_page(origin, site, host, allowed) is foreign


def test_a_star_names_every_origin():
    assert is_named("https://any.example", ("*",))
    assert not is_named("https://any.example", ())


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("OWNPOD_HOSTS", "http://gpu.lan", "host name without scheme and port"),
        ("OWNPOD_HOSTS", "gpu.lan:8000", "host name without scheme and port"),
        ("OWNPOD_HOSTS", "*.lan", "host name without scheme and port"),
        ("OWNPOD_CORS_ORIGINS", "https://(", "an origin or a pattern"),
        ("OWNPOD_TRUSTED_PROXIES", "-1", "whole number from 0 to 10"),
        ("OWNPOD_TRUSTED_PROXIES", "true", "whole number from 0 to 10"),
    ],
)
def test_a_wrong_name_or_origin_stops_the_start(name, value, allowed):
    with pytest.raises(ConfigurationError, match=allowed):
        load({name: value})


def test_hosts_are_names_in_lower_case():
    assert load({"OWNPOD_HOSTS": "GPU.lan., api.example"}).hosts == ("gpu.lan", "api.example")
