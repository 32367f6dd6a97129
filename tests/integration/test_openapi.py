"""The API against its own OpenAPI document: generated requests, checked answers."""

import pytest
from helpers import job_store, load_settings, new_job
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, openapi

from ownpod.api import create_app
from ownpod.api.openapi import make_spec
from ownpod.api.services import services_of
from ownpod.jobs import JobStatus, Outcome

OPERATIONS = [
    (path, method)
    for path, item in make_spec(["ep"], keys=False)["paths"].items()
    for method in item
]


@pytest.fixture
def document(client, redis_server, tmp_path):
    """The document of an API that has jobs in every state, and holds no request."""
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}}")
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    store = job_store(client)
    for status in JobStatus:
        store.create(new_job(f"job-{status}"))
        if status is not JobStatus.IN_QUEUE:
            attempt = store.claim(f"job-{status}", worker_id="w", claim=status, lease_s=60)
            store.add_chunks(attempt.job_id, attempt.number, ["1"])
            if status is not JobStatus.IN_PROGRESS:
                store.finish(attempt, Outcome(status, output="1", error="x"))
    # As when the process ends: whoever would wait is answered at once.
    services_of(app).events.stop()
    return openapi.from_wsgi("/openapi.json", app)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (path, method, mode)
        for path, method in OPERATIONS
        for mode in GenerationMode
        # What has nothing to fill in cannot be filled in wrongly.
        if "{" in path or mode is GenerationMode.POSITIVE
    ],
)
def test_generated_requests_find_nothing(document, path, method, mode):
    operation = document[path][method]
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
        if "job_id" in path and mode is GenerationMode.POSITIVE:
            # Generated ids are nobody's; these are jobs in every state.
            case.path_parameters["job_id"] = jobs[len(str(case.path_parameters)) % len(jobs)]
        case.call_and_validate()

    check()
