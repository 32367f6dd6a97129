"""``ownpod endpoints``: the endpoints of the management APIs, for people."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click

from ownpod import settings
from ownpod.errors import BadRequest, CatalogRefused
from ownpod.management.applied_file import wanted_of, write
from ownpod.management.shown import time_text
from ownpod.rules.applied import Wanted, file_entry
from ownpod.rules.catalog import EndpointRow, EndpointType, Kind, new_id
from ownpod.rules.catalog_changes import gpu_names
from ownpod.store.catalog import Snapshot
from ownpod.tools import catalog, hosts, tables
from ownpod.tools.remote import print_json

COLUMNS = ("ID", "NAME", "TYPE", "WORKERS", "GPUS", "VERSION", "SOURCE", "IMAGE")

Command = Callable[..., Any]

OPTIONS: tuple[tuple[str, str, Any, str], ...] = (
    ("--name", "name", str, "Its name for people; by default the id."),
    ("--image", "template.image", str, "The image of its workers."),
    ("--command", "template.command", str, "Replaces the image's command."),
    ("--entrypoint", "template.entrypoint", str, "Replaces the image's entrypoint."),
    ("--protocol", "template.protocol", str, "pull or push."),
    ("--init-timeout", "template.initTimeout", int, "Seconds until a worker requests a job."),
    ("--registry", "template.registry", str, "Id of the credentials for its image."),
    ("--memory", "template.limits.memory", str, "Memory of a worker, like 16g."),
    ("--cpus", "template.limits.cpus", float, "CPUs of a worker."),
    ("--gpu-pools", "gpu.pools", str, "Pools or GPU types in order of preference, with commas."),
    ("--gpu-count", "gpu.count", int, "GPUs of a worker; 0: it needs none."),
    ("--workers-min", "workersMin", int, "Workers that are kept without jobs."),
    ("--workers-max", "workersMax", int, "Most workers at a time."),
    ("--idle-timeout", "idleTimeout", int, "Seconds without a job after which a worker stops."),
    ("--scaler-type", "scalerType", str, "QUEUE_DELAY or REQUEST_COUNT."),
    ("--scaler-value", "scalerValue", float, "Seconds, or jobs for each worker."),
    ("--execution-timeout", "executionTimeout", int, "Milliseconds that a job may run."),
    ("--ttl", "ttl", int, "Milliseconds that a job may take from its submission on."),
    ("--max-attempts", "maxAttempts", int, "Tries of a job whose worker is lost."),
    ("--max-queue-depth", "maxQueueDepth", int, "Jobs that may wait; 0: any number."),
    ("--on-disconnect", "onDisconnect", str, "Jobs of OpenAI clients that leave: cancel or keep."),
    ("--network-volume-ids", "networkVolumeIds", str, "Ids of network volumes, with commas."),
    ("--data-center-ids", "dataCenterIds", str, "Ids of data centers, with commas."),
    ("--capacity", "capacity", int, "LB: requests that a worker gets at a time."),
    ("--port", "port", int, "LB: the port on which a worker serves, PORT."),
    ("--health-port", "healthPort", int, "LB: the port of its health check, PORT_HEALTH."),
    ("--health-path", "healthPath", str, "LB: its path, HEALTH_CHECK_PATH; by default /ping."),
    ("--hold-timeout", "holdTimeout", int, "LB: seconds that a request waits for a worker."),
    ("--request-timeout", "requestTimeout", int, "LB: seconds that one may run; 0: any."),
    ("--max-body", "maxBody", int, "LB: MiB of the largest body of a request."),
    (
        *("--pass-authorization", "passAuthorization", bool),
        "LB: whether workers get the header Authorization.",
    ),
    ("--expires", "expires", str, "From then on it is paused, like 2026-12-31T00:00:00Z."),
)
"""Options of ``create`` and ``update``: the option, the key of the file, its type, its help."""

_LISTS = frozenset(("networkVolumeIds", "dataCenterIds"))


def _described(command: Command) -> Command:
    """Adds the options that describe an endpoint."""
    for option, key, kind, text in reversed(OPTIONS):
        command = click.option(option, key.replace(".", "__"), type=kind, help=text)(command)
    command = click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="A variable of its workers; without a value that of this command's environment.",
    )(command)
    return catalog.plan_option(command)


@click.group()
def endpoints() -> None:
    """List, create, change, pause and delete endpoints whose workers OwnPod starts.

    Those of workers.yaml are listed, and changed in the file. The commands use the Redis of this host's settings.
    """


@endpoints.command(name="list")
@hosts.json_option
def list_endpoints(*, as_json: bool) -> None:
    """List all endpoints. WORKERS are the fewest and the most."""
    with catalog.opened() as management:
        rows = management.endpoints.list()
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    tables.show(COLUMNS, map(_cells, rows))


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
@hosts.json_option
def show(endpoint_id: str, *, as_json: bool) -> None:
    """Show one endpoint as the file of `ownpod apply` has it; variables without their values."""
    with catalog.opened() as management:
        row = management.endpoints.get(endpoint_id)
    if as_json:
        print_json(_as_json(row))
        return
    click.echo(f"# version {row.version}; source: {tables.one_line(_source(row))}")
    for release in row.releases:
        changed = ", ".join(d.field for d in release.differences) or "created"
        when = time_text(release.created_ms)
        click.echo(tables.one_line(f"# version {release.version} of {when}: {changed}"))
    click.echo(write([row], with_values=False), nl=False)


@endpoints.command()
@click.argument("endpoint_id", metavar="[ID]", required=False)
@click.option(
    "--type",
    "kind",
    type=click.Choice([found.short for found in EndpointType]),
    help="QB: jobs wait in a queue, the default. LB: requests go straight to a worker.",
)
@_described
def create(
    endpoint_id: str | None,
    *,
    kind: str | None,
    env: tuple[str, ...],
    planned: bool,
    **options: Any,
) -> None:
    """Create an endpoint; without ID it gets one in RunPod's shape.

    \b
      ownpod endpoints create chat --image you/chat:1 --gpu-pools ADA_24,24GB --env HF_TOKEN
      ownpod endpoints create web --type LB --image you/web:1 --port 8000 --capacity 4
    """  # noqa: D301 - click's mark for lines that it must not wrap
    first = {"type": kind} if kind else {}
    values = _overlaid({**first, "template": {}}, env, (), options)
    with catalog.opened() as management:
        made_id = endpoint_id or new_id(Kind.ENDPOINT, management.catalog.read().endpoints)

        def wanted(snapshot: Snapshot) -> list[Wanted]:
            if made_id in snapshot.endpoints:
                raise CatalogRefused(f"endpoint {made_id!r} exists")
            return [wanted_of(made_id, values)]

        done = management.applies.apply(wanted, catalog.caller(planned=planned))
    catalog.show_steps(done, planned=planned)


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
@click.option("--unset-env", multiple=True, metavar="NAME", help="Removes a variable.")
@_described
def update(
    endpoint_id: str,
    *,
    env: tuple[str, ...],
    unset_env: tuple[str, ...],
    planned: bool,
    **options: Any,
) -> None:
    """Change an endpoint; what no option names stays, and an empty text means the default.

    \b
      ownpod endpoints update chat --image you/chat:2 --plan
      ownpod endpoints update chat --expires ""
    """  # noqa: D301 - click's mark for lines that it must not wrap
    with catalog.opened() as management:

        def wanted(snapshot: Snapshot) -> list[Wanted]:
            row = snapshot.endpoints.get(endpoint_id) or management.endpoints.get(endpoint_id)
            now = file_entry(row, with_values=False)
            return [wanted_of(endpoint_id, _overlaid(now, env, unset_env, options))]

        done = management.applies.apply(wanted, catalog.caller(planned=planned))
    catalog.show_steps(done, planned=planned)


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
def delete(endpoint_id: str) -> None:
    """Delete an endpoint: its workers stop, and its waiting jobs are cancelled."""
    with catalog.opened() as management:
        management.endpoints.delete(endpoint_id, catalog.caller())
    click.echo(f"deleted {endpoint_id}")


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
def pause(endpoint_id: str) -> None:
    """Pause an endpoint: its workers end after their jobs, and it takes no new jobs."""

    def paused(_snapshot: Snapshot, row: EndpointRow) -> EndpointRow:
        return replace(row, workers_max=0, paused_max=row.workers_max or row.paused_max)

    with catalog.opened() as management:
        management.endpoints.update(endpoint_id, paused, catalog.caller())
    click.echo(f"paused {endpoint_id}; `ownpod endpoints resume {endpoint_id}` ends that")


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
@click.option(
    "--workers-max", type=click.IntRange(1), help="Most workers; by default as before the pause."
)
def resume(endpoint_id: str, workers_max: int | None) -> None:
    """Let a paused endpoint have workers again."""

    def resumed(_snapshot: Snapshot, row: EndpointRow) -> EndpointRow:
        if row.workers_max:
            raise BadRequest(f"endpoint {endpoint_id!r} is not paused")
        most = workers_max or row.paused_max
        if not most:
            raise BadRequest(
                f"endpoint {endpoint_id!r} was paused by workersMax 0: give --workers-max"
            )
        return replace(row, workers_max=most, paused_max=0)

    with catalog.opened() as management:
        row = management.endpoints.update(endpoint_id, resumed, catalog.caller()).row
    click.echo(f"resumed {endpoint_id} with at most {row.workers_max} workers")


def _overlaid(
    entry: Mapping[str, Any],
    env: tuple[str, ...],
    unset: tuple[str, ...],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The endpoint's keys of the file with those that the options name."""
    values: dict[str, Any] = copy.deepcopy(dict(entry))
    for _, key, _, _ in OPTIONS:
        given = options[key.replace(".", "__")]
        if given is not None:
            _put(values, key, given)
    if options["gpu__count"] == 0:
        values.pop("gpu")
    _put_variables(values["template"].setdefault("env", {}), env, unset)
    return values


def _put(values: dict[str, Any], key: str, given: Any) -> None:
    *places, name = key.split(".")
    for place in places:
        values = values.setdefault(place, {})
    if given == "":
        values.pop(name, None)
    elif key in _LISTS:
        values[name] = [part.strip() for part in given.split(",") if part.strip()]
    else:
        values[name] = given


def _put_variables(
    variables: dict[str, str], lines: tuple[str, ...], unset: tuple[str, ...]
) -> None:
    for line in lines:
        name, separator, value = line.partition("=")
        found = value if separator else settings.of_environment(name)
        if found is None:
            raise BadRequest(f"--env {name}: is not in the environment; give {name}=VALUE")
        variables[name] = found
    for name in unset:
        if name not in variables:
            raise BadRequest(f"--unset-env {name}: the endpoint has no such variable")
        del variables[name]


def _source(row: EndpointRow) -> str:
    if row.from_file:
        return "configuration"
    return f"apply of {row.applied}" if row.applied else "management API"


def _as_json(row: EndpointRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "version": row.version,
        "source": _source(row),
        "type": row.type.short,
        "createdMs": row.created_ms,
        **file_entry(row, with_values=False),
    }


def _cells(row: EndpointRow) -> tuple[object, ...]:
    workers = f"{min(row.workers_min, row.workers_max)}-{row.workers_max}"
    gpus = f"{row.gpu.count} x {','.join(gpu_names(row.gpu)) or 'any'}" if row.gpu else ""
    return (
        *(row.id, tables.one_line(row.name), row.type.short),
        *(workers if row.workers_max else "paused", gpus),
        *(row.version, tables.one_line(_source(row)), row.container.image),
    )
