"""``workers.yaml`` and ``OWNPOD_WORKERS``: where the configured endpoints are read from, and kept."""

from typing import Any

import yaml
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from ownpod.configuration.balancing import balancing_of
from ownpod.configuration.endpoints import AddedEndpointSchema, endpoint_of
from ownpod.configuration.workers import WorkerSchema, check_unique, make_worker
from ownpod.errors import ConfigurationError
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.quota import first_over_quota
from ownpod.settings import DEFAULT_ENDPOINT, Settings
from ownpod.validation import NAME, first_problem

DEFAULT_WORKERS = ("http://localhost:18000",)

LONGEST_PROBLEM = 200
"""Characters of an error of the YAML parser that are shown."""


class _EndpointSchema(AddedEndpointSchema):
    workers = fields.List(fields.Nested(WorkerSchema), load_default=list)


class _FileSchema(Schema):
    class Meta:
        unknown = RAISE

    endpoints = fields.Dict(
        keys=fields.String(
            validate=validate.Regexp(
                rf"^{NAME.pattern}\Z", error="an endpoint's id must be letters, digits, - and _"
            )
        ),
        values=fields.Nested(_EndpointSchema),
        required=True,
    )


_ENDPOINT, _FILE = _EndpointSchema(), _FileSchema()


def load_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """The endpoints of the configuration by id, from ``workers.yaml`` and ``OWNPOD_WORKERS``.

    Raises:
        ConfigurationError: one line that names the file, the field and what is allowed.
    """
    given = _read(settings)
    if settings.workers is not None:
        local = given.setdefault(DEFAULT_ENDPOINT, _ENDPOINT.load({}))
        local["workers"] = [{"url": u, "headers": {}} for u in settings.workers]
    if not given:
        default = [{"url": url} for url in DEFAULT_WORKERS]
        given[DEFAULT_ENDPOINT] = _ENDPOINT.load({"workers": default})
    endpoints = {
        endpoint_id: endpoint_of(
            endpoint_id,
            values,
            tuple(
                make_worker(endpoint_id, w, settings, balancing=balancing_of(values))
                for w in values["workers"]
            ),
        )
        for endpoint_id, values in given.items()
    }
    check_unique([worker for endpoint in endpoints.values() for worker in endpoint.workers])
    if over := first_over_quota(endpoints, settings.worker_quota):
        endpoint_id, problem = over
        raise ConfigurationError(
            f"{settings.workers_file}: endpoints.{endpoint_id}.workersMax: {problem}"
        )
    return endpoints


_kept: dict[tuple[object, ...], dict[str, Endpoint]] = {}
"""The endpoints of each source, because forked processes inherit nothing else."""


def _source(settings: Settings) -> tuple[object, ...]:
    """Where settings have their endpoints from."""
    return settings.workers_file.absolute(), settings.workers


def keep_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """Loads the endpoints, also for :func:`kept_endpoints` of this process and of those that it forks later.

    Raises:
        ConfigurationError: as :func:`load_endpoints`; the endpoints that were kept before stay.
    """
    endpoints = _kept[_source(settings)] = load_endpoints(settings)
    return endpoints


def kept_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """The kept endpoints of the same source, so that a process that starts while the file is broken serves those of before;
    without kept ones as :func:`load_endpoints`.
    """
    kept = _kept.get(_source(settings))
    return load_endpoints(settings) if kept is None else kept


def _read(settings: Settings) -> dict[str, dict[str, Any]]:
    path = settings.workers_file
    try:
        content = yaml.safe_load(path.read_text())
        return _FILE.load(content)["endpoints"]  # type: ignore[no-any-return]
    except FileNotFoundError:
        if not settings.workers_file_required:
            return {}
        raise ConfigurationError(f"OWNPOD_WORKERS_FILE={path}: there is no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {yaml_problem(error)}") from None
    except ValidationError as error:
        place, problem = first_problem(error.normalized_messages())
        raise ConfigurationError(f"{path}: {place}: {problem}") from None
    except (ValueError, RecursionError) as error:
        # Not UTF-8, a date that does not exist, too many digits, too deep.
        problem = " ".join(str(error).split())[:LONGEST_PROBLEM]
        raise ConfigurationError(f"{path}: cannot be read: {problem}") from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """The problem and its place, without the lines of the file that the error quotes: these may have secrets."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())
