"""The API against its own OpenAPI documents, the published and the internal one: generated requests,
checked answers.
"""

import re

import pytest
from helpers import job_store, load_settings, new_job
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode, openapi

from ownpod.api import create_app
from ownpod.api.openapi.document import make_spec
from ownpod.api.openapi.internal import make_internal_spec
from ownpod.api.openapi.tasks import TaskChoices
from ownpod.api.services import services_of
from ownpod.rules.catalog import RESERVED
from ownpod.rules.jobs import JobStatus
from ownpod.rules.presets import Preset
from ownpod.rules.runs import Outcome

PUBLISHED = make_spec(["ep"], keys=False, tasks=TaskChoices([Preset("m", "p")], 1800))
INTERNAL = make_internal_spec(["ep"], keys=False)
OPERATIONS = [
    (kind, path, method)
    for kind, spec in (("published", PUBLISHED), ("internal", INTERNAL))
    for path, item in spec["paths"].items()
    for method in item
]
PAGES = {
    "/",
    "/page/{filename}",
    "/openapi.json",
    "/v1/openapi.json",
    "/v2/openapi.json",
    "/docs/",
    "/docs/{path}",
    "/v2/{endpoint_id}/openai",
}
"""Pages for people, the document itself, and a path that only explains what is wrong with it."""


@pytest.fixture
def app(client, redis_server, tmp_path):
    """An API that has jobs in every state, and holds no request."""
    file = tmp_path / "workers.yaml"
    # The document has no preset's limits, because an admin's session may exceed them.
    preset = "{image: a, command: b, session: {idleTimeout: 0, maxLifetime: 0}}"
    file.write_text(f"{{endpoints: {{ep: {{}}}}, models: {{m: {{p: {preset}}}}}}}")
    app = create_app(
        load_settings(
            REDIS_URL=redis_server.url,
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_CALLBACK_URL="http://10.0.0.5:8000",
        )
    )
    store = job_store(client)
    for status in JobStatus:
        store.jobs.create(new_job(f"job-{status}"))
        if status is not JobStatus.IN_QUEUE:
            attempt = store.jobs.claim(f"job-{status}", worker_id="w", claim=status, lease_s=60)
            store.chunks.add(attempt.job_id, attempt.number, ["1"])
            if status is not JobStatus.IN_PROGRESS:
                store.jobs.finish(attempt, Outcome(status, output="1", error="x"))
    # As when the process ends: whoever would wait is answered at once.
    services_of(app).notices.stop()
    return app


@pytest.fixture
def documents(app):
    internal = openapi.from_dict(INTERNAL)
    internal.app = app
    return {"published": openapi.from_wsgi("/openapi.json", app), "internal": internal}


@pytest.mark.parametrize("event_id", ["1-0.2", "0-0.0q3", "0-0.0c12", "2-17.4000t", "1-end"])
def test_the_document_takes_the_ids_of_a_tasks_events(app, event_id):
    paths = app.test_client().get("/openapi.json").json["paths"]
    parameters = paths["/api/tasks/{task_id}/events"]["get"]["parameters"]
    (after,) = [p["schema"] for p in parameters if p["name"] == "after"]
    assert re.search(after["pattern"], event_id)


def test_every_route_is_in_one_of_both_documents(app):
    # The documents of RunPod's management APIs have a test of their own.
    others = ("rest_v1", "rest_v2", "graphql", "hapi")
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.endpoint.partition(".")[0] not in others
    }
    documented = {(path, method) for _, path, method in OPERATIONS}
    assert documented - routes == set()
    assert {path for path, _ in routes - documented} == PAGES
    assert set(PUBLISHED["paths"]) & set(INTERNAL["paths"]) == set()


def test_the_internal_document_is_not_published(app):
    document = app.test_client().get("/openapi.json").text
    assert "job-take" not in document
    assert "callback" not in document


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "path", "method", "mode"),
    [
        (kind, path, method, mode)
        for kind, path, method in OPERATIONS
        for mode in GenerationMode
        # This API holds no request, so that it answers all of OpenAI's clients 503.
        if "/openai/" not in path
        # A request without parameters has no invalid variant.
        and ("{" in path or mode is GenerationMode.POSITIVE)
    ],
)
def test_generated_requests_find_nothing(documents, kind, path, method, mode):
    operation = documents[kind][path][method]
    jobs = [f"job-{status}" for status in JobStatus]

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        # Below such a segment a wrong id is RunPod's REST v2's, whose errors have another form.
        assume(case.path_parameters.get("endpoint_id") not in RESERVED)
        if ("job_id" in path or "task_id" in path) and mode is GenerationMode.POSITIVE:
            # No job has a generated id; these ids are of jobs in every state.
            name = "job_id" if "job_id" in path else "task_id"
            case.path_parameters[name] = jobs[len(str(case.path_parameters)) % len(jobs)]
        case.call_and_validate()

    check()
