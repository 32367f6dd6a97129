"""`ownpod endpoints`, `apply`, `export` and the other commands of the catalog, on a real Redis."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import yaml
from commands import command_environment, running_commands
from helpers import load_settings, run_command

from ownpod import settings
from ownpod.configuration import load_endpoints
from ownpod.management import Caller, Management
from ownpod.management.applied_file import wanted_of
from ownpod.registry import Registry
from ownpod.rules.balancing import DEFAULT_LIMIT_S, Balancing
from ownpod.rules.catalog import (
    Container,
    Door,
    EndpointRow,
    EndpointType,
    Gpu,
    TemplateRow,
    registry_secret,
)
from ownpod.store.catalog import Catalog
from ownpod.store.fleet import Fleet
from ownpod.store.secrets import Secrets
from ownpod.tools.endpoints import COLUMNS

CALLER = Caller("digest", Door.V1)

SECRET = "hunter2-and-more"

WORKERS = """
endpoints:
  in-file: {template: {image: "img:1"}, workersMax: 1}
"""

FILE = f"""
project: shop
endpoints:
  chat:
    name: Chat
    template:
      image: you/chat:1
      env: {{MODEL: small, TOKEN: {SECRET}}}
      limits: {{memory: 16g}}
    gpu: {{pools: [ADA_24]}}
    workersMax: 5
    ttl: 60000
  embed: {{template: {{image: "you/embed:1"}}}}
"""


@pytest.fixture
def environ(redis_server, client, tmp_path):
    return command_environment(tmp_path, redis_server.url, WORKERS)


@pytest.fixture
def run(environ, monkeypatch):
    """Runs a command in this process. No output ever has the secret."""
    with running_commands(monkeypatch, **environ) as command:

        def run(*arguments, stdin="", shows=False):
            done = command(*arguments, stdin=stdin)
            assert shows or SECRET not in done.output + done.errors
            return done

        yield run


@pytest.fixture
def registry(client, environ):
    config = load_settings(**environ)
    return Registry(load_endpoints(config), Fleet(client), config)


@pytest.fixture
def management(client, registry, tmp_path):
    return Management.of(Catalog(client), registry, Secrets(client, tmp_path / "secrets.key"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "endpoints.yaml"
    path.write_text(FILE)
    return path


def rows(management):
    return management.catalog.read().endpoints


def test_a_plan_writes_nothing_and_an_apply_makes_it_so(run, file, management, registry):
    plan = run("apply", "-f", str(file), "--plan", "--exit-code")
    assert plan.code == 2
    assert "create chat\n" in plan.output
    assert "    template.env: MODEL, TOKEN\n" in plan.output
    assert plan.output.endswith("2 to change; nothing was written\n")
    assert rows(management) == {}
    done = run("apply", "-f", str(file))
    assert (done.code, done.errors) == (0, "")
    registry.refresh()
    endpoint = registry.endpoint("chat")
    assert (endpoint.ttl_ms, endpoint.managed.scaling.workers_max) == (60_000, 5)
    assert endpoint.managed.template.env == {"MODEL": "small", "TOKEN": SECRET}
    again = run("apply", "-f", str(file), "--plan", "--exit-code")
    assert (again.code, again.output) == (0, "no changes\n")


def test_a_change_names_its_fields_and_whether_workers_are_replaced(run, file, management):
    run("apply", "-f", str(file))
    text = FILE.replace("chat:1", "chat:2").replace("embed:1}}", "embed:1}}, workersMax: 9")
    text = text.replace('"you/embed:1"}}', '"you/embed:1"}}').replace(SECRET, f"{SECRET}-2")
    file.write_text(text.replace("embed: {", "embed: {idleTimeout: 60, "))
    done = run("apply", "-f", str(file))
    assert "change chat (its workers are replaced)\n" in done.output
    assert "    template.imageName: you/chat:1 -> you/chat:2\n" in done.output
    assert "    template.env: MODEL, TOKEN -> MODEL, TOKEN (changed: TOKEN)\n" in done.output
    assert "change embed\n    idleTimeout: 5 -> 60\n" in done.output
    found = rows(management)
    assert (found["chat"].version, found["embed"].version) == (2, 1)
    parsed = json.loads(run("apply", "-f", str(file), "--plan", "--json").output)
    assert parsed == {"planned": True, "steps": [], "leftOver": []}


def test_prune_deletes_only_what_an_apply_of_the_same_file_made(run, file, management):
    run("apply", "-f", str(file))
    other = file.parent / "other.yaml"
    other.write_text("endpoints: {theirs: {template: {image: 'img:1'}}}")
    run("apply", "-f", str(other))
    management.endpoints.create(
        lambda _snapshot, made: (EndpointRow(made, "api", Container(image="img:1")), None),
        CALLER,
        endpoint_id="of-the-api",
    )
    file.write_text("project: shop\nendpoints: {chat: {template: {image: 'you/chat:1'}}}")
    plan = run("apply", "-f", str(file), "--plan")
    assert plan.errors == "not in the file any more: embed; --prune deletes them\n"
    assert "delete embed\n" in run("apply", "-f", str(file), "--plan", "--prune").output
    assert "embed" in rows(management)
    run("apply", "-f", str(file), "--prune")
    assert sorted(rows(management)) == ["chat", "of-the-api", "theirs"]
    assert list(management.catalog.deleted()) == ["embed"]
    refused = run("apply", "-f", "-", "--prune", stdin="endpoints: {}")
    assert refused.code == 2
    assert "`project`" in refused.errors


def test_pruned_workers_make_room_in_the_quota(run, file, management, monkeypatch):
    monkeypatch.setenv("OWNPOD_WORKER_QUOTA", "9")
    settings.current.cache_clear()
    assert run("apply", "-f", str(file)).code == 0
    file.write_text("project: shop\nendpoints: {new: {template: {image: 'a:1'}, workersMax: 8}}")
    refused = run("apply", "-f", str(file))
    assert "endpoints.new: Max workers across all endpoints must not exceed" in refused.errors
    assert run("apply", "-f", str(file), "--prune").code == 0
    assert list(rows(management)) == ["new"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("endpoints: {a: {template: {image: 'a:1'}}, b: {template: {imag: x}}}", "endpoints.b.te"),
        (
            "endpoints: {a: {template: {image: 'a:1'}}, in-file: {template: {image: 'a:1'}}}",
            "endpoints.in-file: endpoint 'in-file' is not of this API",
        ),
        (
            "endpoints: {a: {template: {image: 'a:1'}}, b: {template: {image: x, env: {A: }}}}",
            "endpoints.b.template.env.A: has no value in the file",
        ),
        (
            "endpoints: {b: {template: {image: x}, networkVolumeIds: [v]}}",
            "endpoints.b: network volume 'v' not found; nothing was changed",
        ),
        ("endpoints: [", "not YAML"),
    ],
)
def test_a_file_of_which_one_endpoint_is_wrong_changes_nothing(
    run, file, management, text, problem
):
    file.write_text(text)
    done = run("apply", "-f", str(file))
    assert (done.code, done.output) == (2, "")
    assert problem in done.errors
    assert done.errors.count("\n") == 1
    assert rows(management) == {}
    assert run("apply", "-f", str(file), "--plan", "--exit-code").code == 1


def test_applies_at_the_same_time_make_each_endpoint_once(management):
    wanted = [wanted_of(f"e{n}", {"template": {"image": "img:1"}}) for n in range(5)]
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(lambda _n: management.applies.apply(lambda _s: wanted, CALLER), range(8))
        )
    assert sorted(len(applied.steps) for applied in done) == [0] * 7 + [5]
    assert {row.version for row in rows(management).values()} == {1}
    assert len(management.catalog.audits()) == 5


def test_files_that_cannot_be_read_are_one_line(run, tmp_path):
    (tmp_path / "latin").write_bytes(b"endpoints: {a: \xe9}")
    for name in ("missing", ".", "latin"):
        done = run("apply", "-f", str(tmp_path / name))
        assert (done.code, done.errors.count("\n")) == (2, 1)
        assert "cannot be read" in done.errors
    assert run("apply", "-f", "x", "--exit-code").code == 2


def test_an_export_applied_again_changes_nothing_also_of_endpoints_of_the_api(
    run, file, management, tmp_path
):
    run("apply", "-f", str(file))
    management.endpoints.create(
        lambda _snapshot, made: (
            EndpointRow(
                made,
                "of an API",
                Container(image="img:1", args="python -u 'a b.py'", env={"KEY": SECRET}),
                gpu=Gpu(types=("NVIDIA L4",), excluded=("NVIDIA A30",)),
                data_centers=("EU-1",),
                expires_ms=2_000_000_000_001,
            ),
            None,
        ),
        CALLER,
    )
    before = rows(management)
    for options in ((), ("--with-values",)):
        exported = run("export", *options, shows=bool(options)).output
        assert (SECRET in exported) is bool(options)
        done = run("apply", "-f", "-", stdin=exported)
        assert (done.code, done.output) == (0, "no changes\n")
    assert rows(management) == before
    one = yaml.safe_load(run("export", "chat").output)["endpoints"]
    assert list(one) == ["chat"]
    assert one["chat"]["template"]["env"] == {"MODEL": None, "TOKEN": None}
    assert run("export", "missing").code == 2


def test_endpoints_are_created_changed_paused_and_deleted(run, management, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", SECRET)
    made = run(
        *("endpoints", "create", "chat", "--image", "you/chat:1", "--command", "python 'a b.py'"),
        *("--env", "HUB_TOKEN", "--env", "A=b=c", "--memory", "16g", "--gpu-pools", "ADA_24,L4"),
        *("--workers-max", "4", "--ttl", "60000"),
    )
    assert (made.code, made.errors) == (0, "")
    row = rows(management)["chat"]
    assert row.container.env == {"HUB_TOKEN": SECRET, "A": "b=c"}
    assert (row.container.words, row.workers_max) == (("python", "a b.py"), 4)
    assert row.own == {"ttl": "60000", "template.limits": '{"memory": "16g"}'}
    assert "exists" in run("endpoints", "create", "chat", "--image", "x").errors

    changed = run("endpoints", "update", "chat", "--image", "you/chat:2", "--unset-env", "A")
    assert "template.imageName: you/chat:1 -> you/chat:2" in changed.output
    again = rows(management)["chat"]
    container = replace(row.container, image="you/chat:2", env={"HUB_TOKEN": SECRET})
    assert (again.container, again.own, again.gpu) == (container, row.own, row.gpu)
    assert run("endpoints", "update", "chat", "--workers-max", "4").output == "no changes\n"
    run("endpoints", "update", "chat", "--ttl", "70000", "--plan")
    assert rows(management)["chat"] == again
    run("endpoints", "update", "chat", "--gpu-count", "0", "--expires", "2030-01-01T00:00:00Z")
    assert (rows(management)["chat"].gpu, rows(management)["chat"].expires_ms) == (
        None,
        1_893_456_000_000,
    )
    run("endpoints", "update", "chat", "--expires", "")
    assert rows(management)["chat"].expires_ms is None

    run("endpoints", "pause", "chat")
    run("endpoints", "pause", "chat")
    assert rows(management)["chat"].workers_max == 0
    assert run("endpoints", "list").output.splitlines()[1].split()[3] == "paused"
    assert run("endpoints", "resume", "chat").output == "resumed chat with at most 4 workers\n"
    assert "is not paused" in run("endpoints", "resume", "chat").errors
    assert run("endpoints", "delete", "chat").output == "deleted chat\n"
    assert rows(management) == {}
    assert "not found" in run("endpoints", "delete", "chat").errors
    assert "not found" in run("endpoints", "update", "chat", "--ttl", "60000").errors


def test_load_balanced_endpoints_are_created_changed_listed_and_exported(run, management, registry):
    made = run(
        *("endpoints", "create", "web", "--type", "LB", "--image", "you/web:1", "--port", "8000"),
        *("--capacity", "4", "--health-path", "/healthz", "--hold-timeout", "60"),
        *("--request-timeout", "0", "--max-body", "100", "--pass-authorization", "true"),
    )
    assert (made.code, made.errors) == (0, "")
    assert "    type: LB\n" in made.output
    row = rows(management)["web"]
    assert (row.type, row.timeout_ms) == (EndpointType.LOAD_BALANCER, 0)
    registry.refresh()
    endpoint = registry.endpoint("web")
    assert endpoint.balancing == Balancing(
        8000, None, "/healthz", 4, 60, 0, 100, passes_authorization=True
    )
    changed = run("endpoints", "update", "web", "--capacity", "1", "--request-timeout", "330")
    assert "    capacity: 4 -> 1\n" in changed.output
    registry.refresh()
    assert (registry.endpoint("web").balancing.capacity, row.version) == (1, 1)
    assert registry.endpoint("web").balancing.limit_s == DEFAULT_LIMIT_S
    # Workers have the port in their environment.
    moved = run("endpoints", "update", "web", "--port", "9000", "--health-port", "9001")
    assert "change web (its workers are replaced)\n" in moved.output
    again = rows(management)["web"]
    assert (again.version, again.releases[-1].release) != (1, row.releases[-1].release)
    exported = run("export", "web").output
    entry = yaml.safe_load(exported)["endpoints"]["web"]
    assert (entry["type"], entry["capacity"], entry["scalerType"]) == ("LB", 1, "REQUEST_COUNT")
    assert "executionTimeout" not in entry
    assert run("apply", "-f", "-", stdin=exported).output == "no changes\n"
    refused = run("apply", "-f", "-", stdin="endpoints: {web: {template: {image: 'you/web:1'}}}")
    assert "endpoints.web: type: an endpoint's type is fixed at its creation" in refused.errors
    assert run("endpoints", "list").output.splitlines()[1].split()[:3] == ["web", "web", "LB"]
    assert json.loads(run("endpoints", "show", "web", "--json").output)["type"] == "LB"


def test_keys_of_load_balanced_endpoints_need_the_type(run):
    refused = run("endpoints", "create", "x", "--image", "a:1", "--capacity", "4")
    assert "capacity: has no effect without `type: LB`" in refused.errors
    by_delay = ("--type", "LB", "--image", "a:1", "--scaler-type", "QUEUE_DELAY")
    assert "scalerType: must be REQUEST_COUNT" in run("endpoints", "create", "x", *by_delay).errors


def test_load_balanced_endpoints_of_the_file_are_listed_with_their_keys(run, tmp_path):
    (tmp_path / "workers.yaml").write_text(
        "endpoints: {web: {type: LB, capacity: 2, workers: [{url: 'http://127.0.0.1:1'}]}}"
    )
    shown = json.loads(run("endpoints", "show", "web", "--json").output)
    assert (shown["type"], shown["capacity"], shown["workersMax"]) == ("LB", 2, 1)
    assert shown["source"] == "configuration"


def test_an_endpoint_without_an_id_gets_one_in_runpods_shape(run, management):
    run("endpoints", "create", "--image", "img:1", "--name", "n")
    (row,) = rows(management).values()
    assert (len(row.id), row.name) == (14, "n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("create", "x"), "template: needs an `image`"),
        (("create", "x y", "--image", "a:1"), "id"),
        (("create", "x", "--image", "a:1", "--scaler-type", "FAST"), "scalerType: must be one of"),
        (("create", "x", "--image", "a:1", "--env", "NOT_SET_ANYWHERE"), "--env NOT_SET_ANYWHERE"),
        (("update", "in-file", "--workers-max", "2"), "workers.yaml"),
        (("delete", "in-file"), "workers.yaml"),
        (("pause", "in-file"), "workers.yaml"),
        (("show", "missing"), "not found"),
    ],
)
def test_wrong_use_is_one_line(run, arguments, problem):
    done = run("endpoints", *arguments)
    assert (done.code, done.output) == (2, "")
    assert problem in done.errors
    assert done.errors.count("\n") == 1


def test_lists_show_where_endpoints_come_from_and_no_values(run, file):
    run("apply", "-f", str(file))
    lines = run("endpoints", "list").output.splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert {line.split()[0] for line in lines[1:]} == {"chat", "embed", "in-file"}
    shown = {row["id"]: row for row in json.loads(run("endpoints", "list", "--json").output)}
    assert shown["in-file"]["source"] == "configuration"
    assert shown["chat"]["source"] == "apply of shop"
    assert shown["chat"]["template"]["env"] == {"MODEL": None, "TOKEN": None}
    one = run("endpoints", "show", "chat").output
    assert one.startswith("# version 1; source: apply of shop\n")
    assert yaml.safe_load(one)["endpoints"]["chat"]["ttl"] == 60_000
    assert json.loads(run("endpoints", "show", "chat", "--json").output) == shown["chat"]


def test_templates_are_listed_shown_and_deleted(run, management):
    row = management.templates.create(
        lambda _snapshot, made: TemplateRow(
            made, "t\x1b[31m", Container(image="img:1", env={"KEY": SECRET})
        ),
        CALLER,
    ).row
    assert run("templates", "list").output.splitlines()[1].split()[:2] == [row.id, "t?[31m"]
    assert json.loads(run("templates", "list", "--json").output)[0]["env"] == {"KEY": None}
    shown = yaml.safe_load(run("templates", "show", row.id).output)
    assert (shown["imageName"], shown["env"]) == ("img:1", {"KEY": None})
    assert json.loads(run("templates", "show", row.id, "--json").output) == shown
    assert run("templates", "delete", row.id).code == 0
    assert "not found" in run("templates", "show", row.id).errors


def test_network_volumes_are_created_listed_and_kept_while_they_are_used(run, management):
    made = run("network-volumes", "create", "models", "--size", "20", "--data-center-id", "EU-1")
    volume = made.output.strip()
    run(
        "endpoints",
        "create",
        "chat",
        "--image",
        "img:1",
        "--network-volume-ids",
        volume,
        shows=True,
    )
    assert rows(management)["chat"].volumes == (volume,)
    (shown,) = json.loads(run("network-volumes", "list", "--json").output)
    assert shown == {
        "id": volume,
        "name": "models",
        "size": 20,
        "dataCenterId": "EU-1",
        "usedBy": ["chat"],
    }
    assert "models" in run("network-volumes", "list").output
    changed = run("network-volumes", "update", volume, "--size", "30", "--name", "weights")
    assert (changed.code, changed.output) == (0, f"changed {volume}\n")
    row = management.volumes.get(volume)
    assert (row.name, row.size_gb, row.data_center) == ("weights", 30, "EU-1")
    for wrong in ((), ("--size", "10")):
        refused = run("network-volumes", "update", volume, *wrong)
        assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "in use by" in run("network-volumes", "delete", volume).errors
    run("endpoints", "delete", "chat")
    assert run("network-volumes", "delete", volume).output == f"deleted {volume}\n"


def test_registries_are_kept_with_encrypted_passwords(run, environ, client):
    config = load_settings(**environ)
    secrets = Secrets(client, config.secrets_key_path())
    registry = Registry(load_endpoints(config), Fleet(client), config)
    management = Management.of(Catalog(client), registry, secrets)
    done = run("registries", "add", "hub", "--username", "me", stdin=f"{SECRET}\n")
    assert "made the key file" in done.errors
    row = management.registries.get(done.output.strip())
    name = registry_secret(row.id)
    assert secrets.values([name])[0] == {name: SECRET}
    assert run("registries", "update", row.id, stdin="other").output == f"{row.id}\n"
    assert secrets.values([name])[0] == {name: "other"}
    for arguments in (
        ("add", "hub", "--username", "x"),
        ("update", "missing"),
        ("add", "", "--username", "x"),
    ):
        refused = run("registries", *arguments, stdin=SECRET)
        assert (refused.code, refused.output, refused.errors.count("\n")) == (2, "", 1)
    assert run("registries", "list").output.splitlines()[1].split()[:3] == [row.id, "hub", "me"]
    (shown,) = json.loads(run("registries", "list", "--json").output)
    assert shown == {"id": row.id, "name": "hub", "username": "me", "usedBy": []}
    assert run("registries", "delete", row.id).code == 0
    assert json.loads(run("registries", "list", "--json").output) == []


def test_the_audit_log_has_each_change_with_its_command(run, file, management):
    run("apply", "-f", str(file))
    run("apply", "-f", str(file), "--plan")
    run("endpoints", "pause", "chat")
    entries = json.loads(run("audit", "--json").output)
    assert [(e["action"], e["target"]) for e in entries] == [
        ("update endpoint", "chat"),
        ("create endpoint", "embed"),
        ("create endpoint", "chat"),
    ]
    assert entries[0]["by"].startswith("ownpod endpoints pause (")
    assert entries[2]["by"].startswith("ownpod apply (")
    assert entries[0]["diff"] == {"workersMax": ["5", "0"]}
    table = run("audit", "-n", "1").output.splitlines()
    assert len(table) == 2
    assert "workersMax: 5 -> 0" in table[1]


def test_an_apply_without_redis_is_one_line(run, file, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    settings.current.cache_clear()
    done = run("apply", "-f", str(file), "--plan", "--exit-code")
    assert (done.code, done.errors.count("\n")) == (1, 1)


@pytest.mark.slow
def test_the_commands_run_as_processes(environ, file):
    ownpod = (sys.executable, "-m", "ownpod")
    done = run_command(*ownpod, "apply", "-f", file, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    exported = run_command(*ownpod, "export", **environ)
    again = run_command(*ownpod, "apply", "-f", "-", "--plan", stdin=exported.stdout, **environ)
    assert (again.returncode, again.stdout) == (0, "no changes\n")
