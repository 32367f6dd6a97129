"""The page: the part of the server. acceptance/test_browser.py opens the page in a browser."""

import pytest
from helpers import job_store, load_settings, new_job, now_ms, wait_until

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.sweep import Sweep
from ownpod.store import keys
from ownpod.store.figures import SAMPLE_MS, SAMPLES
from ownpod.store.offers import Offers


@pytest.fixture
def api(client, redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}}")
    app = create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file, OWNPOD_API_KEYS="k")
    )
    yield app.test_client()
    services_of(app).notices.stop()


def test_the_page_needs_no_key_and_loads_nothing_from_elsewhere(api):
    with api.get("/") as page:
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        text = page.get_data(as_text=True)
    assert "http" not in text
    for file in ("page.js", "openai.js", "chat.js", "page.css"):
        assert f'"/page/{file}"' in text
        with api.get(f"/page/{file}") as found:
            assert found.status_code == 200
    assert api.get("/v2/").status_code == 401


def test_the_last_hour_is_sampled_by_the_sweep_and_kept_short(api, client):
    store = job_store(client)
    store.jobs.create(new_job("a"))
    store.jobs.create(new_job("b"))
    store.jobs.claim("b", worker_id="w", claim="x", lease_s=60)
    sweep = Sweep(
        store, Recovery(store, lambda: ["ep"], lease_s=60), Offers(client, gone_s=60), lease_s=60
    )
    # Not at the end of 15 s, after which there is another sample.
    wait_until(lambda: now_ms() % SAMPLE_MS < SAMPLE_MS - 5000)
    before = now_ms()
    sweep.once()
    # The sweep of a second host adds no other sample within the same 15 s.
    store.figures.sample("ep")
    headers = {"Authorization": "k"}
    ((ms, waiting, running),) = api.get("/v2/ep/history", headers=headers).json["samples"]
    assert before <= ms <= now_ms()
    assert (waiting, running) == (1, 1)
    client.lpush(keys.of_endpoint("ep", "history"), f"[{before - 3_700_000}, 9, 9]")
    assert len(store.figures.history("ep")) == 1
    old = [f"[{before - 60_000}, 9, 9]"] * (SAMPLES + 5)
    client.rpush(keys.of_endpoint("ep", "history"), *old)
    store.figures.sample("ep")
    assert client.llen(keys.of_endpoint("ep", "history")) == SAMPLES
