"""Each kind of key on each route: the routes that it opens, and the response of the others."""

import json
import re
import sys

import pytest
from helpers import load_settings, run_command

from ownpod.api import create_app
from ownpod.api.auth import Access, access_of
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.registry import Registry
from ownpod.rules.credentials import digest_of
from ownpod.store.fleet import Fleet

MANAGING = {
    "/hapi/v1/pod/<id:worker_id>/logs": "GET",
    "/v2/serverless/<id:row_id>/workers/<id:worker_id>/logs": "GET",
    "/v2/serverless/<id:row_id>/rollback": "POST",
    "/v2/serverless/<id:row_id>/why": "GET",
    "/graphql": "POST",
    "/v1/billing/<any(pods, endpoints, networkvolumes):kind>": "GET",
    "/v1/containerregistryauth": "GET POST",
    "/v1/containerregistryauth/<id:row_id>": "DELETE GET",
    "/v1/endpoints": "GET POST",
    "/v1/endpoints/<id:row_id>": "DELETE GET PATCH",
    "/v1/endpoints/<id:row_id>/update": "POST",
    "/v1/networkvolumes": "GET POST",
    "/v1/networkvolumes/<id:row_id>": "DELETE GET PATCH",
    "/v1/networkvolumes/<id:row_id>/update": "POST",
    "/v1/pods": "GET POST",
    "/v1/pods/<id:pod_id>": "DELETE GET PATCH",
    "/v1/pods/<id:pod_id>/<any(stop, reset, restart):kind>": "POST",
    "/v1/pods/<id:pod_id>/<any(update, start):kind>": "POST",
    "/v1/templates": "GET POST",
    "/v1/templates/<id:row_id>": "DELETE GET PATCH",
    "/v1/templates/<id:row_id>/update": "POST",
    "/v2/<any(pods, clusters):kind>": "POST",
    "/v2/<any(pods, clusters):kind>/<id:pod_id>": "DELETE GET PATCH",
    "/v2/account/secrets": "GET POST",
    "/v2/account/secrets/<id:row_id>": "DELETE GET PATCH",
    "/v2/account/ssh-keys": "GET PUT",
    "/v2/billing": "GET",
    "/v2/billing/<any('pods', 'serverless', 'endpoints', 'network-volumes', 'clusters'):kind>": "GET",
    "/v2/catalog/cpus": "GET",
    "/v2/catalog/cpus/<id:type_id>": "GET",
    "/v2/catalog/datacenters": "GET",
    "/v2/catalog/datacenters/<id:center_id>": "GET",
    "/v2/catalog/gpus": "GET",
    "/v2/catalog/gpus/<path:type_id>": "GET",
    "/v2/catalog/templates": "GET",
    "/v2/clusters": "GET",
    "/v2/network-volumes": "GET POST",
    "/v2/network-volumes/<id:row_id>": "DELETE GET PATCH",
    "/v2/pods": "GET",
    "/v2/registries": "GET POST",
    "/v2/registries/<id:row_id>": "DELETE GET",
    "/v2/registries/delegations": "GET POST",
    "/v2/serverless": "GET POST",
    "/v2/serverless/<id:row_id>": "DELETE GET PATCH",
    "/v2/serverless/<id:row_id>/releases": "GET",
    "/v2/serverless/<id:row_id>/workers": "GET",
    "/v2/templates": "GET POST",
    "/v2/templates/<id:row_id>": "DELETE GET PATCH",
}
"""The methods of each path of RunPod's management APIs."""

ROLES = {
    Access.OPEN: {
        "GET /",
        "GET /page/<path:filename>",
        "GET /openapi.json",
        "GET /v1/openapi.json",
        "GET /v2/openapi.json",
        "GET /docs/",
        "GET /docs/<path:path>",
        "GET /health",
        "GET /health/resources",
        "POST /callback/<id:endpoint_id>/<id:job_id>/<id:token>",
    },
    Access.LIST: {
        "GET /v2/",
        *(f"POST /api/tasks/{path}" for path in ("submit", "predefined", "<id:task_id>/cancel")),
        *(f"GET /api/tasks/<id:task_id>{path}" for path in ("", "/events")),
        "DELETE /api/tasks/<id:task_id>",
        *(f"{method} /api/sessions" for method in ("GET", "POST")),
        *(f"{method} /api/sessions/<id:session_id>" for method in ("GET", "DELETE")),
        "POST /api/sessions/<id:session_id>/keepalive",
        "GET /api/sessions/<id:session_id>/logs",
    },
    Access.CUSTOM: {"POST /api/tasks/custom"},
    Access.ALL: {"GET /metrics", "GET /agents", "GET /api/models"},
    Access.JOBS: {
        f"{method} /v2/<id:endpoint_id>/{path}"
        for path, methods in {
            "run": "POST",
            "runsync": "POST",
            "status/<id:job_id>": "GET POST",
            "status-sync/<id:job_id>": "GET POST",
            "stream/<id:job_id>": "GET POST",
            "openai": "GET POST",
            "openai/<rest:path>": "GET POST",
            "cancel/<id:job_id>": "POST",
            "retry/<id:job_id>": "POST",
            "purge-queue": "POST",
            "requests": "GET",
            "requests/<id:job_id>": "GET",
            "history": "GET",
            "health": "GET",
            "workers": "GET",
        }.items()
        for method in methods.split()
    },
    Access.MANAGE: {
        "POST /v2/<id:endpoint_id>/workers",
        "GET /workers/<id:worker_id>/logs",
        "POST /api/models/<path:model_id>/fetch",
        "DELETE /api/models/<path:model_id>",
        *(f"{method} /api/models/<path:model_id>/pin" for method in ("POST", "DELETE")),
        "DELETE /v2/<id:endpoint_id>/workers/<id:worker_id>",
        "POST /v2/<id:endpoint_id>/workers/<id:worker_id>/drain",
        "POST /v2/<id:endpoint_id>/workers/<id:worker_id>/resume",
        *(f"{method} {path}" for path, methods in MANAGING.items() for method in methods.split()),
    },
    Access.WORKER: {
        "GET /v2/<id:endpoint_id>/job-take/<id:worker_id>",
        "GET /v2/<id:endpoint_id>/job-take-batch/<id:worker_id>",
        "GET /v2/<id:endpoint_id>/job-stop/<id:worker_id>",
        "GET /v2/<id:endpoint_id>/ping/<id:worker_id>",
        "POST /v2/<id:endpoint_id>/job-stream/<id:worker_id>/<id:run_id>",
        "POST /v2/<id:endpoint_id>/job-done/<id:worker_id>/<id:run_id>",
    },
}
KEYS = {
    "none": None,
    "unknown": "no-such-key",
    "digest": f"sha256:{digest_of('the-api-key')}",
    "admin": "the-admin-key",
    "api": "the-api-key",
    "mine": "only-mine",
    "other": "only-other",
    "worker": "the-worker-key",
    "bound": "the-bound-key",
}
WORKERS = f"""
endpoints:
  mine: {{apiKeys: [only-mine], workers: [{{url: "http://127.0.0.1:9", id: w}}]}}
  other: {{apiKeys: ["sha256:{digest_of("only-other")}"]}}
"""
ALL_KEYS = {
    "OWNPOD_ADMIN_KEYS": f"sha256:{digest_of('the-admin-key')}",
    "OWNPOD_API_KEYS": f"sha256:{digest_of('the-api-key')}",
    "OWNPOD_WORKER_KEYS": f"the-worker-key,sha256:{digest_of('the-bound-key')}@other/w",
}


@pytest.fixture
def make_api(client, tmp_path, redis_server):
    apps = []
    file = tmp_path / "workers.yaml"

    def make(workers=WORKERS, *, behind_front=False, **environ):
        file.write_text(workers)
        config = load_settings(
            OWNPOD_WORKERS_FILE=file,
            REDIS_URL=redis_server.url,
            OWNPOD_WORKER_GONE_S=10,
            OWNPOD_CUSTOM_TASKS="true",
            **environ,
        )
        apps.append(create_app(config, behind_front=behind_front))
        # Requests that wait are answered at once.
        services_of(apps[-1]).notices.stop()
        return apps[-1].test_client()

    return make


def routes(app):
    """(method, rule) of all routes."""
    return [
        (method, rule)
        for rule in app.url_map.iter_rules()
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"})
    ]


def call(api, method, rule, key, endpoint="mine"):
    """The status of a request to a route, with ids of a job and a run that do not exist."""
    path = str(rule)
    for name, value in {"endpoint_id": endpoint, "worker_id": "w"}.items():
        path = path.replace(f"<id:{name}>", value)
    for name in ("job_id", "run_id", "token"):
        path = path.replace(f"<id:{name}>", "none")
    path = re.sub(r"<any\(['\"]?([a-z-]+).*?>", r"\1", path)
    path = re.sub(r"<[a-z]+:\w+>", "none", path)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    # No route accepts this body, because the test checks keys only.
    with api.open(path, method=method, headers=headers, json=[]) as answer:
        return answer.status_code, answer.get_data(as_text=True)


def test_every_route_is_classified(make_api):
    app = make_api(OWNPOD_CALLBACK_URL="http://127.0.0.1:8000").application
    found = {f"{method} {rule}" for method, rule in routes(app)}
    known = [route for group in ROLES.values() for route in group]
    assert len(known) == len(set(known))
    assert found == set(known), "a new route: add it to ROLES, and to ownpod.api.auth's tables"
    for method, rule in routes(app):
        assert f"{method} {rule}" in ROLES[access_of(rule.endpoint)], rule


def test_a_view_that_was_forgotten_needs_an_admin_key():
    assert access_of("secrets.all") is Access.MANAGE
    assert access_of("healthy.x") is Access.MANAGE


EXPECTED = {
    # The response to each key: 401, 403, or None if the key opens the route.
    Access.OPEN: dict.fromkeys(KEYS),
    Access.LIST: dict.fromkeys(KEYS, 401) | dict.fromkeys(["admin", "api", "mine", "other"]),
    Access.ALL: dict.fromkeys(KEYS, 401)
    | dict.fromkeys(["admin", "api"])
    | {"mine": 403, "other": 403},
    Access.JOBS: dict.fromkeys(KEYS, 401)
    | dict.fromkeys(["admin", "api", "mine"])
    | {"other": 403},
    Access.MANAGE: dict.fromkeys(KEYS, 401)
    | dict.fromkeys(["api", "mine", "other", "worker", "bound"], 403)
    | {"admin": None},
    Access.CUSTOM: dict.fromkeys(KEYS, 401)
    | dict.fromkeys(["api", "mine", "other", "worker", "bound"], 403)
    | {"admin": None},
    Access.WORKER: dict.fromkeys(KEYS, 401) | {"worker": None, "bound": 403},
}


@pytest.mark.parametrize("name", KEYS)
def test_each_key_opens_its_routes_and_no_other(make_api, name):
    api = make_api(**ALL_KEYS)
    for method, rule in routes(api.application):
        access = access_of(rule.endpoint)
        expected = EXPECTED[access][name]
        status, text = call(api, method, rule, KEYS[name])
        place = (method, str(rule), status, text)
        if expected is None:
            assert status not in {401, 403}, place
        elif rule.endpoint in {
            "worker_protocol.take",
            "worker_protocol.take_batch",
            "worker_protocol.stop",
        }:
            # The SDK sleeps after a 429 only.
            assert status == 429, place
            assert ("bound" if expected == 403 else "OWNPOD_WORKER_KEYS") in text, place
        elif rule.endpoint in {"worker_protocol.done", "worker_protocol.chunk"}:
            # The SDK drops a result after a 4xx, and posts it again after a 503.
            assert status == 503, place
            assert ("bound" if expected == 403 else "OWNPOD_WORKER_KEYS") in text, place
        else:
            assert status == expected, place
            found = json.loads(text)
            assert found.get("error") or found["detail"], place


def test_a_bound_worker_key_is_taken_where_it_is_bound_to(make_api):
    api = make_api(**ALL_KEYS)
    headers = {"Authorization": "the-bound-key"}
    assert api.get("/v2/other/ping/w", headers=headers).status_code == 200
    assert api.get("/v2/other/ping/x", headers=headers).status_code == 403
    assert api.get("/v2/mine/ping/w", headers=headers).status_code == 403


def test_api_keys_without_an_admin_key_do_not_manage_over_http(make_api):
    api = make_api(OWNPOD_API_KEYS="the-api-key")
    for method, rule in routes(api.application):
        if access_of(rule.endpoint) is Access.MANAGE:
            for key in ("the-api-key", "only-mine"):
                status, text = call(api, method, rule, key)
                assert (status, "set OWNPOD_ADMIN_KEYS" in text) == (403, True), rule
            assert call(api, method, rule, None)[0] == 401
    assert call(api, "GET", "/v2/<id:endpoint_id>/workers", "only-mine")[0] == 200


def test_keys_of_endpoints_alone_do_not_manage_over_http(make_api):
    api = make_api()
    status, text = call(
        api, "POST", "/v2/<id:endpoint_id>/workers/<id:worker_id>/drain", "only-mine"
    )
    assert (status, "set OWNPOD_ADMIN_KEYS" in text) == (403, True)


@pytest.mark.slow
def test_the_commands_on_the_host_manage_without_a_key(make_api, redis_server, tmp_path):
    make_api(OWNPOD_API_KEYS="the-api-key")
    environ = {
        "OWNPOD_WORKERS_FILE": tmp_path / "workers.yaml",
        "REDIS_URL": redis_server.url,
        "OWNPOD_API_KEYS": "the-api-key",
    }
    done = run_command(sys.executable, "-m", "ownpod", "workers", "drain", "w", **environ)
    assert done.returncode == 0, done.stderr


def test_an_admin_key_alone_leaves_jobs_open_and_closes_managing(make_api):
    api = make_api(
        "endpoints: {mine: {workers: [{url: 'http://a:1', id: w}]}}", OWNPOD_ADMIN_KEYS="a"
    )
    for method, rule in routes(api.application):
        access = access_of(rule.endpoint)
        status, text = call(api, method, rule, None)
        assert (status == 401) is (access in {Access.MANAGE, Access.CUSTOM}), (method, rule, text)
        assert call(api, method, rule, "a")[0] not in {401, 403}


def test_without_any_key_everything_is_open(make_api):
    api = make_api("endpoints: {mine: {workers: [{url: 'http://a:1', id: w}]}}")
    for method, rule in routes(api.application):
        assert call(api, method, rule, None)[0] not in {401, 403}, rule


def test_a_url_without_a_route_needs_a_key_and_is_then_a_404(make_api):
    api = make_api(**ALL_KEYS)
    assert call(api, "GET", "/v2/mine/none", None)[0] == 401
    assert call(api, "GET", "/v2/mine/none", "only-mine")[0] == 404
    assert call(api, "GET", "/none", None)[0] == 404


def test_keys_are_asked_for_as_soon_as_an_endpoint_has_one(make_api, tmp_path):
    api = make_api("endpoints: {mine: {}}")
    assert api.get("/v2/mine/health").status_code == 200
    registry = services_of(api.application).registry
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {mine: {apiKeys: [k]}}")
    registry.reload(load_endpoints(load_settings(OWNPOD_WORKERS_FILE=file)))
    assert api.get("/v2/mine/health").status_code == 401
    assert api.get("/v2/mine/health", headers={"Authorization": "k"}).status_code == 200


# --- adding a worker


ADMIN = {"Authorization": "Bearer the-admin-key"}


def test_global_worker_headers_go_to_configured_workers_only(make_api, client, tmp_path):
    headers = {"OWNPOD_WORKER_HEADERS": '{"Authorization": "Bearer SECRET"}'}
    api = make_api(**ALL_KEYS, **headers)
    body = {"url": "http://attacker:9", "id": "x", "headers": {"X-Own": "y"}}
    assert api.post("/v2/mine/workers", json=body, headers=ADMIN).status_code == 200
    config = load_settings(OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml", **headers)
    found = {
        w.id: w.headers for w in Registry(load_endpoints(config), Fleet(client), config).workers()
    }
    assert found == {"w": {"Authorization": "Bearer SECRET"}, "x": {"X-Own": "y"}}


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/nothing"])
def test_a_ca_bundle_is_refused_over_http_and_reveals_nothing_about_files(make_api, path):
    api = make_api(**ALL_KEYS)
    body = {"url": "http://b:9", "caBundle": path}
    answer = api.post("/v2/mine/workers", json=body, headers=ADMIN)
    assert (answer.status_code, answer.json) == (400, {"error": "caBundle: Unknown field."})


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_worker_is_added_with_a_json_content_type_only(make_api, kind):
    api = make_api(**ALL_KEYS)
    body = '{"url": "http://b:9", "id": "b"}'
    answer = api.post("/v2/mine/workers", data=body, headers=ADMIN, content_type=kind)
    assert answer.status_code == 415
    assert "application/json" in answer.json["error"]
    kind = "application/json; charset=utf-8"
    answer = api.post("/v2/mine/workers", data=body, headers=ADMIN, content_type=kind)
    assert answer.status_code == 200


# --- rates


LIMIT = {"OWNPOD_RATE_LIMITS": '{"health": "1/minute"}'}


def health(api, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.get("/v2/mine/health", headers=headers).status_code


def test_a_known_key_is_a_caller_of_its_own_and_a_made_up_one_is_not(make_api):
    api = make_api("endpoints: {mine: {}}", OWNPOD_ADMIN_KEYS="a", OWNPOD_WORKER_KEYS="w", **LIMIT)
    assert [health(api), health(api, Authorization="x"), health(api, Authorization="y")] == [
        200,
        429,
        429,
    ]
    assert [health(api, Authorization=key) for key in ("a", "w", "a")] == [200, 200, 429]


def test_forwarded_addresses_count_behind_as_many_proxies_as_are_configured(make_api):
    api = make_api("endpoints: {mine: {}}", **LIMIT)
    codes = [health(api, X_Forwarded_For=f"10.0.0.{n}") for n in range(3)]
    assert codes == [200, 429, 429]
    api = make_api("endpoints: {mine: {}}", OWNPOD_TRUSTED_PROXIES=1, **LIMIT)
    codes = [health(api, X_Forwarded_For=f"10.0.1.{n}") for n in range(3)]
    assert codes == [200, 200, 200]
    # The proxy wrote only the last entry.
    codes = [health(api, X_Forwarded_For=f"10.0.2.{n}, 10.0.3.1") for n in range(3)]
    assert codes == [200, 429, 429]


def test_behind_the_front_the_last_address_counts_and_those_of_the_proxies_before_it(make_api):
    api = make_api("endpoints: {mine: {}}", behind_front=True, **LIMIT)
    assert [health(api, X_Forwarded_For=f"10.0.4.{n}") for n in (1, 2, 2)] == [200, 200, 429]
    # The front wrote only the last entry.
    codes = [health(api, X_Forwarded_For=f"10.0.5.{n}, 10.0.6.1") for n in range(3)]
    assert codes == [200, 429, 429]
    api = make_api("endpoints: {mine: {}}", behind_front=True, OWNPOD_TRUSTED_PROXIES=1, **LIMIT)
    codes = [health(api, X_Forwarded_For=f"10.0.7.{n}, 10.0.8.1") for n in (1, 2, 2)]
    assert codes == [200, 200, 429]
    # These two callers came past the proxy.
    assert [health(api, X_Forwarded_For=f"10.0.9.{n}") for n in (1, 2, 2)] == [200, 200, 429]


def test_a_key_may_come_as_x_api_key_and_authorization_comes_first(make_api):
    api = make_api(**ALL_KEYS)
    for headers, status in (
        ({"X-API-Key": "only-mine"}, 200),
        ({"x-api-key": " only-mine "}, 200),
        ({"X-API-Key": "no-such-key"}, 401),
        ({"X-API-Key": "only-mine", "Authorization": "Bearer no-such-key"}, 401),
        ({"X-API-Key": "no-such-key", "Authorization": "Bearer only-mine"}, 200),
    ):
        assert api.get("/v2/mine/health", headers=headers).status_code == status, headers
