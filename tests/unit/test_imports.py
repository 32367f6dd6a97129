"""The architecture, checked: which floor may import which, and that no import points up."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ownpod"

# From the bottom up; a module imports only from floors below its own, or from its own.
FLOORS = [
    ("base", ["", "errors", "preset_errors", "validation"]),
    ("rules", ["rules"]),
    ("process", ["log", "settings", "processes", "supervised"]),
    ("configuration", ["configuration"]),
    ("store", ["store"]),
    ("registry", ["registry"]),
    ("management", ["management"]),
    ("broker", ["broker"]),
    ("celery", ["celery", "celeryconfig"]),
    ("workers", ["workers"]),
    ("node", ["node"]),
    ("agent", ["agent"]),
    ("front", ["front"]),
    ("housekeeping", ["housekeeping"]),
    ("supervisor", ["supervisor"]),
    ("api", ["api"]),
    ("onehost", ["onehost"]),
    ("tools", ["tools", "__main__"]),
]

# Floors, or single modules, that may import a library.
ONLY = {
    "celery": {
        *("broker", "celery", "node", "supervisor"),
        *("housekeeping.signals", "housekeeping.tasks"),
        *("tools.celery_commands", "onehost.flower_guard"),
    },
    "kombu": {"broker", "supervisor"},
    "flask": {"api"},
    "msgspec": {"rules.payload"},
    "httptools": {"workers.http"},
    "urllib3": {"workers.http", "tools.client", "api.serving.worker"},
    # docker-py raises its errors.
    "requests": {"tools.client", "agent.docker_api", "agent.model_downloads"},
    "fsspec": {"agent.model_sources"},
    "huggingface_hub": {"agent.model_hub"},
    "docker": {"agent.docker_api"},
    "jsonschema": {"management.v2.schemas"},
    "graphql": {"management.graphql.api", "management.graphql.context"},
    "pynvml": {"agent.devices"},
    "cryptography": {"store.secret_keys"},
    "redis": {"store", "onehost.embedded", "tools"},
}

# Modules of the API that other ways into OwnPod use, so they must not know a web framework.
WITHOUT_FLASK = {"api.jobs.submissions", "api.jobs.waiting", "api.workers.held"}

# Must not be reached, however far the way.
APART = [
    ("api", "workers"),
    ("workers", "redis"),
    ("workers", "celery"),
    ("rules", "redis"),
    ("rules", "celery"),
    ("agent", "celery"),
    ("store", "celery"),
    ("store", "kombu"),
]

LONGEST = 400
"""Lines of a module, Lua included."""


@functools.cache
def modules():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


def floor_of(module):
    """Number and name of a module's floor."""
    top = module.partition(".")[0]
    return next((n, name) for n, (name, tops) in enumerate(FLOORS) if top in tops)


@functools.cache
def imports(path):
    """Modules that a file imports, ownpod's without the package's name."""
    return list(_imports(path))


def statements(node):
    """All statements below a node. To look into their expressions too takes three times as long."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        found = getattr(node, field, ())
        for statement in found if isinstance(found, list) else ():
            yield statement
            yield from statements(statement)


def _imports(path):
    known = {name for name, _ in modules()}
    for node in statements(ast.parse(path.read_text())):
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


def test_every_module_is_on_a_floor():
    tops = {name.partition(".")[0] for name, _ in modules()}
    assert tops == {top for _, floor in FLOORS for top in floor}


def test_every_floor_that_is_a_folder_states_what_it_imports():
    folders = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    for folder in folders:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert "mports" in text, (
            f"{folder.name}/__init__.py: say in three sentences what it imports"
        )


def test_no_import_points_up():
    up = []
    for name, others in own_imports().items():
        height, floor = floor_of(name)
        for other in others:
            if floor_of(other)[0] > height:
                below = ", ".join(f for f, _ in FLOORS[: height + 1])
                up.append(
                    f"ownpod.{name} imports ownpod.{other}: the floor {floor} may import {below}"
                )
    assert not up, "\n".join(up)


def test_there_is_no_cycle():
    TopologicalSorter(own_imports()).prepare()


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_where_it_belongs(library):
    users = {
        name for name, path in modules() if library in {i.partition(".")[0] for i in imports(path)}
    }
    allowed = ONLY[library]
    others = {name for name in users if not {name, name.partition(".")[0]} & allowed}
    assert not others, f"{library} may be imported by {', '.join(sorted(allowed))} only"


@pytest.mark.parametrize("name", sorted(WITHOUT_FLASK))
def test_a_module_for_every_way_in_imports_no_flask(name):
    found = {i.partition(".")[0] for i in imports(dict(modules())[name])}
    assert not found & {"flask", "werkzeug"}, f"ownpod.{name} must work without Flask"


@pytest.mark.parametrize(("start", "end"), APART)
def test_what_must_stay_apart_does(start, end):
    graph, paths = own_imports(), dict(modules())
    seen, todo = set(), [name for name in graph if name.partition(".")[0] == start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    libraries = {i.partition(".")[0] for name in seen for i in imports(paths[name])}
    reached = {name.partition(".")[0] for name in seen} | (libraries - {"ownpod"})
    assert end not in reached, f"{start} must not reach {end}, not even through other modules"


def test_no_module_is_long():
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.lua")]
    lines = {path: len(path.read_text().splitlines()) for path in files}
    long = [f"{p.relative_to(PACKAGE)}: {n} lines" for p, n in lines.items() if n > LONGEST]
    assert not long, f"cut these in two, none may have more than {LONGEST} lines: {long}"
