"""Callers of tasks, sessions and typed events that mean harm: each gets an answer, and nothing of other keys' changes."""

import contextlib
import json
from urllib.parse import quote

import pytest
import sse
from helpers import job_store
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import CURSORS, DIGITS, FORGED, MANY, ODD, Lines, jsons, lines, text

from ownpod.api.services import services_of
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.runs import Outcome
from ownpod.rules.task_input import MOST_INPUT_BYTES, variables
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

__all__ = ["Lines", "lines"]

FILE = """
endpoints: {plain: {}}
models:
  m:
    chat: {command: [x], apiKeys: [mine, other]}
    print: {command: [x], protocol: stdout, apiKeys: [mine]}
"""
EP = "m-chat"
MINE, OTHER, ADMIN = ({"X-API-Key": key} for key in ("mine", "other", "the-admin"))
JSON = {"Accept": "application/json"}
TASK = {"task_type": "session", "model_id": "m", "task_preset": "chat", "metadata": {}}
MORE_CURSORS = [
    *(
        "0-0.0",
        "1-0.0",
        "1-1.1t",
        "1-1.1i",
        "1-1.1r",
        "0-0.0c",
        "0-0.0c9",
        "0-0.0q",
        "0-0.0q999999999",
    ),
    *(
        "0-0.0z",
        "0-0.0z999999999",
        "1-999999999.999999999",
        "999999999-0.0",
        "999999999-end",
        "0-end",
    ),
    *(
        "1-1.1\0",
        "1-1.1\n",
        "1-1.1 ",
        "-1-0.0",
        "1-1.1tt",
        "٣-٣.٣",
        "1-0.0x" + "9" * 400,
        "9" * 5000,
    ),
]
ROUTES = [
    *("/api/tasks/submit", "/api/tasks/predefined", "/api/tasks/custom", "/api/tasks/{task}"),
    *("/api/tasks/{task}/events", "/api/tasks/{task}/cancel", "/api/sessions"),
    *(
        "/api/sessions/{session}",
        "/api/sessions/{session}/keepalive",
        "/api/sessions/{session}/logs",
    ),
    *("/health/resources", "/api/models", "/api/models/m/fetch", "/api/models/{session}"),
    "/v2/m-chat/stream/{task}",
]


@pytest.fixture
def app(new_app, client):
    made = new_app(
        FILE,
        OWNPOD_ADMIN_KEYS="the-admin",
        OWNPOD_CUSTOM_TASKS="true",
        OWNPOD_CORS_ORIGINS="https://a.example",
    )
    # Streams end at once.
    services_of(made).notices.stop()
    devices = tuple(Device(f"GPU-{n}", n, "RTX", 24_000, pools=("low",)) for n in range(4))
    Agents(client).heartbeat(AgentInfo("box", "docker", devices), "token")
    return made


@pytest.fixture
def api(app):
    return app.test_client()


def submit(api, headers, **changes):
    answer = api.post("/api/tasks/submit", json={**TASK, **changes}, headers=JSON | headers)
    assert answer.status_code == 200, answer.text
    return answer.json


def begun(client, task, session):
    """The task runs, and has told something."""
    store, managed = job_store(client), Managed(client)
    if managed.get(session).phase == "wanted":
        assert managed.place(session, "box", "token", ["GPU-0"])
        managed.started(session, "box")
        assert managed.ready(session)
    attempt = store.jobs.claim(task, worker_id=session, claim="c", lease_s=60)
    store.chunks.add(attempt.job_id, attempt.number, ['"Hel"', '"lo"', "{}"])
    store.journal.add(
        task, "logs", {"log": f"a\n{FORGED}\r\nid: 1-end\n\ndata: x", "level": "info"}
    )
    return attempt


def ended(client, task, session):
    attempt = begun(client, task, session)
    job_store(client).jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='"x"'))


def check(answer, lines, path):
    """No answer is an error of OwnPod's, and each error has its shape."""
    assert answer.status_code < 500 or answer.status_code in {501, 503}, (answer.text[:300], lines)
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.mimetype == "application/json", answer.mimetype
        assert isinstance(answer.json["error"], str)
        if path.startswith(("/api/", "/health/")):
            assert answer.json["detail"] == answer.json["error"]
            assert answer.json["code"].replace("_", "").isalpha()
    for found in lines:
        first, *more = found.splitlines()
        assert all(line.startswith("  ") for line in more), found
        assert not first.startswith(FORGED)
    lines.clear()


words = st.one_of(
    st.sampled_from([*ODD, *DIGITS, "m", "chat", "print", "low", "session", "oneoff"]), text
)
members = st.one_of(words, jsons, st.integers(), st.sampled_from([10, 300, 1800, 86_400, True]))
names = st.sampled_from(
    [
        *("task_type", "task_name", "model_id", "task_preset", "task_difficulty", "metadata"),
        *("session_id", "create_session", "timeout_seconds", "wait_seconds", "on_disconnect"),
        *("idle_timeout_seconds", "max_lifetime_seconds", "seconds", "docker_image", "command"),
        *("env_vars", "input"),
    ]
)
good = st.sampled_from(
    [
        {},
        TASK,
        {**TASK, "task_type": "oneoff", "task_preset": "print"},
        {"task_name": "print"},
        {"docker_image": "x", "command": ["a"], "env_vars": {}},
    ]
)
heads = st.dictionaries(
    st.sampled_from(
        [
            *(
                "Idempotency-Key",
                "Last-Event-ID",
                "Accept",
                "Prefer",
                "X-Runpod-Worker-Id",
                "Origin",
            ),
            *(
                "Authorization",
                "X-API-Key",
                "Range",
                "Content-Type",
                "X-Request-ID",
                "Accept-Encoding",
            ),
        ]
    ),
    st.one_of(
        st.sampled_from(
            [*CURSORS, *MORE_CURSORS, "respond-async", "text/event-stream", "*/*;q=x"]
        ).filter(lambda value: value.isascii() and value.isprintable()),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    ),
    max_size=3,
)


@pytest.mark.parametrize("route", ROUTES)
def test_hostile_requests_get_an_answer_of_the_right_shape_and_no_500(app, client, lines, route):
    api = app.test_client()
    task = submit(api, MINE)
    ended(client, task["task_id"], task["session_id"])
    waits = submit(api, MINE, session_id=task["session_id"])
    known = {
        "task": [task["task_id"], waits["task_id"]],
        "session": [task["session_id"]],
    }

    @settings(**MANY)
    @given(
        data=st.data(),
        method=st.sampled_from(["GET", "POST", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"]),
        body=st.one_of(
            st.tuples(good, st.dictionaries(names, members, max_size=4)), st.binary(max_size=30)
        ),
        sent=heads,
        key=st.sampled_from([MINE, OTHER, ADMIN, {}]),
        after=st.one_of(st.none(), words, st.sampled_from([*CURSORS, *MORE_CURSORS])),
    )
    def run(data, method, body, sent, key, after):
        path = route
        for name, ids in known.items():
            if f"{{{name}}}" in path:
                usual = st.sampled_from(ids)
                value = data.draw(st.one_of(usual, usual, words.filter(bool)))
                part = quote(value.encode("utf-8", "surrogatepass"), safe="")
                path = path.replace(f"{{{name}}}", part)
        if isinstance(body, tuple):
            body = json.dumps(body[0] | body[1]).encode()
        query = (
            {}
            if after is None
            else {"after": after, "events": "typed", "status": after, "all": after}
        )
        with contextlib.closing(
            api.open(
                path,
                method=method,
                query_string="&".join(
                    f"{n}={quote(v.encode('utf-8', 'surrogatepass'), safe='')}"
                    for n, v in query.items()
                ),
                headers=key | sent,
                data=body,
                buffered=True,
            )
        ) as answer:
            check(answer, lines, path)

    run()


@pytest.mark.parametrize("header", [True, False], ids=["header", "query"])
def test_from_any_cursor_a_stream_is_the_rest_or_the_whole_or_refused(app, api, client, header):
    task = submit(api, MINE)
    ended(client, task["task_id"], task["session_id"])
    services_of(app).notices._stopped = False
    path = f"/api/tasks/{task['task_id']}/events"
    whole = sse.stream_of(api.get(path, headers=MINE).get_data())
    # What a log line has in it is data, and no event of its own.
    assert [e.event for e in whole].count("logs") == 1
    for cursor in [*CURSORS, *MORE_CURSORS, *DIGITS, *(odd for odd in ODD if odd.isprintable())]:
        if header and ("\n" in cursor or "\0" in cursor):
            continue
        given_ = {"Last-Event-ID": cursor.encode().decode("latin-1")} if header else {}
        query = "" if header else f"?after={quote(cursor)}"
        answer = api.get(f"{path}{query}", headers=MINE | given_)
        if answer.status_code in {204, 400}:
            assert answer.status_code == 204 or not header
            continue
        assert answer.status_code == 200
        found = list(sse.parsed([answer.get_data()]))
        # Whatever the cursor says, the end comes.
        assert found[-1] == whole[-1], cursor


def test_no_key_sees_uses_or_ends_anothers_session_or_moves_its_tasks(api, client):
    task = submit(api, MINE)
    session = task["session_id"]
    before = api.get(f"/api/sessions/{session}", headers=ADMIN).json
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("DELETE", "?drain=true"),
        ("POST", "/keepalive"),
        ("GET", "/logs"),
    ]:
        for key in (OTHER, {"X-API-Key": ""}, {"Authorization": "Bearer other"}, {}):
            answer = api.open(f"/api/sessions/{session}{path}", method=method, headers=key)
            assert answer.status_code in {401, 404}, (method, path, key)
            assert "mine" not in answer.text
    assert api.get("/api/sessions?all=true", headers=OTHER).json["total"] == 0
    body = {**TASK, "session_id": session}
    answer = api.post("/api/tasks/submit", json=body, headers=JSON | OTHER)
    assert (answer.status_code, answer.json["code"]) == (404, "session_not_found")
    # A reuse without an id is of the own key's sessions only.
    assert submit(api, OTHER)["session_id"] != session
    for word in ("strict", "", "strict-resume"):
        pinned = {"X-Runpod-Worker-Id": f"{word} {session}".strip()}
        answer = api.post(f"/v2/{EP}/run", json={"input": {}}, headers=OTHER | pinned)
        if answer.status_code == 200:
            record = job_store(client).listing.details(answer.json["id"])
            assert record.get("private") != session
            assert session not in record.get("queue", "")
    after = api.get(f"/api/sessions/{session}", headers=ADMIN).json
    assert after["queued_task_ids"] == before["queued_task_ids"] == [task["task_id"]]
    assert (after["status"], after["last_activity"]) == (before["status"], before["last_activity"])


def test_a_task_of_a_preset_that_a_key_does_not_open_is_as_if_it_did_not_exist(api):
    task = submit(api, MINE, task_type="oneoff", task_preset="print")["task_id"]
    for method, path in [
        ("GET", ""),
        ("GET", "/events"),
        ("DELETE", ""),
        ("POST", "/cancel"),
    ]:
        url = f"/api/tasks/{task}{path}"
        answer = api.open(url, method=method, headers=OTHER)
        assert (answer.status_code, answer.json["code"]) == (404, "not_found")
        wrong = api.open("/api/tasks/0" + url.removeprefix("/api/tasks/")[1:], headers=OTHER)
        # Nothing shows that there is one.
        assert wrong.status_code in {404, 405}
    assert api.get(f"/api/tasks/{task}", headers=MINE).json["status"] == "pending"


@pytest.mark.parametrize(
    "metadata",
    [
        {"a" * 200_000: "x"},
        {f"K{n}": "" for n in range(100_000)},
        {"a": "x" * 3_000_000},
        {f"K{n}": "x" * 1000 for n in range(3000)},
        {"a": "\ud800", "b": "\0", "A": 1, "": 2, "PATH": "/", "LD_PRELOAD": "x", "é": 3},
        {"a": [[[[{}]]]], "b": None, "c": 1e300, "d": True},
    ],
    ids=["name", "many", "value", "much", "odd", "nested"],
)
def test_metadata_of_any_size_is_a_task_whose_environment_a_process_can_have(api, client, metadata):
    task = submit(api, MINE, task_type="oneoff", task_preset="print", metadata=metadata)
    record = client.hget(f"ownpod:job:{task['task_id']}", "input")
    found = variables(task["task_id"], record)
    own = {name: value for name, value in found.items() if name.startswith("METADATA_")}
    size = sum(len(f"{name}={value}\0".encode()) for name, value in own.items())
    # Linux has 128 KiB for one variable, and 2 MiB for all, with the pointers to them.
    assert size <= MOST_INPUT_BYTES
    assert len(found.get("OWNPOD_INPUT", "").encode()) <= MOST_INPUT_BYTES
    assert not {"METADATA_PATH", "METADATA_LD_PRELOAD"} & own.keys()


@pytest.mark.parametrize("state", ["waits", "runs"])
def test_from_any_cursor_a_stream_of_a_task_that_goes_on_is_the_rest(
    app, api, client, lines, state
):
    task = submit(api, MINE)
    if state == "runs":
        begun(client, task["task_id"], task["session_id"])
    notices = services_of(app).notices
    known = {"connection", "worker", "text_delta", "output_delta", "logs"}
    for cursor in [*CURSORS, *MORE_CURSORS, *DIGITS]:
        # One round, as the wait for the next one ends the stream.
        notices._stopped = False
        notices._wait = lambda *_: setattr(notices, "_stopped", True) or ""
        path = f"/api/tasks/{task['task_id']}/events?after={quote(cursor)}"
        answer = api.get(path, headers=MINE)
        if answer.status_code != 400:
            assert answer.status_code == 200
            found = list(sse.parsed([answer.get_data()]))
            assert {event.event for event in found} <= known, cursor
        check(answer, lines, path)


def test_from_any_place_the_output_of_a_session_comes_or_is_refused(app, api, client, lines):
    task = submit(api, MINE)
    begun(client, task["task_id"], task["session_id"])
    notices = services_of(app).notices
    for place in [
        "9" * 15,
        "0-0",
        "1-" + "9" * 15,
        "9" * 15 + "-" + "9" * 15,
        *CURSORS,
        *DIGITS,
        *ODD,
    ]:
        notices._stopped = False
        notices._wait = lambda *_: setattr(notices, "_stopped", True) or ""
        path = f"/api/sessions/{task['session_id']}/logs?after={quote(place)}"
        answer = api.get(path, headers=MINE)
        assert answer.status_code in {200, 400}
        check(answer, lines, path)
        if answer.status_code == 200:
            assert answer.get_data().startswith(b"retry: ")
