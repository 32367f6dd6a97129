"""Jobs of RunPod's queue API that name a session by the header ``X-Runpod-Worker-Id``."""

import pytest
import yaml
from helpers import load_settings
from test_sessions_store import SPEC, Rig

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.rules.credentials import digest_of
from ownpod.rules.managed import new_worker_id
from ownpod.store import keys

EP = "llama-chat"
HEADER = "X-Runpod-Worker-Id"
ALL, OWN, OTHER = "k-all-0123456789", "k-own-0123456789", "k-other-01234567"


@pytest.fixture
def start(client, redis_server, tmp_path):
    """The API, and a rig of sessions of the same preset."""
    apps = []

    def call(*, workers_max=0, api_keys=(), **environ):
        preset = {"command": ["python", "w.py"], "workers": {"max": workers_max}}
        if api_keys:
            preset["apiKeys"] = list(api_keys)
        file = tmp_path / "workers.yaml"
        file.write_text(yaml.safe_dump({"models": {"llama": {"presets": {"chat": preset}}}}))
        settings = load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file, **environ)
        app = create_app(settings)
        apps.append(app)
        return app.test_client(), Rig(client, endpoint=load_endpoints(settings)[EP])

    yield call
    for app in apps:
        services_of(app).notices.stop()


def run(api, pin, *, key=None, path="run"):
    headers = {HEADER: pin} | ({"Authorization": f"Bearer {key}"} if key else {})
    return api.post(f"/v2/{EP}/{path}", json={"input": {"x": 1}}, headers=headers)


def refused(answer):
    return answer.status_code, answer.json.get("reason")


@pytest.mark.parametrize("form", ["{}", "strict {}", "strict-resume {}"])
def test_a_job_that_names_a_session_waits_for_it_although_the_endpoint_is_paused(start, form):
    api, rig = start()
    session = rig.ready(owner="")
    answer = run(api, form.format(session))
    assert answer.status_code == 200, answer.json
    assert rig.sessions.get(session).queued == (answer.json["id"],)
    attempt = rig.claim(session, answer.json["id"])
    assert attempt.worker_id == session
    # Without a session the paused endpoint takes no jobs.
    assert run(api, "").status_code == 409


def test_runsync_names_the_session_that_ran_the_job(start):
    api, rig = start()
    session = rig.ready(owner="")
    answer = run(api, f"strict {session}", path="runsync?wait=1000")
    assert answer.status_code == 200
    rig.finish(rig.claim(session, answer.json["id"]))
    assert api.get(f"/v2/{EP}/status/{answer.json['id']}").headers[HEADER] == session


def test_a_full_session_answers_429_and_an_ended_one_404_in_runpods_words(start):
    api, rig = start()
    session = rig.ready(owner="")
    answers = [run(api, f"strict {session}") for _ in range(6)]
    assert [a.status_code for a in answers] == [200] * 5 + [429]
    assert f"the queue of session {session}" in answers[-1].json["error"]
    rig.sessions.end(session, drain=True)
    assert refused(run(api, f"strict {session}")) == (404, "affinity_worker_gone")
    assert refused(run(api, f"strict-resume {session}")) == (404, "affinity_worker_gone")


def test_only_the_owners_key_and_a_global_one_name_a_session(start):
    api, rig = start(workers_max=1, api_keys=[OWN, OTHER], OWNPOD_API_KEYS=ALL)
    session = rig.ready(owner=digest_of(OWN))
    assert run(api, f"strict {session}", key=OWN).status_code == 200
    assert run(api, f"strict {session}", key=ALL).status_code == 200
    assert refused(run(api, f"strict {session}", key=OTHER)) == (404, "affinity_worker_gone")
    # One that would only prefer it waits in the endpoint's queue.
    answer = run(api, session, key=OTHER)
    assert rig.client.hget(keys.job(answer.json["id"]), "private") is None
    assert answer.json["id"] not in rig.sessions.get(session).queued


def test_the_worker_of_a_one_off_task_cannot_be_named(start):
    api, rig = start(workers_max=1)
    worker_id = new_worker_id()
    rig.sessions.open_task(worker_id, EP, spec=SPEC, job_id="job", owner="")
    rig.place(worker_id)
    for form in ("strict {}", "strict-resume {}"):
        assert refused(run(api, form.format(worker_id))) == (404, "affinity_worker_gone")
    answer = run(api, worker_id)
    assert rig.client.hget(keys.job(answer.json["id"]), "queue") == f"ownpod.{EP}"
