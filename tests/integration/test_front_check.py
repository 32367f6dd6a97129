"""``ownpod doctor``: what it finds about the front."""

import socket

import pytest
import trustme
from helpers import load_settings

from ownpod.configuration import load_endpoints
from ownpod.front.binary import Haproxy
from ownpod.tools import front_check

BALANCED = "endpoints: {queue: {}, app: {type: LB}}"
MISSING = Haproxy(problem="HAProxy is missing: install it")
THERE = Haproxy("/usr/sbin/haproxy", (3, 0))


@pytest.fixture
def check(tmp_path, monkeypatch):
    def examine(text="endpoints: {queue: {}}", haproxy=THERE, resolves=True, **environ):
        file = tmp_path / "workers.yaml"
        file.write_text(text)

        def resolve(name, _port):
            if not resolves:
                raise socket.gaierror
            return [(0, 0, 0, "", (f"address of {name}", 0))]

        monkeypatch.setattr(front_check, "find_haproxy", lambda: haproxy)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        config = load_settings(OWNPOD_WORKERS_FILE=file, **environ)
        found = front_check.examine(config, load_endpoints(config).values())
        return [(finding.kind, finding.what, finding.says) for finding in found]

    return examine


def test_it_names_the_program(check):
    assert check() == [("ok", "front", "HAProxy 3.0 at /usr/sbin/haproxy")]


@pytest.mark.parametrize(
    ("text", "front", "kind"),
    [
        ("endpoints: {queue: {}}", "auto", "note"),
        ("endpoints: {queue: {}}", "on", "bad"),
        (BALANCED, "auto", "bad"),
    ],
)
def test_a_missing_program_is_bad_where_it_is_needed(check, text, front, kind):
    found = check(text, MISSING, OWNPOD_FRONT=front)[0]
    assert found[:2] == (kind, "front")
    assert found[2].startswith(MISSING.problem)
    assert found[2].endswith("; needed by app") is (text is BALANCED)


def test_more_endpoints_than_a_front_has_room_for_are_bad(check, monkeypatch):
    monkeypatch.setattr(front_check.Layout, "pool", 1)
    assert [found[:2] for found in check(BALANCED)][:2] == [("ok", "front"), ("ok", "names")]
    kind, what, says = check("endpoints: {a: {type: LB}, b: {type: LB}}")[1]
    assert (kind, what) == ("bad", "front")
    assert says.startswith("room for 1 load-balanced endpoints: there are 2 in ")


def test_a_front_that_is_off_is_bad_only_for_load_balanced_endpoints(check):
    assert check(OWNPOD_FRONT="off")[0][0] == "note"
    assert check(BALANCED, OWNPOD_FRONT="off")[0][0] == "bad"


def test_the_names_of_the_domain_are_resolved(check):
    assert check(BALANCED, OWNPOD_LB_DOMAIN="gpu.example")[1] == (
        "ok",
        "names",
        "x.gpu.example resolves to address of x.gpu.example",
    )
    kind, _, says = check(BALANCED, resolves=False, OWNPOD_LB_DOMAIN="gpu.example")[1]
    assert (kind, "no program of this host can resolve x.gpu.example" in says) == ("note", True)
    says = check(BALANCED, resolves=False)[1][2]
    assert "browsers and curl, but no other program of this host, can resolve x.localhost" in says
    assert says.endswith("use /lb/<endpoint>/, or add a line for each endpoint to /etc/hosts")


@pytest.mark.parametrize(
    ("parts", "kind"), [("certificate key", "ok"), ("certificate", "bad"), ("", "bad")]
)
def test_the_certificate_is_read(check, tmp_path, parts, kind):
    issued = trustme.CA().issue_cert("x.localhost")
    pem = {"key": issued.private_key_pem, "certificate": issued.cert_chain_pems[0]}
    file = tmp_path / "tls.pem"
    file.write_bytes(b"".join(pem[part].bytes() for part in parts.split()))
    found = check(OWNPOD_TLS_CERTIFICATE=file)[1]
    assert found[:2] == (kind, "TLS")
    assert found[2].startswith(str(file) if kind == "ok" else f"OWNPOD_TLS_CERTIFICATE={file}: ")
