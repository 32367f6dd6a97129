"""Releases for real: `ownpod up` with the engine `process`, on the real SDK."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import overlaps, wait_until

from ownpod.rules.managed import Phase
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = pytest.mark.timeout(300)

HANDLERS = Path(__file__).with_name("handlers.py")
UP = {"workersMin": 1, "workersMax": 2, "idleTimeout": 60, "scalerType": "QUEUE_DELAY"}


def template(model="one", *, command=None):
    env = {"HANDLER": "sync", "PYTHONUNBUFFERED": "1", "MODEL": model}
    return {"command": command or [sys.executable, str(HANDLERS)], "env": env}


BROKEN = template(command=[sys.executable, "-c", "import no_such_library"])


class Lab:
    """An OwnPod whose endpoint ``local-ep`` gets another template while it runs."""

    def __init__(self, directory, start_ownpod, values):
        self._file = directory / "workers.yaml"
        self._write({"template": template(), **UP, **values})
        self.ownpod = start_ownpod(
            OWNPOD_WORKERS_FILE=self._file,
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES="cpu:2",
            OWNPOD_SHUTDOWN_GRACE_S=2,
        )
        self.client = connect(self.ownpod.redis_url)
        self.managed = Managed(self.client)

    def _write(self, values):
        self._file.write_text(yaml.safe_dump({"endpoints": {"local-ep": values}}))

    def configure(self, **values):
        self._write({"template": template(), **UP, **values})
        self.ownpod.process.send(signal.SIGHUP)

    def ready(self):
        """The ready workers, by id."""
        found = self.managed.list("local-ep")
        return {w.id: w for w in found if w.phase is Phase.READY}

    def models(self):
        """The variable MODEL of each ready worker's process."""
        found, ready = {}, self.ready()
        for process in psutil.process_iter(["environ"]):
            environ = process.info["environ"] or {}
            if environ.get("RUNPOD_POD_ID") in ready:
                found[environ["RUNPOD_POD_ID"]] = environ.get("MODEL")
        return sorted(found.values())

    def shown(self):
        return self.ownpod.get("/workers")["managed"]

    def run(self, *command, stdin="", **environ):
        done = subprocess.run(
            [sys.executable, "-m", "ownpod", *command],
            env={**os.environ, "REDIS_URL": self.ownpod.redis_url, **environ},
            cwd=self._file.parent,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def lab(tmp_path, start_ownpod):
    made = []

    def start(**values):
        found = Lab(tmp_path, start_ownpod, values)
        made.append(found)
        wait_until(found.ready, 60, "a ready worker")
        # The scaler has recorded that its release came up.
        wait_until(lambda: found.managed.rolled_out("local-ep").rollout.current.ready_ms, 20)
        return found

    yield start
    for found in made:
        found.client.close()


def test_a_rolling_release_under_load_loses_no_job_and_keeps_workers_min(lab, tmp_path):
    lab = lab()
    ownpod, runs, least, over = lab.ownpod, tmp_path / "runs", [], threading.Event()

    def watch():
        while not over.wait(0.02):
            least.append(len(lab.ready()))

    jobs = {}

    def load():
        # More than one worker runs in this time, but not so many that they run for minutes after a slow release.
        while not over.wait(0.3):
            text = f"job-{len(jobs)}"
            jobs[text] = ownpod.submit(text=text, seconds=0.2, runs=str(runs))

    threads = [threading.Thread(target=target) for target in (watch, load)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(jobs) > 5, 30)
        lab.configure(template=template("two"))
        wait_until(lambda: set(lab.models()) == {"two"}, 90, "only workers of the new release")
        wait_until(lambda: lab.shown()["releases"]["state"] == "current", 60)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for job in jobs.values():
        done = ownpod.ended(job, 120)
        assert (done["status"], "retries" in done) == ("COMPLETED", False)
    begins = Counter(
        line.split()[2] for line in runs.read_text().splitlines() if line.startswith("+")
    )
    assert begins == dict.fromkeys(jobs, 1)
    assert overlaps(runs) == []
    assert min(least) >= 1
    assert lab.shown()["releases"]["current"] == 2
    listed = lab.run("releases", "local-ep")
    assert "env.MODEL" in listed
    assert "two" not in listed


def test_a_release_that_cannot_be_imported_leaves_the_old_one_until_it_is_rolled_back(lab):
    lab = lab()
    (old,) = lab.ready()
    lab.configure(template=BROKEN)
    failures = wait_until(
        lambda: (found := lab.shown()["failures"]) and found["count"] >= 2 and found, 60
    )
    assert "no_such_library" in "\n".join(failures["log"])
    assert "exit code 1" in lab.shown()["releases"]["state"]
    assert lab.ownpod.ended(lab.ownpod.submit(text="a"), 30)["status"] == "COMPLETED"
    assert list(lab.ready()) == [old]
    assert "release 3 is release 1 again, instead of 2" in lab.run("rollback", "local-ep")
    wait_until(lambda: lab.shown()["releases"]["current"] == 3, 30)
    wait_until(lambda: lab.shown()["releases"]["state"] == "current", 30)
    assert lab.shown()["failures"] is None
    assert list(lab.ready()) == [old]
    rows = json.loads(lab.run("releases", "local-ep", "--json"))
    assert [row["state"] for row in rows] == [
        *("current", "given up: rolled back to release 1", "earlier"),
    ]


def test_with_one_worker_at_most_a_release_without_its_secret_leaves_the_old_worker_serving(
    lab, tmp_path
):
    lab = lab(workersMax=1)
    (old,) = lab.ready()
    needs = template("two")
    needs["env"]["TOKEN"] = "{{ SECRET_hub }}"
    lab.configure(template=needs, workersMax=1)
    wait_until(lambda: "secret 'hub' is not there" in lab.shown()["releases"]["state"], 60)
    assert lab.ownpod.ended(lab.ownpod.submit(text="a"), 30)["status"] == "COMPLETED"
    assert list(lab.ready()) == [old]
    lab.run("secrets", "set", "hub", stdin="a-value", OWNPOD_DATA_DIR=str(tmp_path / "var"))
    wait_until(lambda: lab.models() == ["two"], 90, "the worker of the new release")


def test_with_auto_rollback_an_idle_endpoint_goes_back_by_itself(lab):
    # Without a least number of workers, and without a job.
    lab = lab(workersMin=1, workersMax=2, autoRollback=True, idleTimeout=600)
    (old,) = lab.ready()
    lab.configure(template=BROKEN, workersMin=0, autoRollback=True, idleTimeout=600)
    shown = wait_until(
        lambda: (found := lab.shown()["releases"])["current"] == 3 and found, 90, "the way back"
    )
    assert shown["givenUp"]["number"] == 2
    assert "3 starts in a row failed" in shown["givenUp"]["reason"]
    assert "exit code 1" in shown["givenUp"]["reason"]
    assert old in lab.ready()
    assert lab.ownpod.ended(lab.ownpod.submit(text="a"), 30)["status"] == "COMPLETED"


def test_the_same_image_again_is_checked_at_sighup(lab):
    same = {"template": {**template(), "image": "team/worker:1"}}
    lab = lab(**same)
    assert lab.managed.releases.tasks()[1] == {}
    lab.configure(**same)
    # The engine `process` has no images, so no host answers.
    wait_until(lambda: "local-ep" in lab.managed.releases.tasks()[1], 30)
    assert lab.shown()["releases"]["next"] is None


def test_a_changed_idle_timeout_makes_no_release(lab):
    lab = lab()
    before = lab.ready()
    lab.configure(idleTimeout=61, workersMin=2)
    wait_until(lambda: len(lab.ready()) == 2, 60, "the new workersMin")
    assert before.keys() <= lab.ready().keys()
    releases = lab.shown()["releases"]
    assert (releases["current"], releases["next"]) == (1, None)
