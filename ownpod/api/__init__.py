"""The HTTP API: a request becomes a job record and a Celery message in Redis.

Imports ``celery``, the broker, the registry, the store and the floors below them; no other floor imports Flask. It
imports no driver, because the API never sends a request to a worker.

Each folder is for one kind of caller: ``jobs`` for RunPod's clients, ``openai`` for OpenAI's, ``tasks`` for those of the GPU service,
``management`` for RunPod's management APIs, ``workers`` for workers and their hosts; ``metrics`` and ``openapi`` tell about all of
them, and ``serving`` is the way of a request through gunicorn. What several of these need is beside the folders.
"""

from flask import Flask, Response, current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, RequestTimeout

from ownpod.api import (
    auth,
    balanced,
    error_answers,
    gpu_health,
    guard,
    health,
    ids,
    limits,
    models,
    ui,
)
from ownpod.api.jobs import callbacks, stream
from ownpod.api.jobs import routes as job_routes
from ownpod.api.jobs.estimates import Estimates
from ownpod.api.jobs.positions import Positions
from ownpod.api.jobs.readers import Readers
from ownpod.api.jobs.submissions import Submissions
from ownpod.api.jobs.waiting import Waiting
from ownpod.api.management import graphql
from ownpod.api.management import v1_pods as rest_v1_pods
from ownpod.api.management import v2 as rest_v2
from ownpod.api.management import v2_workers as rest_v2_workers
from ownpod.api.metrics import routes as metric_routes
from ownpod.api.openai import errors as openai_errors
from ownpod.api.openai import routes as openai_routes
from ownpod.api.openapi import document
from ownpod.api.services import Services, answer, provide, request_id
from ownpod.api.tasks import errors as task_errors
from ownpod.api.tasks import routes as task_routes
from ownpod.api.tasks import sessions
from ownpod.api.tasks.submission import Tasks
from ownpod.api.workers import agents, logs
from ownpod.api.workers import protocol as worker_protocol
from ownpod.api.workers import routes as worker_routes
from ownpod.api.workers.reports import Reports
from ownpod.celery import open_store
from ownpod.configuration import kept_endpoints
from ownpod.errors import OwnPodError
from ownpod.management import Management
from ownpod.management.models import ModelCalls
from ownpod.registry import Registry
from ownpod.settings import Settings
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.attended import Attended
from ownpod.store.catalog import Catalog
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts
from ownpod.store.managed import Managed
from ownpod.store.model_lists import ModelLists
from ownpod.store.models import Models
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.store.outputs import Outputs
from ownpod.store.replies import Replies
from ownpod.store.secrets import Secrets
from ownpod.store.sessions import Sessions


def create_app(settings: Settings, *, behind_front: bool = False) -> Flask:
    """Creates the WSGI application. It opens no connection before the first request.

    Args:
        settings: the settings.
        behind_front: all requests come through the front, which writes the caller's address into ``X-Forwarded-For``.

    Raises:
        ConfigurationError: the file with the endpoints is missing or invalid.
    """
    app = Flask("ownpod", static_folder=None)
    url = settings.broker_url()
    store = open_store(settings, client_name="ownpod-api")
    registry = Registry(kept_endpoints(settings), Fleet(store.client), settings)
    offers = Offers(store.client, gone_s=settings.worker_gone_s)
    notices = Notices(store.client, keys.PULL_EVENTS)
    managed = Managed(store.client)
    hosts, fronts = Agents(store.client), Fronts(store.client)
    submissions = Submissions(
        registry,
        store,
        notices,
        settings,
        wanted=managed.notice,
        now_ms=managed.now_ms,
        managed=managed,
    )
    private = Sessions(
        store,
        result_ttl_s=settings.result_ttl_s,
        endpoints=lambda: registry.endpoints,
        hold_least_s=settings.device_hold_s,
    )
    services = Services(
        settings=settings,
        registry=registry,
        waiting=Waiting(registry, offers.refusals, managed),
        store=store,
        notices=notices,
        offers=offers,
        submissions=submissions,
        agents=hosts,
        management=Management.of(
            Catalog(store.client),
            registry,
            Secrets(store.client, settings.secrets_key_path()),
            settings.worker_quota,
            agents=hosts.agents,
            living=fronts.living,
        ),
        outputs=Outputs(store.client),
        releases=managed.releases,
        sessions=private,
        tasks=Tasks(submissions, private, store),
        readers=Readers(Attended(store.client)),
        model_lists=ModelLists(store.client),
        replies=Replies(store.client),
        positions=Positions(store.queue, notices.wake),
        estimates=Estimates(registry, store.figures.pace, managed, hosts),
        reports=Reports(offers),
        managed=managed,
        fronts=fronts,
        models=ModelCalls(Models(store.client), registry, hosts.agents),
    )
    provide(app, services)
    ids.check_ids(app)
    app.register_error_handler(OwnPodError, error_answers.own_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(ParseException, _broken_framing)
    app.register_error_handler(Exception, _unexpected_error)
    for module in (
        job_routes,
        stream,
        openai_routes,
        health,
        gpu_health,
        task_routes,
        sessions,
        models,
        worker_routes,
        agents,
        logs,
        metric_routes,
        ui,
        worker_protocol,
        rest_v1_pods,
        rest_v2_workers,
        graphql,
    ):
        app.register_blueprint(module.blueprint)
    app.register_blueprint(rest_v2_workers.hapi)
    if settings.callback_url is not None:
        app.register_blueprint(callbacks.blueprint)
    app.register_blueprint(worker_routes.endpoints)
    document.add_docs(app)
    task_errors.shape_errors(app)
    openai_errors.shape_errors(app)
    guard.guard_source(app)
    # Before any view reads a record, because records of another version would be misread.
    app.before_request(store.schema.check)
    app.before_request(auth.check_key)
    balanced.refuse_queue_routes(app)
    app.after_request(_return_request_id)
    limits.allow_origins(app, settings.cors_origins)
    limits.limit_rates(app, dict(settings.rate_limits), url)
    limits.trust_proxies(app, settings.trusted_proxies, behind_front=behind_front)
    return app


def _return_request_id(response: Response) -> Response:
    if (given := request_id()) is not None:
        response.headers["X-Request-ID"] = given
    return response


def _http_error(error: HTTPException) -> Response:
    if rest_v2.is_managing(request.path):
        return rest_v2.http_error(error)
    if error.code == 404 and (refused := balanced.no_front(request.path)) is not None:
        return refused
    status = error.code or 500
    if isinstance(error, RequestTimeout):
        status = _of_transfer(status)
    response = answer({"error": f"{error.name}: {error.description}"}, status)
    # Headers that the error requires, such as Allow for a wrong method.
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers.add(name, value)
    return response


def _broken_framing(error: ParseException) -> Response:
    """Answers a body whose chunks cannot be parsed; gunicorn notices this while the body is read."""
    return answer({"error": f"Bad Request: {error}"}, _of_transfer(400))


def _of_transfer(status: int) -> int:
    """The status for a body that did not arrive. Workers get 503, because RunPod's SDK drops a result after a 4xx, and
    posts it again after a 5xx.
    """
    return 503 if request.blueprint == "worker_protocol" else status


def _unexpected_error(error: Exception) -> Response:
    current_app.logger.error("unexpected", exc_info=error)
    return answer({"error": "OwnPod failed to answer this; its log has the reason"}, 500)
