"""The text of HAProxy's configuration, what HAProxy should have, and the parsing of what it reports."""

import re
import subprocess

import pytest

from ownpod.front import plan
from ownpod.front.authorities import loading
from ownpod.front.binary import find_haproxy, parse_version
from ownpod.front.configuration import render
from ownpod.front.layout import UNLIMITED_MS, Layout, Maps, backends
from ownpod.front.program import digest_of, script, write_files
from ownpod.front.readings import readings
from ownpod.front.runtime import map_changes, parse_map, parse_rows, parse_table, word
from ownpod.rules import credentials
from ownpod.rules.balancing import Balancing, FrontState, Route, Server

LAYOUT = Layout(binds=(("127.0.0.1", 8000),), api=("127.0.0.1", 8001))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        LAYOUT,
        Layout((("0.0.0.0", 8000), ("::1", 8000)), ("api.example", 80), domain="lb.example.com"),
        Layout(
            (("localhost", 8000),), ("localhost", 1), trusted_proxies=2, timeout_status=503, pool=3
        ),
        Layout(
            (("127.0.0.1", 8000),), ("::1", 1), metrics=("127.0.0.1", 9101), max_connections=123
        ),
    ],
)
def test_haproxy_accepts_every_layout_without_a_warning(tmp_path, layout):
    found = find_haproxy()
    assert found.path is not None, found.problem
    write_files(tmp_path, render(layout), {})
    checked = subprocess.run(
        [found.path, "-c", "-f", "haproxy.cfg"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_the_digest_depends_on_layout_and_script():
    texts = [
        render(LAYOUT),
        render(Layout(LAYOUT.binds, LAYOUT.api, domain="x")),
        render(LAYOUT, "lua"),
    ]
    digests = {digest_of(text) for text in texts}
    assert len(digests) == 3
    assert digest_of(render(LAYOUT)) in digests
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in digests)


def test_every_map_has_a_rule_that_names_it():
    # HAProxy knows only such maps, and refuses commands for others.
    text = render(LAYOUT) + script()
    assert [name for name in Maps if name not in text] == []


def test_half_of_the_pool_has_runpods_time_limit():
    pool = backends(128)
    assert len(pool) == 128
    assert list(pool)[:2] == ["p000", "p001"]
    assert sum(seconds == 120 for seconds in pool.values()) >= 64


def route(name="a", *, servers=(), **limits):
    return Route(name, Balancing(**limits), tuple(servers))


def test_an_endpoint_keeps_its_backend_and_a_new_one_gets_the_fitting_time_limit():
    holds = {"p000": 120, "p001": 120, "p002": 10, "p003": 600}
    routes = {
        "a": route("a"),
        "b": route("b", hold_s=3),
        "c": route("c", hold_s=200),
        "d": route("d"),
    }
    chosen, left_out = plan.assign(routes, {"p001": "a", "p000": "gone"}, holds)
    assert chosen == {"a": "p001", "b": "p002", "c": "p003"}
    assert left_out == ["d"]
    again, _ = plan.assign(routes, {backend: name for name, backend in chosen.items()}, holds)
    assert again == chosen | {"d": "p000"}


def test_a_backend_is_free_when_nothing_of_its_endpoint_is_left():
    owners = {"p0": "kept", "p1": "busy", "p2": "servers", "p3": "empty"}
    free, emptying = plan.unused(
        owners, {"kept"}, {"p0", "p2"}, {"busy": {"conn_cur": 1}, "empty": {"conn_cur": 0}}
    )
    assert free == {"p3"}
    assert emptying == {"p1": "busy", "p2": "servers"}


def test_the_maps_of_a_state():
    key = credentials.digest_of("k")
    state = FrontState(
        routes={
            "Ep": route(
                "Ep", hold_s=5, limit_s=0, body_mb=2, health_path="/up", passes_authorization=True
            ),
            "far": Route(
                "far", Balancing(limit_s=7), (Server("f", "h", 1, is_front=True),), paused='"no"'
            ),
        },
        queues={"q"},
        keys={"*": {key}, "Ep": {key}},
        secret="s",
        origins={"https://A.example", "*", r"https://.*\.b"},
        hosts={"Host.Example"},
    )
    maps = plan.maps_of(state, {"Ep": "p000", "far": "p001"}, {"p002": "old"}, "lb.example")
    assert maps[Maps.ROUTES] == {"Ep": "p000", "far": "p001"}
    assert maps[Maps.NAMES] == {"ep.lb.example": "Ep", "far.lb.example": "far", "q.lb.example": "q"}
    assert maps[Maps.OWNERS] == {"p000": "Ep", "p001": "far@", "p002": "old"}
    assert maps[Maps.LIMITS] == {"Ep": str(UNLIMITED_MS), "far": "7000"}
    assert maps[Maps.BODIES]["Ep"] == str(2 * 1024 * 1024)
    assert maps[Maps.HEALTH]["p000"] == "/up"
    assert (maps[Maps.PASSING], maps[Maps.REMOTE]) == ({"Ep": "1"}, {"p001": "1"})
    assert maps[Maps.PAUSED] == {"far": r"\"no\""}
    secret = f"<front>|{credentials.digest_of('s').upper()}"
    assert set(maps[Maps.KEYS]) == {f"*|{key.upper()}", f"Ep|{key.upper()}", secret}
    assert maps[Maps.SWITCHES] == {"keys": "needed", "secret": "s"}
    assert set(maps[Maps.ORIGINS]) == {"https://a.example", "*"}
    assert set(maps[Maps.PATTERNS]) == {r"(?i)^(?:https://.*\.b)$"}
    assert set(maps[Maps.HOSTS]) == {"host.example"}
    assert plan.maps_of(FrontState(), {}, {}, "x")[Maps.SWITCHES] == {"keys": "open"}


def test_routes_are_removed_first_and_added_last():
    wanted = {Maps.ROUTES: {"new": "p1"}, Maps.LIMITS: {"new": "1 2"}, Maps.KEYS: {}}
    actual = {Maps.ROUTES: {"old": "p0"}, Maps.LIMITS: {"new": "1"}, Maps.KEYS: {"k;x": "1"}}
    commands = map_changes(wanted, actual)
    assert commands[0] == "del map maps/routes.map old"
    assert commands[-1] == "add map maps/routes.map new p1"
    assert r"set map maps/limits.map new 1\ 2" in commands
    assert r"del map maps/keys.map k\;x" in commands
    assert map_changes(wanted, wanted) == []


@pytest.mark.parametrize("text", ["a\nshutdown frontend public", "\x00", ""])
def test_no_value_can_begin_another_command(text):
    with pytest.raises(ValueError, match="control"):
        word(text)
    assert word(r"a b;c\d") == r"a\ b\;c\\d"


def test_a_server_is_added_with_all_that_it_needs():
    server = Server(
        "w",
        "h.example",
        8443,
        capacity=2,
        tls=True,
        ca_bundle="/ca x.pem",
        health_port=9,
        draining=True,
    )
    add, _, note, health, state = plan.adding("p000", server, "::1", "/host.pem")
    assert add.startswith("add server p000/w [::1]:8443 check ")
    for part in (
        "maxconn 2",
        "port 9",
        "check-ssl",
        "sni str(h.example)",
        r"verify required ca-file /ca\ x.pem",
        "verifyhost h.example",
    ):
        assert f" {part}" in add
    assert note.startswith("add map maps/servers.map p000/w ")
    assert (health, state) == ("enable health p000/w", "set server p000/w state drain")
    plain = plan.adding("p000", Server("w", "10.0.0.1", 80), "10.0.0.1", "/host.pem")[0]
    assert "ssl" not in plain
    assert "maxconn" not in plain


def test_a_server_changes_without_being_removed():
    actual = plan.ActualServer("p0", "w", "10.0.0.1", 80, admin=0, capacity=2, traits="")
    same = Server("w", "h", 80, capacity=2)
    assert plan.changing(actual, same, "10.0.0.1") == []
    moved = Server("w", "h", 81, capacity=0, draining=True)
    assert plan.changing(actual, moved, "10.0.0.2") == [
        "set server p0/w addr 10.0.0.2 port 81",
        "set maxconn server p0/w 1000000",
        "set server p0/w state drain",
    ]
    unlimited = plan.ActualServer("p0", "w", "10.0.0.1", 80, admin=1, capacity=1_000_000, traits="")
    assert plan.changing(unlimited, Server("w", "h", 80), "10.0.0.1") == [
        "set server p0/w state ready"
    ]


def test_readings_survive_bad_rows():
    stats = (
        "# pxname,svname,qcur,scur,stot,status,last_chk,check_desc,check_code,\n"
        'p0,w1,1,2,30,UP,"","","",\n'
        'p0,w2,0,0,1,DOWN,"a, ""b""",Layer7 wrong status,404,\n'
        "p0,w3,x\n"
        "p0,w4,x,y,z,DRAIN,,,,\n"
        "api,api,0,9,9,UP,,,,\n"
    )
    counts = (
        "# table: counts, type: string, size:10240, used:2\n"
        "0x1: key=ep use=0 exp=5 shard=0 conn_cur=4 http_req_cnt=9\n"
        "0x2: key=other broken\nnonsense\n"
    )
    wishes = "0x1: key=ep|w9 use=1 conn_cur=1\n0x1: key=ep|w1 use=1 conn_cur=1\n0x1: key=ep|w8 use=0 conn_cur=0\n"
    found = readings(
        {"ep": "p0", "new": "p5"},
        {},
        parse_rows(stats, ","),
        parse_table(counts),
        parse_table(wishes),
    )
    ep = found["ep"]
    assert (ep.requests, ep.total, ep.wishes, ep.running, ep.waiting) == (4, 9, ("w9",), 2, 2)
    assert (ep.servers["w1"].waiting, ep.servers["w1"].total, ep.servers["w1"].up) == (1, 30, True)
    assert not ep.servers["w2"].up
    assert "404" in ep.servers["w2"].problem
    assert ep.servers["w4"].up
    assert set(ep.servers) == {"w1", "w2", "w4"}
    assert found["new"].requests == 0
    assert parse_rows("garbage", ",") == []


def test_maps_and_states_are_parsed():
    assert parse_map("0x7f a b c\n\nbroken\n0x8 x y") == {"a": "b c", "x": "y"}
    states = "1\n# be_name srv_name srv_addr srv_admin_state srv_port\np001 w 10.0.0.1 8 80\napi api 1.1.1.1 0 1\n"
    servers = plan.servers_of(parse_rows(states, " "), [], {"p001/w": "t"})
    assert list(servers) == [("p001", "w")]
    server = servers["p001", "w"]
    assert (server.address, server.port, server.admin, server.traits) == ("10.0.0.1", 80, 8, "t")


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("HAProxy version 2.8.25-5cf5d0683 2026", (2, 8)),
        ("HAProxy version 3.0.1", (3, 0)),
        ("nginx", None),
    ],
)
def test_the_version(output, version):
    assert parse_version(output) == version


def test_ca_files_without_certificates_are_refused():
    with pytest.raises(ValueError, match="no certificates"):
        loading("/x", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n")
    pem = "-----BEGIN CERTIFICATE-----\nAA==\n\nBB==\n-----END CERTIFICATE-----"
    new, first, second, commit = loading("/a b", f"# x\n{pem}\n{pem}\n")
    assert new == r"new ssl ca-file /a\ b"
    assert first.startswith("set ssl ca-file")
    assert second.startswith("add ssl ca-file")
    assert "\n\n" not in first
    assert commit.startswith("commit")
