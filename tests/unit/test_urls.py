"""Base URLs: the check and the pattern in the OpenAPI document accept the same values."""

import ipaddress
import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from ownpod.validation import HTTP_URL, LONGEST_URL, check_http_url


def taken(url):
    try:
        check_http_url(url)
    except ValidationError:
        return False
    return True


def examples(check):
    run = settings(max_examples=300, deadline=None, derandomize=True, database=None)
    return run(check)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:18000",
        "https://gpu.example.com/a/b/",
        "HTTP://GPU/",
        "http://my_worker_1:8000",
        "http://ownpod-worker-1",
        "http://3gpu:8000",
        "http://1.2.3.gpu",
        "http://xn--bcher-kva.example:8000/x%20y",
        "http://worker.default.svc.cluster.local.:80",
        "http://10.0.0.12:65535",
        "http://[::1]:8000",
        "http://[2001:db8::8a2e:370:7334]/run",
        f"http://{'a' * 63}.{'b' * 63}",
        "http://h/~user/(a);b=c,d:e@f!$&'*+",
    ],
)
def test_a_base_url_is_taken(url):
    check_http_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "of a host"),
        ("h:1", "of a host"),
        ("ftp://h", "of a host"),
        ("http://", "of a host"),
        ("http:///path", "of a host"),
        ("http://a b", "of a host"),
        ("http://a/b c", "of a host"),
        ("http://h\n", "of a host"),
        ("http://h?x=1", "of a host"),
        ("http://h#x", "of a host"),
        ("http://0t*", "a host name or an IP address"),
        ("http://a\0", "a host name or an IP address"),
        ("http://-a", "a host name or an IP address"),
        ("http://a-", "a host name or an IP address"),
        ("http://a..b", "a host name or an IP address"),
        ("http://.", "a host name or an IP address"),
        ("http://256.0.0.1", "a host name or an IP address"),
        ("http://1.2.3", "a host name or an IP address"),
        ("http://127.1", "a host name or an IP address"),
        ("http://2130706433", "a host name or an IP address"),
        ("http://h/%zz", "a host name or an IP address"),
        ("http://h/é", "a host name or an IP address"),
        ("http://h/a\\b", "a host name or an IP address"),
        ("http://[::1", "a host name or an IP address"),
        ("http://[1:2:3]", "a host name or an IP address"),
        ("http://[:::]", "a host name or an IP address"),
        ("http://[fe80::1%25eth0]", "a host name or an IP address"),
        ("http://::1", "a host name or an IP address"),
        ("http://a:", "port from 1 to 65535"),
        ("http://a:0", "port from 1 to 65535"),
        ("http://a:01", "port from 1 to 65535"),
        ("http://a:65536", "port from 1 to 65535"),
        ("http://a:x1", "port from 1 to 65535"),
        ("http://[::1]:99999", "port from 1 to 65535"),
        ("http://u@h", "without a user"),
        ("http://u:p@h", "without a user"),
        ("http://bücher.example", "its ASCII form, xn--bcher-kva.example"),
        ("http://bücher.example:80", "its ASCII form, xn--bcher-kva.example"),
        (f"http://{'é' * 70}", "its ASCII form"),
        (f"http://{'a' * 64}", "a host name or an IP address"),
        (f"http://{'a.' * 127}a", "a host name or an IP address"),
        (f"http://h/{'a' * LONGEST_URL}", "at most 2048 characters"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(url, says):
    with pytest.raises(ValidationError) as caught:
        check_http_url(url)
    (message,) = caught.value.messages
    assert says in message
    assert message.startswith("must be a")
    assert "\n" not in message


def test_a_password_in_a_url_is_not_shown():
    with pytest.raises(ValidationError) as caught:
        check_http_url("http://user:hunter2@h")
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
@examples
@given(st.from_regex(re.compile(rf"^{HTTP_URL}\Z")))
def test_what_the_pattern_describes_is_taken_and_can_be_used(url):
    assert taken(url) or len(url) > LONGEST_URL
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port is None or 1 <= parts.port <= 65535
    assert (parts.query, parts.fragment, parts.username) == ("", "", None)
    # A client encodes the name in this way when it connects; a name that DNS cannot have raises an error.
    parts.hostname.encode("idna")


@pytest.mark.slow
@examples
@given(st.from_regex(re.compile(rf"^{HTTP_URL}\Z")), st.data())
def test_a_character_that_is_put_into_a_url_makes_no_difference_between_check_and_pattern(
    url, data
):
    place = data.draw(st.integers(0, len(url)))
    changed = url[:place] + data.draw(st.characters(codec="utf-8")) + url[place:]
    # Validators of JSON Schema search for the pattern in this way.
    described = re.search(f"^{HTTP_URL}$", changed) is not None and not changed.endswith("\n")
    assert taken(changed) == (described and len(changed) <= LONGEST_URL)


@examples
@given(st.ip_addresses(v=6), st.booleans())
def test_every_ipv6_address_is_taken(address, long):
    assert taken(f"http://[{address.exploded if long else address}]:8000") or address.ipv4_mapped


@examples
@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_taken(address):
    assert taken(f"http://{address}")


@examples
@given(st.text(alphabet="0123456789abcdefABCDEF:", max_size=20))
def test_what_is_no_ipv6_address_is_refused(text):
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        assert not taken(f"http://[{text}]")


@examples
@given(st.text(max_size=30))
def test_any_text_is_taken_or_refused_in_one_line(text):
    for url in (text, f"http://{text}", f"http://h/{text}", f"http://h:{text}"):
        if taken(url):
            assert not set(text) & set(' \t\r\n\0<>"')
        else:
            with pytest.raises(ValidationError) as caught:
                check_http_url(url)
            (message,) = caught.value.messages
            assert "\n" not in message
