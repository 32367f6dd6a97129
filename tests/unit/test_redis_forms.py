"""Redis's URLs in the forms of libraries, and versions of servers."""

import pytest

from ownpod.rules import redis_url
from ownpod.rules.redis_versions import Version, from_info, parse


def test_each_library_gets_a_unix_socket_in_its_own_form():
    url = "unix:///run/a/redis.sock?db=2"
    assert redis_url.for_celery(url) == "redis+socket:///run/a/redis.sock?virtual_host=2"
    assert redis_url.for_limits(url) == "redis+unix:///run/a/redis.sock?db=2"
    assert redis_url.for_celery("unix:///a") == "redis+socket:///a?virtual_host=0"


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://:secret@h:1/0?ssl_cert_reqs=none"])
def test_other_urls_stay_as_they_are(url):
    assert redis_url.for_celery(url) == redis_url.for_limits(url) == url


def test_a_place_is_shown_without_its_password():
    assert redis_url.without_secrets("rediss://user:secret@h:7/0") == "h:7"
    assert redis_url.without_secrets("unix://:secret@/run/r.sock?db=0") == "/run/r.sock"


@pytest.mark.parametrize(
    ("kind", "number", "holes"),
    [
        ("Redis", "6.2.14", ["CVE-2024-46981", "CVE-2025-49844"]),
        ("Redis", "6.2.17", ["CVE-2025-49844"]),
        ("Redis", "6.2.20", []),
        ("Redis", "7.0.15", ["CVE-2024-46981", "CVE-2025-49844"]),
        ("Redis", "7.2.10", ["CVE-2025-49844"]),
        ("Redis", "7.2.11", []),
        ("Redis", "7.4.2", ["CVE-2025-49844"]),
        ("Redis", "8.0.3", ["CVE-2025-49844"]),
        ("Redis", "8.2.2", []),
        ("Redis", "8.10.0", []),
        ("Valkey", "7.2.7", ["CVE-2024-46981", "CVE-2025-49844"]),
        ("Valkey", "8.1.3", ["CVE-2025-49844"]),
        ("Valkey", "8.1.4", []),
        ("Valkey", "9.1.2", []),
    ],
)
def test_known_holes_depend_on_branch_and_release(kind, number, holes):
    version = parse(f"{kind} server v={number} sha=00000000:0 malloc=libc bits=64 build=1")
    assert str(version) == f"{kind} {number}"
    assert version.holes() == holes


def test_valkey_is_distinguished_from_the_redis_that_it_is_compatible_with():
    assert from_info({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == Version(
        "Valkey", (9, 1, 2)
    )
    assert from_info({"redis_version": "8.2.1"}) == Version("Redis", (8, 2, 1))
    assert from_info({}) is None
    assert parse("something else") is None


@pytest.mark.parametrize(
    ("server", "signature", "parts", "reads"),
    [
        (Version("Valkey", (9, 1, 2)), None, False, True),
        (Version("Valkey", (9, 1, 2)), b"REDIS0009", False, True),
        (Version("Valkey", (9, 1, 2)), b"REDIS0011", True, True),
        (Version("Valkey", (9, 1, 2)), b"REDIS0012", True, False),
        (Version("Valkey", (9, 1, 2)), b"VALKEY080", True, True),
        (Version("Valkey", (8, 1, 4)), b"VALKEY080", True, False),
        (Version("Redis", (8, 2, 2)), b"REDIS0012", True, True),
        (Version("Redis", (8, 2, 2)), b"VALKEY080", True, False),
        (Version("Redis", (7, 0, 15)), b"REDIS0011", True, False),
        (Version("Redis", (6, 2, 20)), None, True, False),
    ],
)
def test_a_server_can_read_a_file_or_not_by_its_signature(server, signature, parts, reads):
    assert server.reads(signature, parts=parts) is reads
