"""The managing calls on a real Redis: one transaction each, read by every process at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import redis
from helpers import job_store, load_settings, new_job

from ownpod.configuration import load_endpoints
from ownpod.errors import (
    CatalogInUse,
    CatalogNotFound,
    CatalogReadOnly,
    CatalogRefused,
    RedisUnavailable,
    SchemaMismatch,
)
from ownpod.housekeeping.deletions import cancel_jobs
from ownpod.management import Caller, Management
from ownpod.registry import Registry
from ownpod.rules.catalog import (
    Container,
    Door,
    EndpointRow,
    Gpu,
    Kind,
    TemplateRow,
    VolumeRow,
    registry_secret,
)
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.catalog import Catalog, Change
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.model_lists import ModelLists
from ownpod.store.secrets import Secrets

CALLER = Caller("digest", Door.V1)


@pytest.fixture
def registry(client):
    settings = load_settings(OWNPOD_WORKERS="http://localhost:1")
    return Registry(load_endpoints(settings), Fleet(client), settings)


@pytest.fixture
def management(client, registry, tmp_path):
    return Management.of(Catalog(client), registry, Secrets(client, tmp_path / "secrets.key"))


def endpoint(name="one", **values):
    container = values.pop("container", Container(image="img:1", env={"A": "1"}))

    def make(_snapshot, made_id):
        return EndpointRow(made_id, name, container, gpu=Gpu(), **values), None

    return make


def template(name="t", **values):
    return lambda _snapshot, made_id: TemplateRow(made_id, name, Container(image="img:1"), **values)


def test_a_created_endpoint_is_served_by_every_process_at_once(management, registry, client):
    made = management.endpoints.create(endpoint(workers_max=2), CALLER).row
    assert made.version == 1
    assert registry.endpoint(made.id).managed.scaling.workers_max == 2
    other = Registry({}, Fleet(client), load_settings())
    assert other.endpoint(made.id).managed.template.image == "img:1"
    assert management.endpoints.get(made.id) == made
    assert management.endpoints.list()[0].id == made.id


def test_an_update_tells_what_changed_and_whether_workers_are_replaced(management, registry):
    made = management.endpoints.create(endpoint(), CALLER).row

    def change(_snapshot, row):
        return replace(row, container=replace(row.container, image="img:2"), idle_s=60)

    dry = management.endpoints.update(made.id, change, replace(CALLER, dry_run=True))
    assert management.endpoints.get(made.id) == made
    done = management.endpoints.update(made.id, change, CALLER)
    assert (dry.differences, dry.restarts) == (done.differences, done.restarts)
    assert done.restarts
    assert {d.field for d in done.differences} == {"template.imageName", "idleTimeout"}
    assert registry.endpoint(made.id).managed.template.image == "img:2"
    small = management.endpoints.update(made.id, lambda _s, row: replace(row, idle_s=9), CALLER)
    assert not small.restarts
    assert small.row.version == 2


def test_a_deleted_endpoint_is_gone_at_once_with_its_own_template(management, registry):
    shared = management.templates.create(template("shared"), CALLER).row

    def make(_snapshot, made_id):
        own = TemplateRow("owntemplate", "own", Container(image="i"))
        row = EndpointRow(made_id, "n", own.container, template_id=own.id, own_template=True)
        return row, own

    made = management.endpoints.create(make, CALLER).row
    assert {t.id for t in management.templates.list()} == {"owntemplate", shared.id}
    management.endpoints.delete(made.id, CALLER)
    assert made.id not in registry.endpoints
    assert [t.id for t in management.templates.list()] == [shared.id]
    assert set(management.catalog.deleted()) == {made.id}
    with pytest.raises(CatalogNotFound):
        management.endpoints.delete(made.id, CALLER)


def test_the_list_of_models_of_a_deleted_endpoint_is_forgotten(management, client):
    made = management.endpoints.create(endpoint(), CALLER).row
    lists = ModelLists(client)
    lists.put(made.id, "{}")
    management.endpoints.delete(made.id, CALLER)
    assert lists.get(made.id) is None


def test_endpoints_of_the_file_are_visible_and_read_only(management):
    (row,) = management.endpoints.list()
    assert row.from_file
    with pytest.raises(CatalogReadOnly, match=r"workers\.yaml"):
        management.endpoints.update(row.id, lambda _s, r: r, CALLER)
    with pytest.raises(CatalogReadOnly):
        management.endpoints.delete(row.id, CALLER)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "name must have"),
        ({"container": Container(image="not an image!")}, "image"),
        ({"container": Container(args="python 'x", image="i")}, "cannot be split"),
        ({"container": Container()}, "image"),
        ({"workers_max": 99_999}, "workersMax"),
        ({"volumes": ("nothere",)}, "network volume 'nothere' not found"),
        ({"container": Container(image="i", registry="no")}, "container registry auth"),
    ],
)
def test_what_cannot_run_is_refused_and_nothing_is_written(management, client, values, words):
    with pytest.raises(CatalogRefused, match=words):
        management.endpoints.create(endpoint(**values), CALLER)
    assert client.keys(f"{keys.CATALOG}*") == []
    assert client.hgetall(keys.ENDPOINTS) == {}


def test_a_templates_edit_reaches_its_endpoints_where_the_api_says_so(management, registry):
    made = management.templates.create(template(), CALLER).row
    bound = management.endpoints.create(
        lambda s, i: (
            EndpointRow(i, "n", s.templates[made.id].container, template_id=made.id),
            None,
        ),
        CALLER,
    ).row

    def edit(image):
        return lambda _s, row: replace(row, container=replace(row.container, image=image))

    management.templates.update(made.id, edit("img:2"), CALLER, reaches_endpoints=False)
    assert management.endpoints.get(bound.id).version == 1
    management.templates.update(made.id, edit("img:3"), CALLER, reaches_endpoints=True)
    row = management.endpoints.get(bound.id)
    assert (row.version, row.container.image) == (2, "img:3")
    registry.refresh()
    assert registry.endpoint(bound.id).managed.template.image == "img:3"
    with pytest.raises(CatalogInUse, match="in use by 'n'"):
        management.templates.delete(made.id, CALLER)


def test_names_of_templates_are_unique(management):
    management.templates.create(template("t"), CALLER)
    with pytest.raises(CatalogRefused, match="unique"):
        management.templates.create(template("t"), CALLER)


def test_volumes_only_grow_and_stay_while_they_are_used(management):
    volume = management.volumes.create(lambda _s, i: VolumeRow(i, "v", 10, "EU-RO-1"), CALLER).row
    management.endpoints.create(endpoint(volumes=(volume.id,)), CALLER)
    with pytest.raises(CatalogRefused, match="only be increased"):
        management.volumes.update(volume.id, lambda r: replace(r, size_gb=5), CALLER)
    assert (
        management.volumes.update(volume.id, lambda r: replace(r, size_gb=50), CALLER).row.size_gb
        == 50
    )
    with pytest.raises(CatalogInUse):
        management.volumes.delete(volume.id, CALLER)


class Killed(BaseException):
    """The process has ended, after a transaction."""


STEPS = {
    "set": lambda m, _: m.secrets.create("new", "a-value", "", CALLER),
    "delete": lambda m, _: m.secrets.delete("old", CALLER),
    "save": lambda m, _: m.registries.save("hub", "me", "a-password", CALLER),
    "forget": lambda m, registry_id: m.registries.delete(registry_id, CALLER),
    "rotate": lambda m, _: m.secrets.rotate(CALLER),
}


@pytest.mark.parametrize("step", STEPS)
def test_value_row_and_audit_are_of_one_transaction(management, client, monkeypatch, step):
    management.secrets.create("old", "a-value", "", CALLER)
    registry_id = management.registries.save("old", "me", "a-password", CALLER).row.id
    before, count = client.hgetall(keys.SECRETS), client.xlen(keys.CATALOG_AUDIT)
    execute = redis.client.Pipeline.execute

    def killed_after(pipe, *args, **kwargs):
        execute(pipe, *args, **kwargs)
        raise Killed

    def executed(pipe, *args, **kwargs):
        return (killed_after if pipe.explicit_transaction else execute)(pipe, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", executed)
        with pytest.raises(Killed):
            STEPS[step](management, registry_id)
    assert client.hgetall(keys.SECRETS) != before
    assert client.xlen(keys.CATALOG_AUDIT) == count + 1
    snapshot = Catalog(client).read()
    passwords = {registry_secret(name) for name in snapshot.registries}
    assert client.hgetall(keys.SECRETS).keys() == {*snapshot.secrets, *passwords}


def test_a_password_is_not_kept_where_the_rows_rule_forbids_it(management, client):
    management.registries.save("hub", "me", "a-password", CALLER)
    before = client.hgetall(keys.SECRETS)
    with pytest.raises(CatalogRefused):
        management.registries.save("hub", "me", "another", CALLER)
    assert client.hgetall(keys.SECRETS) == before


def test_registry_passwords_are_encrypted_secrets_and_go_with_them(management, client):
    made = management.registries.save("hub", "me", "a-password", CALLER).row
    stored = str(client.hgetall(keys.SECRETS)) + str(client.hgetall(f"{keys.CATALOG}registry"))
    assert made.id in stored
    assert "a-password" not in stored

    def password():
        name = registry_secret(made.id)
        return management.secrets.secrets.values([name])[0].get(name)

    assert password() == "a-password"
    assert management.secrets.list() == []
    with pytest.raises(CatalogRefused, match="exists"):
        management.registries.save("hub", "me", "x", CALLER)
    management.registries.save("", "you", "other", CALLER, registry_id=made.id)
    assert (management.registries.get(made.id).name, password()) == ("hub", "other")
    management.registries.delete(made.id, CALLER)
    assert client.hgetall(keys.SECRETS) == {}


def test_secrets_are_listed_without_values_those_of_the_command_too(management, client):
    management.secrets.secrets.put("FROM_COMMAND", "value-1")
    made = management.secrets.create("HF_TOKEN", "value-2", "for models", CALLER).row
    listed = management.secrets.list()
    assert {row.id for row in listed} == {"FROM_COMMAND", "HF_TOKEN"}
    assert "value-" not in repr(listed) + str(client.hgetall(keys.SECRETS))
    with pytest.raises(CatalogRefused, match="exists"):
        management.secrets.create("FROM_COMMAND", "x", "", CALLER)
    management.secrets.update("HF_TOKEN", "value-3", None, CALLER)
    assert management.secrets.get("HF_TOKEN") == made
    assert management.secrets.secrets.values(["HF_TOKEN"])[0] == {"HF_TOKEN": "value-3"}
    management.secrets.delete("HF_TOKEN", CALLER)
    with pytest.raises(CatalogNotFound):
        management.secrets.get("HF_TOKEN")
    audits = [entry.audit.action for entry in management.catalog.audits()]
    assert audits == ["delete secret", "update secret", "create secret"]


def test_the_audit_log_says_who_did_what_without_values_of_variables(management):
    made = management.endpoints.create(endpoint(), CALLER).row
    management.endpoints.update(
        made.id,
        lambda _s, row: replace(row, container=replace(row.container, env={"A": "hidden"})),
        CALLER,
    )
    newest, oldest = management.catalog.audits()
    assert (oldest.audit.action, oldest.audit.target) == ("create endpoint", made.id)
    assert (newest.audit.by, newest.audit.door) == ("digest", "v1")
    assert "template.env" in newest.audit.difference
    assert "hidden" not in newest.audit.difference


def test_changes_at_the_same_time_are_all_made(management):
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(
                lambda number: management.endpoints.create(endpoint(f"n{number}"), CALLER).row.id,
                range(24),
            )
        )
    rows = {row.id for row in management.endpoints.list() if not row.from_file}
    assert rows == set(made)


def test_a_quota_holds_for_endpoints_that_are_created_at_the_same_time(client, registry, tmp_path):
    secrets = Secrets(client, tmp_path / "secrets.key")
    limited = Management.of(Catalog(client), registry, secrets, quota=5)

    def create(number):
        try:
            return limited.endpoints.create(endpoint(f"n{number}", workers_max=2), CALLER)
        except CatalogRefused:
            return None

    with ThreadPoolExecutor(6) as pool:
        made = [outcome for outcome in pool.map(create, range(6)) if outcome]
    assert len(made) == 2


def test_a_broken_row_hides_no_other(management, client):
    made = management.endpoints.create(endpoint(), CALLER).row
    client.hset(f"{keys.CATALOG}{Kind.ENDPOINT}", "broken", "{")
    snapshot = management.catalog.read()
    assert set(snapshot.endpoints) == {made.id}
    assert snapshot.unreadable == {Kind.ENDPOINT: ("broken",)}


def test_records_of_another_version_are_not_changed(management, client):
    client.set(keys.SCHEMA, "99")
    with pytest.raises(SchemaMismatch):
        management.templates.create(template(), CALLER)


def test_a_redis_that_is_away_is_an_error_of_ownpod():
    away = Catalog(connect("redis://127.0.0.1:1/0"))
    with pytest.raises(RedisUnavailable):
        away.read()
    with pytest.raises(RedisUnavailable):
        away.change(lambda _snapshot: Change())


def test_a_refusal_because_of_what_has_changed_meanwhile_is_computed_again(management, client):
    other = Catalog(client)
    seen = []

    def compute(snapshot):
        seen.append(len(snapshot.volumes))
        if not snapshot.volumes:
            other.change(lambda _s: Change(put=(VolumeRow("v", "n", 1, "EU-1"),)))
            raise CatalogRefused("there is no volume")
        return Change()

    management.catalog.change(compute)
    assert seen == [0, 1]


def test_an_endpoint_that_another_process_deleted_can_be_made_again(management, client):
    config = load_settings(OWNPOD_WORKERS="http://localhost:1")
    registry = Registry(load_endpoints(config), Fleet(client), config)
    management.endpoints.create(endpoint(), CALLER, endpoint_id="e")
    assert "e" in registry.endpoints
    later = Management.of(Catalog(client), registry, management.secrets.secrets)
    management.endpoints.delete("e", CALLER)
    assert later.endpoints.create(endpoint(), CALLER, endpoint_id="e").row.version == 1
    management.endpoints.delete("e", CALLER)
    with pytest.raises(CatalogNotFound):
        later.endpoints.update("e", lambda _s, row: row, CALLER)


def test_an_endpoint_that_another_process_deleted_is_listed_nowhere_at_once(management, client):
    config = load_settings(OWNPOD_WORKERS="http://localhost:1")
    registry = Registry(load_endpoints(config), Fleet(client), config)
    later = Management.of(Catalog(client), registry, management.secrets.secrets)
    management.endpoints.create(endpoint(), CALLER, endpoint_id="e")
    assert "e" in registry.endpoints
    management.endpoints.delete("e", CALLER)
    assert [row.id for row in later.endpoints.list()] == ["local-ep"]
    management.endpoints.create(endpoint(), CALLER, endpoint_id="e")
    registry.refresh()
    management.endpoints.delete("e", CALLER)
    with pytest.raises(CatalogNotFound):
        later.endpoints.get("e")


def test_jobs_of_a_deleted_endpoint_are_cancelled_also_late_ones(management, client):
    store = job_store(client)
    made = management.endpoints.create(endpoint(), CALLER).row
    waiting = new_job(endpoint=made.id)
    store.jobs.create(waiting)
    management.endpoints.delete(made.id, CALLER)
    cancel_jobs(management.catalog, store)
    assert store.jobs.get(waiting.id, made.id).status is JobStatus.CANCELLED
    late = new_job("late", endpoint=made.id)
    store.jobs.create(late)
    client.zadd(keys.CATALOG_DELETED, {made.id: 1})
    cancel_jobs(management.catalog, store)
    assert store.jobs.get(late.id, made.id).status is JobStatus.CANCELLED
    assert management.catalog.deleted() == {}
