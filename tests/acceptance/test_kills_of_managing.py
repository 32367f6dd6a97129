"""SIGKILL of the API's processes while managing calls run: of each call all has happened afterwards, or nothing."""

import json
import os
import random
import signal
import sys
import threading

import psutil
import pytest
import requests
from helpers import ROOT, Process, wait_until

from ownpod.processes import free_port
from ownpod.rules.catalog import EndpointRow, Kind, registry_secret
from ownpod.rules.catalog_changes import entry_of
from ownpod.rules.records import from_text
from ownpod.store import keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEED = int(os.environ.get("CHAOS_SEED", "18"))
KILLS = 8
CALLERS = 3


class Api:
    """``ownpod api`` on a free port, which is started again when its arbiter is killed."""

    def __init__(self, directory, redis_url):
        self._log, self._redis_url = directory / "api.log", redis_url
        self._directory, self.port = directory, free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = Process(
            *(sys.executable, "-m", "ownpod", "api", "--port", self.port),
            log=self._log,
            cwd=self._directory,
            REDIS_URL=self._redis_url,
            OWNPOD_WORKERS_FILE=self._directory / "workers.yaml",
            OWNPOD_SECRETS_KEY_FILE=self._directory / "secrets.key",
            PYTHONPATH=ROOT,
        )
        wait_until(self.answers, 60, "the API")

    def answers(self):
        try:
            return requests.get(f"{self.root}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def answering(self):
        """The processes that answer."""
        return psutil.Process(self.process.pid).children()

    def kill_arbiter(self):
        """Its other processes end when they notice it."""
        answering = self.answering()
        self.process.kill()
        psutil.wait_procs(answering, 30)
        self.start()


@pytest.fixture
def api(tmp_path, redis_server, client):
    (tmp_path / "workers.yaml").write_text("endpoints: {}\n")
    found = Api(tmp_path, redis_server.url)
    yield found
    found.process.stop()
    print(found.process.output)


class Caller(threading.Thread):
    """Creates, changes and deletes endpoints and templates of its own, until it is stopped.

    ``sure``: the text that each object certainly has, by id, where the last call about it was answered; None: it is deleted.
    """

    def __init__(self, root, number, chance):
        super().__init__(daemon=True)
        self._root, self._name, self._chance = root, f"caller-{number}", chance
        self._stop_now = threading.Event()
        self.sure, self.answered, self.lost, self.failures = {}, 0, 0, []

    def run(self):
        count = 0
        while not self._stop_now.is_set():
            count += 1
            body = {"name": f"{self._name}-{count}", "imageName": "org/worker:0"}
            template = self._call("POST", "/v1/templates", body)
            if template is None:
                continue
            values = {"templateId": template["id"], "name": body["name"], "workersMax": 0}
            endpoint = self._call("POST", "/v1/endpoints", values)
            if endpoint is None:
                continue
            self.sure[endpoint["id"]] = "org/worker:0"
            for number in range(self._chance.randint(1, 4)):
                image = f"org/worker:{number + 1}"
                if self._chance.random() < 0.5:
                    path, change = f"/v1/templates/{template['id']}", {"imageName": image}
                else:
                    path, change = f"/v2/serverless/{endpoint['id']}", {"image": image}
                self._change(endpoint["id"], "PATCH", path, change, image)
            if self._chance.random() < 0.5:
                path = f"/v2/serverless/{endpoint['id']}"
                self._change(endpoint["id"], "DELETE", path, None, None)
            self._store_secrets(body["name"])

    def _store_secrets(self, name):
        """A secret and registry credentials, which are deleted again by chance."""
        secret = {"name": name.replace("-", "_"), "value": "a-value"}
        login = {"name": name, "username": "me", "password": "a-password"}
        paths = {"/v2/account/secrets": secret, "/v1/containerregistryauth": login}
        for path, body in paths.items():
            made = self._call("POST", path, body)
            if made is not None and self._chance.random() < 0.5:
                self._call("DELETE", f"{path}/{made.get('id') or made['name']}", None)

    def stop(self):
        self._stop_now.set()
        self.join(30)

    def _change(self, endpoint_id, method, path, body, after):
        self.sure.pop(endpoint_id, None)
        if self._call(method, path, body) is not None:
            self.sure[endpoint_id] = after

    def _call(self, method, path, body):
        """The answer; None: there was none, so the call has happened, or it has not."""
        try:
            response = requests.request(method, f"{self._root}{path}", json=body, timeout=30)
        except requests.RequestException:
            self.lost += 1
            return None
        if response.status_code >= 300:
            self.failures.append((method, path, response.status_code, response.text))
            return None
        self.answered += 1
        return response.json() if response.content else {}


def test_a_call_that_is_killed_has_happened_wholly_or_not_at_all(api, client):
    chance = random.Random(SEED)
    callers = [Caller(api.root, n, random.Random(SEED + n)) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    for number in range(KILLS):
        done = sum(caller.answered for caller in callers) + chance.randint(1, 10)
        wait_until(lambda least=done: sum(c.answered for c in callers) >= least, 60, "calls")
        if number % 4 == 3:
            api.kill_arbiter()
        else:
            found = wait_until(api.answering, 30, "the API's processes")
            chance.choice(found).send_signal(signal.SIGKILL)
    wait_until(api.answers, 60, "the API")
    for caller in callers:
        caller.stop()
    assert [failure for caller in callers for failure in caller.failures] == []
    assert sum(caller.lost for caller in callers) > 0, "no call was interrupted; use another seed"
    texts = client.hgetall(f"{keys.CATALOG}{Kind.ENDPOINT}")
    rows = {name: from_text(EndpointRow, text) for name, text in texts.items()}
    entries = {name: json.loads(t) for name, t in client.hgetall(keys.ENDPOINTS).items()}
    templates = client.hkeys(f"{keys.CATALOG}{Kind.TEMPLATE}")
    deleted = set(client.zrange(keys.CATALOG_DELETED, 0, -1))
    # The row, and what the other processes read, are of one change; so is the version of its last release.
    assert entries == {name: json.loads(json.dumps(entry_of(row))) for name, row in rows.items()}
    for row in rows.values():
        assert [release.version for release in row.releases] == list(range(1, row.version + 1))
        assert row.template_id in templates
    assert deleted & rows.keys() == set()
    # No secret without its row, and no row without its secret.
    secrets = set(client.hkeys(f"{keys.CATALOG}{Kind.SECRET}"))
    logins = client.hkeys(f"{keys.CATALOG}{Kind.REGISTRY}")
    assert set(client.hkeys(keys.SECRETS)) == secrets | {registry_secret(name) for name in logins}
    assert secrets
    assert logins
    for caller in callers:
        for name, image in caller.sure.items():
            assert (rows[name].container.image if name in rows else None) == image
    # The API serves them all.
    listed = requests.get(f"{api.root}/v1/endpoints", timeout=30).json()
    assert {row["id"] for row in listed} >= rows.keys()
