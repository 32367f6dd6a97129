"""Callers that mean harm, against the real processes: nothing of what they try happens."""

import contextlib
import json
import socket
import sys

import pytest
import requests
from helpers import Answer, FakeWorker, answers, run_command, wait_until

from ownpod.processes import free_port
from ownpod.rules.credentials import digest_of

NOWHERE = "http://127.0.0.1:1"
"""A worker that is away, so that jobs wait."""

BROWSER_OPTIONS = ("--host-resolver-rules=MAP evil.example 127.0.0.1",)


def picture_of(ownpod, key=None):
    """What a caller could have changed: jobs with their state, by endpoint, and all workers with theirs."""
    headers = {} if key is None else {"Authorization": key}
    jobs = {}
    for endpoint in requests.get(f"{ownpod.base}/", headers=headers, timeout=9).json()["endpoints"]:
        url = f"{ownpod.base}/{endpoint}/requests"
        found = requests.get(url, headers=headers, timeout=9).json()["requests"]
        jobs[endpoint] = {job["id"]: job["status"] for job in found}
    # A process of its own: the API may know the workers of a second ago.
    command = (sys.executable, "-m", "ownpod", "workers", "list")
    lines = run_command(*command, **ownpod.environ).stdout.splitlines()[1:]
    return jobs, [line.split()[:4] for line in lines]


# --- a page of another site

ATTACK = """
(async () => {
  const base = %s, flower = %s, job = %s;
  const endpoint = base + "/v2/local-ep";
  const answers = [];
  const attempt = (url, options) =>
    fetch(url, options).then((a) => answers.push(a.type + " " + a.status), () => answers.push("error"));
  const json = {"Content-Type": "application/json"};
  const worker = JSON.stringify({url: "http://127.0.0.1:9", id: "planted"});
  for (const mode of ["no-cors", "cors"]) {
    for (const headers of mode === "cors" ? [json, {}] : [{}]) {
      const post = (body) => ({method: "POST", mode, headers, body});
      await attempt(endpoint + "/run", post('{"input": {"planted": 1}}'));
      await attempt(endpoint + "/workers", post(worker));
      await attempt(endpoint + "/workers/127-0-0-1-1/drain", post(""));
      await attempt(endpoint + "/cancel/" + job, post(""));
      await attempt(endpoint + "/purge-queue", post(""));
      await attempt(flower + "/api/task/revoke/" + job, post("terminate=true"));
      await attempt(flower + "/api/worker/shutdown/127-0-0-1-1", post(""));
    }
    await attempt(endpoint + "/ping/planted", {mode});
    await attempt(endpoint + "/job-take/planted?gpu=0", {mode});
    await attempt(endpoint + "/workers", {mode});
    await attempt(flower + "/api/tasks", {mode});
  }
  await attempt(endpoint + "/workers/127-0-0-1-1", {method: "DELETE"});
  const form = document.createElement("form");
  form.method = "POST";
  form.enctype = "text/plain";
  form.action = endpoint + "/run";
  form.target = "frame";
  const field = document.createElement("input");
  [field.name, field.value] = ['{"input": {"planted": "', '"}}'];
  form.append(field);
  const frame = document.createElement("iframe");
  frame.name = "frame";
  document.body.append(frame, form);
  const loaded = new Promise((done) => { frame.onload = done; });
  form.submit();
  await loaded;
  return answers;
})()
"""


def attack(browser, ownpod, flower, job, host="127.0.0.1"):
    """Runs the attack in the page that is open; the types and states of what it was answered."""
    values = (f"http://{host}:{ownpod.port}", f"http://{host}:{flower}", job)
    return browser.run(ATTACK % tuple(map(json.dumps, values)))


@pytest.fixture
def page():
    """A server of another site."""
    html = Answer(200, b"<!doctype html><title>evil</title><body>evil", "text/html")
    with FakeWorker({"GET /": html}).serving() as server:
        yield server


@pytest.fixture
def local(start_ownpod):
    """A keyless OwnPod with Flower, and a job that waits: (OwnPod, Flower's port, job)."""
    port = free_port()
    ownpod = start_ownpod(NOWHERE, options=("--flower", "--flower-port", port))
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthcheck"), 30, "Flower")
    return ownpod, port, ownpod.submit(text="waits")


@pytest.mark.timeout(180)
def test_a_page_of_another_site_drives_no_local_ownpod(browser, page, local):
    ownpod, flower, job = local
    before = picture_of(ownpod)
    assert before == (
        {"local-ep": {job: "IN_QUEUE"}},
        [["127-0-0-1-1", "local-ep", NOWHERE, "unhealthy"]],
    )
    for host in ("127.0.0.1", "localhost", "evil.example"):
        browser.open(f"http://{host}:{page.port}/")
        assert browser.run("document.title") == "evil"
        found = attack(browser, ownpod, flower, job)
        # It reads nothing: answers are opaque, or errors.
        assert set(found) <= {"opaque 0", "error"}, found
        assert picture_of(ownpod) == before, host
    # DNS rebinding: the page's own name is this machine now, so that its requests are of the same origin.
    browser.open(f"http://evil.example:{ownpod.port}/")
    assert "without keys OwnPod answers under its own names only" in browser.text("body")
    found = attack(browser, ownpod, flower, job, host="evil.example")
    assert "basic 200" not in found
    assert picture_of(ownpod) == before
    browser.open(f"http://evil.example:{flower}/")
    assert "OWNPOD_HOSTS" in browser.text("body")
    attack(browser, ownpod, flower, job, host="evil.example")
    assert picture_of(ownpod) == before
    assert ownpod.process.running


@pytest.mark.timeout(120)
def test_the_same_page_could_where_it_is_let_in(browser, page, start_ownpod):
    """The attack above is one: a page whose origin is named in OWNPOD_CORS_ORIGINS succeeds."""
    ownpod = start_ownpod(NOWHERE, OWNPOD_CORS_ORIGINS=f"http://localhost:{page.port}")
    job = ownpod.submit(text="waits")
    browser.open(f"http://localhost:{page.port}/")
    found = attack(browser, ownpod, 1, job)
    assert "cors 200" in found
    jobs, workers = picture_of(ownpod)
    assert jobs["local-ep"][job] == "CANCELLED"
    assert len(jobs["local-ep"]) > 1
    assert "planted" in {worker[0] for worker in workers}


@pytest.mark.timeout(120)
def test_the_own_page_and_a_link_to_it_work(browser, page, start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    own = f"http://localhost:{ownpod.port}/"
    browser.open(own)
    send = (
        "fetch('/v2/local-ep/run', {method: 'POST', body: '{\"input\": {}}'}).then((a) => a.status)"
    )
    assert browser.run(send) == 200
    browser.open(f"http://localhost:{page.port}/")
    browser.run(f"location.href = 'http://127.0.0.1:{ownpod.port}/'; 1")

    def shows_workers():
        # While the browser goes from page to page there is nothing to ask.
        with contextlib.suppress(AssertionError):
            return "✕ unhealthy" in browser.text("#workers")

    wait_until(shows_workers, 15)


def status_of(port, *lines):
    """The status of a request as it is written here; 0: the connection was closed."""
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        peer.settimeout(5)
        first = peer.makefile("rb").readline().split()
        return int(first[1]) if first else 0


@pytest.mark.timeout(120)
def test_odd_hosts_are_read_on_the_wire(local):
    ownpod, flower, _ = local
    for port, path in ((ownpod.port, "/v2/local-ep/workers"), (flower, "/api/tasks")):
        get = f"GET {path} HTTP/1.1"
        for host in ("localhost", "127.0.0.1:80", "[::1]:80", "LOCALHOST", "localhost.", "flower"):
            assert status_of(port, get, f"Host: {host}") == 200, (port, host)
        for host in ("evil.example", "EVIL.example.", "a b", "localhost@evil.example", "::1"):
            assert status_of(port, get, f"Host: {host}") in {400, 403}, (port, host)
        for first, second in (("localhost", "evil.example"), ("evil.example", "localhost")):
            hosts = (f"Host: {first}", f"Host: {second}")
            assert status_of(port, get, *hosts) in {0, 400, 403}, (port, hosts)
        cross = "Sec-Fetch-Site: cross-site"
        assert status_of(port, get, "Host: localhost", cross) == 403, port
        assert status_of(port, get, "Host: localhost", "Origin: null") == 403, port
    assert status_of(ownpod.port, "GET /health HTTP/1.0") == 200


# --- a key of one endpoint

WORKERS = f"""
endpoints:
  mine: {{apiKeys: [only-mine]}}
  other: {{apiKeys: ["sha256:{digest_of("only-other")}"], workers: [{{url: "{NOWHERE}", id: w}}]}}
"""
MINE = {"Authorization": "Bearer only-mine"}
OTHER = {"Authorization": "Bearer only-other"}
PULL = [
    ("GET", "job-take/w"),
    ("GET", "job-take-batch/w"),
    ("GET", "job-stop/w"),
    ("GET", "ping/w"),
    ("POST", "job-stream/w/{job_id}"),
    ("POST", "job-done/w/{job_id}"),
]


@pytest.fixture
def locked(start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(WORKERS)
    return start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_ADMIN_KEYS="the-admin-key",
        OWNPOD_WORKER_KEYS=f"sha256:{digest_of('the-worker-key')}@other/w",
    )


@pytest.mark.timeout(120)
def test_a_key_of_one_endpoint_reaches_nothing_of_another(locked):
    url = locked.base.removesuffix("/v2")
    body = {"input": {"secret": "the-input"}}
    theirs = requests.post(f"{url}/v2/other/run", json=body, headers=OTHER, timeout=9).json()["id"]
    before = picture_of(locked, "the-admin-key")
    document = requests.get(f"{url}/openapi.json", timeout=9).json()
    tried = [
        (m.upper(), p) for p, item in document["paths"].items() for m in item if m != "parameters"
    ]
    tried = [(method, path) for method, path in tried if "{endpoint_id}" in path]
    assert len(tried) > 15
    tried += [(method, f"/v2/{{endpoint_id}}/{path}") for method, path in PULL]

    def call(method, path, headers=MINE, **ids):
        path = path.format(**{"worker_id": "w", "job_id": theirs, "path": "v1/models"} | ids)
        answer = requests.request(method, f"{url}{path}", json={}, headers=headers, timeout=9)
        assert "the-input" not in answer.text
        # A result under another key is to be posted again: the SDK drops it after a 4xx.
        posted = "/job-done/" in path or "/job-stream/" in path
        assert answer.status_code < 500 or (posted and answer.status_code == 503)
        return answer.status_code

    for method, path in tried:
        refused = {401, 429, 503} if "job-" in path or "ping" in path else {403}
        assert call(method, path, endpoint_id="other") in refused, (method, path)
        if "{job_id}" in path and "job-" not in path:
            # Another endpoint's job, under the own endpoint.
            assert call(method, path, endpoint_id="mine") == 404, (method, path)
    for method, path in (
        ("POST", "/v2/mine/workers"),
        ("DELETE", "/v2/mine/workers/w"),
        ("POST", "/v2/mine/workers/w/drain"),
        ("POST", "/v2/mine/workers/w/resume"),
        ("GET", "/metrics"),
        ("POST", "/v2/other%2frun"),
        ("POST", "//v2/other/run"),
        ("POST", "/v2/mine/../other/run"),
        ("POST", "/v2/mine/%2e%2e/other/purge-queue"),
    ):
        assert call(method, path) in {308, 400, 403, 404, 405}, (method, path)
    for headers in (
        {"Authorization": f"Bearer sha256:{digest_of('only-other')}"},
        {"Authorization": f"Bearer {digest_of('the-admin-key')}"},
        {"Authorization": "Bearer only-mine,the-admin-key"},
        {"Authorization": "Bearer the-admin-ke"},
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"},
    ):
        assert call("GET", "/v2/other/requests", headers) == 401, headers
    assert requests.get(f"{url}/v2/", headers=MINE, timeout=9).json()["endpoints"] == ["mine"]
    assert picture_of(locked, "the-admin-key") == before


@pytest.mark.timeout(120)
def test_flower_takes_admin_keys_only(start_ownpod):
    port = free_port()
    start_ownpod(
        NOWHERE,
        options=("--flower", "--flower-port", port),
        OWNPOD_API_KEYS="the-api-key",
        OWNPOD_ADMIN_KEYS=f"sha256:{digest_of('the-admin-key')}",
    )
    flower = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(f"{flower}/healthcheck"), 30, "Flower")

    def status(path, *, method="GET", **options):
        return requests.request(method, f"{flower}{path}", timeout=20, **options).status_code

    admin = ("ownpod", "the-admin-key")
    for path in ("/", "/workers", "/tasks", "/api/tasks", "/api/workers", "/metrics", "/static/x"):
        assert status(path) == 401, path
        assert status(path, auth=("ownpod", "the-api-key")) == 401, path
    for path in ("/workers", "/api/tasks", "/metrics"):
        assert status(path, auth=admin) == 200, path
    shutdown = "/api/worker/shutdown/none"
    assert status(shutdown, method="POST", auth=("ownpod", "the-api-key")) == 401
    assert status(shutdown, method="POST", auth=admin) == 404
    # A page of another site, in a browser that has the key.
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert status(shutdown, method="POST", auth=admin, headers=headers) == 403
    for wrong in ("Basic", "Basic !!!", "Basic dGhlLWFkbWluLWtleQ==", "Digest x", "Basic \xff"):
        assert status("/workers", headers={"Authorization": wrong}) == 401, wrong
