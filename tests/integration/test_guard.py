"""Without keys, requests under foreign host names or from pages of other sites are refused on every route."""

import pytest

from ownpod.api.guard import add_own_hosts
from ownpod.api.services import services_of

EVIL = [
    {"Host": "evil.example"},
    {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
    {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Host": "localhost:8000, evil.example"},
    {"Host": "localhost:8000", "Origin": "http://evil.example"},
    {"Host": "localhost:8000", "Origin": "null"},
    {"Host": "localhost:8000", "Sec-Fetch-Site": "cross-site"},
    {"Host": "127.0.0.1:8000", "Sec-Fetch-Site": "same-site"},
]
GOOD = [
    {},
    {"Host": "localhost:8000"},
    {"Host": "LOCALHOST.:8000"},
    {"Host": "api:8000"},
    {"Host": "10.0.0.5:8000"},
    {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
    {"Host": "host.docker.internal:8000"},
    {"Host": "localhost:8000", "Sec-Fetch-Site": "none"},
    {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"},
]
ROUTES = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v2/"),
    ("GET", "/v2/ep/health"),
    ("POST", "/v2/ep/run"),
    ("POST", "/v2/ep/purge-queue"),
    ("GET", "/v2/ep/workers"),
    ("POST", "/v2/ep/workers"),
    ("POST", "/v2/ep/workers/w/drain"),
    ("DELETE", "/v2/ep/workers/w"),
    ("GET", "/v2/ep/ping/w"),
    ("POST", "/v2/ep/job-done/w/r"),
    ("POST", "/callback/ep/job/token"),
    ("GET", "/nothing"),
    ("OPTIONS", "/v2/ep/run"),
]


@pytest.fixture
def make_api(new_app):
    def make(**environ):
        app = new_app("endpoints: {ep: {workers: [{url: 'http://a:1', id: w}]}}", **environ)
        services_of(app).notices.stop()
        return app.test_client()

    return make


def call(api, method, path, headers):
    return api.open(path, method=method, headers=headers, json=[])


@pytest.mark.parametrize("headers", EVIL, ids=str)
def test_a_foreign_name_or_page_gets_403_with_a_sentence_everywhere(make_api, headers):
    api = make_api()
    for method, path in ROUTES:
        answer = call(api, method, path, headers)
        assert answer.status_code == 403, (method, path)
        assert answer.json["error"].startswith("without keys ")
        assert "OWNPOD_API_KEYS" in answer.json["error"]
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", ["job-take/w", "job-take-batch/w", "job-stop/w"])
def test_a_worker_under_a_foreign_name_is_answered_429_and_the_log_has_the_reason(
    make_api, path, caplog
):
    answer = call(make_api(), "GET", f"/v2/ep/{path}", {"Host": "ownpod.lan:8000"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    assert "OWNPOD_HOSTS" in caplog.text


@pytest.mark.parametrize("headers", GOOD, ids=str)
def test_programs_containers_and_the_own_page_are_let_in(make_api, headers):
    api = make_api()
    for method, path in ROUTES:
        assert call(api, method, path, headers).status_code != 403, (method, path)


def test_a_request_without_a_host_is_let_in(make_api):
    api = make_api()
    answer = api.get("/health", environ_overrides={"HTTP_HOST": ""})
    assert answer.status_code == 200


def test_names_of_this_machine_are_settings(make_api):
    api = make_api(OWNPOD_HOSTS="gpu.lan", OWNPOD_CALLBACK_URL="http://ownpod.example:8000")
    for host, status in (("GPU.lan:8000", 200), ("ownpod.example", 200), ("other.lan", 403)):
        assert api.get("/v2/ep/health", headers={"Host": host}).status_code == status, host


def test_named_origins_may_call_without_keys(make_api):
    api = make_api(OWNPOD_CORS_ORIGINS="https://app.example")
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    answer = api.post("/v2/ep/run", json={"input": {}}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    ask = headers | {"Access-Control-Request-Method": "POST"}
    assert api.options("/v2/ep/run", headers=ask).status_code == 200
    other = headers | {"Origin": "https://other.example"}
    assert api.post("/v2/ep/run", json={"input": {}}, headers=other).status_code == 403
    assert api.post("/v2/ep/run", headers=headers | {"Host": "evil.example"}).status_code == 403


def test_a_link_on_another_page_opens_the_page_but_no_data(make_api):
    api = make_api()
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    for path, status in (("/", 200), ("/docs/", 200), ("/v2/ep/requests", 403), ("/metrics", 403)):
        with api.get(path, headers=link) as answer:
            assert answer.status_code == status, path
    with api.get("/", headers=link | {"Host": "evil.example"}) as answer:
        assert answer.status_code == 403


@pytest.mark.parametrize("headers", EVIL, ids=str)
def test_with_keys_the_key_decides(make_api, headers):
    api = make_api(OWNPOD_API_KEYS="k")
    assert api.get("/v2/ep/health", headers=headers).status_code == 401
    answer = api.get("/v2/ep/health", headers=headers | {"Authorization": "k"})
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("headers", EVIL, ids=str)
def test_without_api_keys_an_admin_or_worker_key_is_proof_enough(make_api, headers):
    api = make_api(OWNPOD_ADMIN_KEYS="a", OWNPOD_WORKER_KEYS="w")
    assert api.get("/v2/ep/health", headers=headers).status_code == 403
    assert api.get("/v2/ep/health", headers=headers | {"Authorization": "x"}).status_code == 403
    assert api.get("/v2/ep/health", headers=headers | {"Authorization": "a"}).status_code == 200
    assert api.get("/v2/ep/ping/w", headers=headers | {"Authorization": "w"}).status_code == 200


def test_names_that_the_server_listens_on_are_its_own(make_api):
    api = make_api()
    headers = {"Host": "gpu.lan:8000"}
    assert api.get("/health", headers=headers).status_code == 403
    add_own_hosts(api.application, ["GPU.lan", "0.0.0.0", "::"])
    assert api.get("/health", headers=headers).status_code == 200
    assert api.get("/health", headers={"Host": "evil.example"}).status_code == 403
