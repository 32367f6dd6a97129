"""``workers.yaml``, ``OWNPOD_PRESETS_FILE`` and ``OWNPOD_WORKERS``: where the configured endpoints are read from, and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from marshmallow import RAISE, Schema, ValidationError, fields, pre_load, validate

from ownpod.configuration.balancing import balancing_of
from ownpod.configuration.cloud import WorkerField, make_cloud_worker
from ownpod.configuration.custom import CUSTOM, custom_endpoint
from ownpod.configuration.endpoints import AddedEndpointSchema, endpoint_of
from ownpod.configuration.preset_endpoints import check_presets, preset_endpoint
from ownpod.configuration.presets import Difficulties, GivenPreset, parse_difficulties, parse_models
from ownpod.configuration.workers import check_unique, make_worker
from ownpod.errors import ConfigurationError
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.quota import first_over_quota
from ownpod.settings import DEFAULT_ENDPOINT, Settings
from ownpod.validation import NAME, first_problem

Parsed = TypeVar("Parsed")

DEFAULT_WORKERS = ("http://localhost:18000",)

LONGEST_PROBLEM = 200
"""Characters of an error of the YAML parser that are shown."""


class _EndpointSchema(AddedEndpointSchema):
    error_messages = {"type": "must be an object with the endpoint's keys"}  # noqa: RUF012 - marshmallow's own name

    workers = fields.List(
        WorkerField(),
        load_default=list,
        error_messages={"invalid": "must be a list, like [{{url: http://localhost:18000}}]"},
    )


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
        error_messages={"invalid": "must be an object with the endpoints by id"},
    )
    difficulties = fields.Raw(allow_none=True)
    models = fields.Raw(allow_none=True)

    @pre_load
    def _has_something(self, content: Any, **_: Any) -> Any:
        if isinstance(content, dict) and not {"endpoints", "models"} & content.keys():
            raise ValidationError({"endpoints": ["Missing data for required field."]})
        return content


class _PresetsFileSchema(Schema):
    class Meta:
        unknown = RAISE

    difficulties = fields.Raw(allow_none=True)
    models = fields.Raw(required=True)


@dataclass(frozen=True)
class _File:
    """A file of the configuration, with loaded values."""

    path: Path
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    difficulties: Difficulties | None = None
    presets: tuple[GivenPreset, ...] = ()


_ENDPOINT, _FILE, _PRESETS = _EndpointSchema(), _FileSchema(), _PresetsFileSchema()


def load_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """The endpoints of the configuration by id, from ``workers.yaml``, ``OWNPOD_PRESETS_FILE`` and ``OWNPOD_WORKERS``.

    Raises:
        ConfigurationError: one line that names the file, the field and what is allowed.
    """
    files = [_read(settings.workers_file, _FILE, required=settings.workers_file_required)]
    if settings.presets_file is not None:
        files.append(_read(settings.presets_file, _PRESETS, required=True))
    given = files[0].endpoints
    if settings.workers is not None:
        local = given.setdefault(DEFAULT_ENDPOINT, _ENDPOINT.load({}))
        local["workers"] = [{"url": u, "headers": {}} for u in settings.workers]
    if not given and not any(file.presets for file in files):
        default = [{"url": url} for url in DEFAULT_WORKERS]
        given[DEFAULT_ENDPOINT] = _ENDPOINT.load({"workers": default})
    endpoints = {
        endpoint_id: endpoint_of(
            endpoint_id,
            values,
            tuple(_worker(endpoint_id, w, values, settings) for w in values["workers"]),
        )
        for endpoint_id, values in given.items()
    }
    endpoints |= _presets(files, endpoints, settings)
    if settings.custom_tasks:
        if CUSTOM in endpoints:
            raise ConfigurationError(
                f"{settings.workers_file}: the endpoint {CUSTOM!r} is that of custom tasks: rename it, or unset OWNPOD_CUSTOM_TASKS"
            )
        endpoints[CUSTOM] = custom_endpoint(settings)
    check_unique([worker for endpoint in endpoints.values() for worker in endpoint.workers])
    if over := first_over_quota(endpoints, settings.worker_quota):
        endpoint_id, problem = over
        preset = endpoints[endpoint_id].preset
        place = f"endpoints.{endpoint_id}.workersMax" if preset is None else preset.title
        raise ConfigurationError(f"{settings.workers_file}: {place}: {problem}")
    return endpoints


def _worker(
    endpoint_id: str, worker: dict[str, Any], values: Mapping[str, Any], settings: Settings
) -> WorkerSpec:
    """A worker of an endpoint, from loaded values of both."""
    if "cloud" in worker:
        return make_cloud_worker(endpoint_id, worker, settings)
    return make_worker(endpoint_id, worker, settings, balancing=balancing_of(values))


def _presets(
    files: Sequence[_File], others: Mapping[str, Endpoint], settings: Settings
) -> dict[str, Endpoint]:
    """The endpoints of the presets of all files. Raises: ConfigurationError."""
    defined = [file for file in files if file.difficulties is not None]
    if len(defined) > 1:
        raise ConfigurationError(
            f"{defined[1].path}: difficulties: are defined in {defined[0].path}, too: leave them out in one file"
        )
    difficulties = (defined[0].difficulties if defined else None) or Difficulties()
    found: dict[str, Endpoint] = {}
    places: dict[str, str] = {}
    for file in files:
        for given in file.presets:
            endpoint_id, place = given.endpoint_id, f"{file.path}: models.{given.place}"
            if endpoint_id in others:
                raise ConfigurationError(
                    f"{place}: its endpoint {endpoint_id!r} is defined under `endpoints`, too: rename one of them"
                )
            if endpoint_id in found:
                raise ConfigurationError(
                    f"{place}: its endpoint {endpoint_id!r} is also that of {places[endpoint_id]}: rename one of them"
                )
            places[endpoint_id] = place
            found[endpoint_id] = preset_endpoint(
                given, difficulties, settings, f"{file.path}: models"
            )
    check_presets(found.values(), settings)
    return found


_kept: dict[tuple[object, ...], dict[str, Endpoint]] = {}
"""The endpoints of each source, because forked processes inherit nothing else."""


def _source(settings: Settings) -> tuple[object, ...]:
    """Where settings have their endpoints from."""
    presets = settings.presets_file and settings.presets_file.absolute()
    return settings.workers_file.absolute(), presets, settings.workers


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


def _read(path: Path, schema: Schema, *, required: bool) -> _File:
    """A file with its values. Raises: ConfigurationError."""
    try:
        values = schema.load(yaml.safe_load(path.read_text()))
        return _File(
            path,
            values.get("endpoints", {}),
            _within("difficulties", values, parse_difficulties),
            tuple(_within("models", values, lambda models: tuple(parse_models(models))) or ()),
        )
    except FileNotFoundError:
        if not required:
            return _File(path)
        name = "WORKERS" if schema is _FILE else "PRESETS"
        raise ConfigurationError(f"OWNPOD_{name}_FILE={path}: there is no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {yaml_problem(error)}") from None
    except ValidationError as error:
        place, problem = first_problem(error.normalized_messages())
        # Keys may be of any length, and have several lines.
        place = " ".join(place.split())[:LONGEST_PROBLEM]
        raise ConfigurationError(f"{path}: {place}: {problem}") from None
    except (ValueError, RecursionError) as error:
        # Not UTF-8, a date that does not exist, too many digits, too deep.
        problem = " ".join(str(error).split())[:LONGEST_PROBLEM]
        raise ConfigurationError(f"{path}: cannot be read: {problem}") from None


def _within(key: str, values: Mapping[str, Any], parse: Callable[[Any], Parsed]) -> Parsed | None:
    """What a key of a file means; None: it is not there. Raises: ValidationError, with the key."""
    if key not in values:
        return None
    try:
        return parse(values[key])
    except ValidationError as error:
        raise ValidationError({key: error.normalized_messages()}) from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """The problem and its place, without the lines of the file that the error quotes: these may have secrets."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())
