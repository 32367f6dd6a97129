"""The architecture, checked: which module may import which, and that no arrow points back."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ownpod"

# From the bottom up; a module imports only from lines above its own, or from its own.
LAYERS = [
    {"", "errors", "credentials", "origins"},
    {"urls", "validation", "redis_url"},
    {"settings.kinds"},
    {"settings.declare"},
    {"settings.variables"},
    {
        "settings",
        "addresses",
        "jobs",
        "keys",
        "outbound",
        "patience",
        "payload",
        "processes",
        "log",
        "workarounds",
        "stall",
        "schema",
        "tables",
        "redis_versions",
        "supervised",
        "findings",
    },
    {"connection"},
    {"broker", "scripts", "alive"},
    {"store", "embedded", "control", "endpoints"},
    {"roster"},
    {"deliveries", "listing"},
    {
        *("registry", "events", "pull", "webhooks", "recovery"),
        *("celery", "celeryconfig", "flower"),
    },
    {"flower_guard"},
    {"waiting"},
    {"workers", "workers.answers", "workers.http"},
    {"workers.local_api"},
    {"workers.push", "workers.pull"},
    {"attempts"},
    {"runner", "gate", "sweep"},
    {"tasks"},
    {"node"},
    {"dispatch", "up"},
    {"api.arrival", "api.held", "api.bodies"},
    {"api.channel"},
    {"api.services", "api.schemas", "api.worker"},
    {"api.auth", "api.ids", "api.metrics"},
    {"api.workers", "api.guard"},
    {"api.health", "api.openapi", "api.openapi_internal"},
    {"api.jobs", "api.stream", "api.limits", "api.callbacks", "api.pull", "api.ui"},
    {"api"},
    {"api.server"},
    {"client"},
    {"commands", "terminal", "host_check", "worker_env", "new_keys", "show_settings"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]

# Who may know a library.
ONLY = {
    "celery": {
        "broker",
        "celery",
        "workarounds",
        "tasks",
        "node",
        "control",
        "dispatch",
        "commands",
        "flower_guard",
    },
    "kombu": {"broker", "workarounds", "dispatch"},
    "flask": {
        "api",
        *(
            f"api.{name}"
            for name in [
                "services",
                "auth",
                "bodies",
                "guard",
                "health",
                "ids",
                "openapi",
                "jobs",
                "stream",
                "limits",
                "callbacks",
                "ui",
                "workers",
                "metrics",
                "pull",
                "server",
            ]
        ),
    },
    "msgspec": {"payload"},
    "httptools": {"workers.http"},
    "urllib3": {"workers.http", "client", "api.worker"},
    "requests": {"client"},
    "redis": {
        "connection",
        "store",
        "deliveries",
        "listing",
        "registry",
        "scripts",
        "events",
        "pull",
        "embedded",
        "host_check",
        "cli",
        "alive",
    },
}

# Must not be reached, however far the way.
APART = [("api", "workers"), ("workers", "redis"), ("jobs", "redis"), ("jobs", "celery")]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path):
    """Modules that a file imports, ownpod's without the package's name."""
    known = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = (node.module or "").removeprefix("ownpod").removeprefix(".")
            prefix = f"{inside}." if inside else ""
            if node.module and node.module.partition(".")[0] == "ownpod":
                found = [f"{prefix}{alias.name}" for alias in node.names]
                names = [f"ownpod.{n if n in known else inside}" for n in found]
            else:
                names = [node.module or ""]
        else:
            continue
        yield from names


def own_imports():
    graph = {}
    for name, path in modules():
        mine = {
            i.removeprefix("ownpod").removeprefix(".")
            for i in imports(path)
            if i.partition(".")[0] == "ownpod"
        }
        graph[name] = mine - {name}
    return graph


def test_every_module_has_a_layer():
    assert {name for name, _ in modules()} == set().union(*LAYERS)


def test_no_arrow_points_up():
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    up = [
        (name, other)
        for name, others in own_imports().items()
        for other in others
        if height[other] > height[name]
    ]
    assert up == []


def test_there_is_no_cycle():
    TopologicalSorter(own_imports()).prepare()


def test_libraries_are_known_where_they_belong():
    for library, allowed in ONLY.items():
        users = {
            name
            for name, path in modules()
            if library in {i.partition(".")[0] for i in imports(path)}
        }
        assert users <= allowed, library


def test_what_must_stay_apart_does():
    graph = own_imports()
    for start, end in APART:
        seen, todo = set(), [name for name in graph if name.partition(".")[0] == start]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        paths = dict(modules())
        direct = {
            i.partition(".")[0]
            for name, path in paths.items()
            if name.partition(".")[0] == start
            for i in imports(path)
        }
        assert end not in {name.partition(".")[0] for name in seen} | direct, (start, end)
