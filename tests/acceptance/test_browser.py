"""The page in a real browser, headless, over its debugging protocol."""

import base64
import json
import sys
import zlib
from pathlib import Path

from browsing import url_of
from helpers import wait_until

from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front
from ownpod.store.client import connect as redis_connect
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts


def png():
    """A picture of one pixel."""

    def part(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = (1).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixel = zlib.compress(b"\0\xff\0\0")
    made = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixel) + part(b"IEND", b"")
    return base64.b64encode(made).decode()


def test_the_page_shows_workers_and_jobs_and_stays_live(browser, shared, tmp_path):
    end = tmp_path / "end"
    browser.open(url_of(shared))
    browser.run(
        "document.querySelector('#endpoint').value = 'local-ep'; endpoint = 'local-ep'; refresh()"
    )
    wait_until(lambda: browser.text("#workers").count("● ready") == 2, 15)
    job = shared.submit(text="seen", until=str(end))
    wait_until(lambda: job in browser.text("#jobs"), 10)
    wait_until(lambda: f"{job} for " in browser.text("#workers"), 10)
    end.touch()
    shared.ended(job)
    row = f"[...document.querySelectorAll('#jobs tr')].find((r) => r.innerText.includes('{job}')).innerText"
    wait_until(lambda: "✓ completed" in browser.run(row), 10)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_job_is_sent_watched_cancelled_and_retried(browser, shared, tmp_path):
    end = tmp_path / "end"
    browser.open(url_of(shared))
    browser.run("endpoint = 'local-ep'; refresh()")
    wait_until(lambda: browser.run("!document.querySelector('#main').hidden"))
    send = "document.querySelector('#input').value = %s; document.querySelector('#send button').click()"
    browser.run(send % json.dumps(json.dumps({"text": "from the page", "until": str(end)})))
    wait_until(lambda: "◐ running" in browser.text("#job-state"), 15)
    assert "from the page" in browser.text("#job-input")
    browser.run("document.querySelector('#cancel').click()")
    wait_until(lambda: "cancelled" in browser.text("#job-state"), 10)
    end.touch()
    browser.run("document.querySelector('#job').close()")
    browser.run(send % json.dumps(json.dumps({"do": "error"})))
    wait_until(lambda: "it says no" in browser.text("#job-state"), 15)
    failed = browser.text("#job-id")
    browser.run("document.querySelector('#retry').click()")
    wait_until(lambda: browser.text("#job-id") != failed, 10)
    browser.run("document.querySelector('#job').close()")
    # In one step, because each refresh writes there, too.
    message = "document.querySelector('#message').textContent"
    assert "the input is not valid JSON" in browser.run(
        f"{send % json.dumps('{no JSON')}; {message}"
    )


def test_an_output_is_text_and_its_pictures_are_shown(browser, shared):
    evil = '<img src=x onerror="window.evil = 1">'
    job = shared.submit(text=evil, picture=png())
    shared.ended(job)
    browser.open(url_of(shared))
    browser.run(f"endpoint = 'local-ep'; open('{job}')")
    wait_until(lambda: evil in json.loads(browser.text("#job-output") or "{}").get("echo", ""), 10)
    assert browser.run("window.evil") is None
    assert (
        browser.run(f"images({{a: ['{png()}', 'text']}})[0].slice(0, 22)")
        == "data:image/png;base64,"
    )
    browser.run(
        f"at('images').replaceChildren(element('img', '', {{src: images(['{png()}'])[0]}}))"
    )
    wait_until(lambda: browser.run("document.querySelector('#images img').naturalWidth") == 1, 5)


def test_the_key_of_one_endpoint_opens_its_page_without_the_hosts(browser, start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {mine: {apiKeys: [mine-only]}, other: {}}")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_WORKERS="", OWNPOD_API_KEYS="all")
    browser.open(url_of(ownpod))
    browser.run("key = 'mine-only'; refresh()")
    wait_until(lambda: "as of" in browser.text("#message"), 15)
    # The first refresh, which had no key, may end after the other one.
    wait_until(lambda: browser.run("document.querySelector('#login').hidden"))
    wait_until(lambda: not browser.run("document.querySelector('#main').hidden"))


def test_a_key_is_asked_for_and_used(browser, start_ownpod):
    ownpod = start_ownpod("http://127.0.0.1:1", OWNPOD_API_KEYS="open-sesame")
    browser.open(url_of(ownpod))
    wait_until(lambda: browser.run("!document.querySelector('#login').hidden"), 10)
    assert browser.run("document.querySelector('#main').hidden")
    browser.run(
        "document.querySelector('#key').value = 'open-sesame'; "
        "document.querySelector('#login button').click()"
    )
    wait_until(lambda: "✕ unhealthy" in browser.text("#workers"), 10)


MANAGED = """
endpoints:
  local-ep:
    gpu: {{count: 1}}
    workersMin: 1
    workersMax: 2
    template: {{command: [{python}, {handlers}], env: {{HANDLER: sync}}}}
  broken:
    workersMin: 1
    template: {{command: [{python}, -c, "print('no <b>model</b>'); raise SystemExit(3)"]}}
  expired: {{expires: 2026-01-02T03:04:05Z, template: {{command: c}}}}
"""


def test_hosts_devices_managed_workers_and_failed_starts_are_shown(browser, start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    handlers = Path(__file__).with_name("handlers.py")
    file.write_text(MANAGED.format(python=json.dumps(sys.executable), handlers=handlers))
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:2",
        OWNPOD_AGENT_NAME="alpha",
    )
    browser.open(url_of(ownpod))
    browser.run("endpoint = 'local-ep'; refresh()")
    wait_until(lambda: "● ready" in browser.text("#started"), 60, "the worker")
    (row,) = browser.text("#started").splitlines()
    worker = row.split()[0]
    assert "cpu-0" in row or "cpu-1" in row
    assert browser.run("document.querySelector('#failures').hidden")
    wait_until(lambda: worker in browser.text("#devices"), 15)
    host, *devices = browser.text("#devices").splitlines()
    assert "process" in host
    assert "● ready" in host
    assert len(devices) == 2
    (busy,) = (line for line in devices if worker in line)
    assert "◐ busy" in busy
    assert sum("● free" in line for line in devices) == 1
    job = ownpod.submit(text="a")
    ownpod.ended(job)
    browser.run(f"open('{job}')")
    wait_until(lambda: "Finished." in browser.text("#job-lines pre"), 15, "the job's lines")
    browser.run("document.querySelector('#job').close()")
    browser.run("document.querySelector('#started tr').click()")
    wait_until(lambda: "Finished." in browser.text("#worker-lines"), 10, "the worker's lines")
    browser.run("document.querySelector('#worker').close()")
    browser.run(
        "document.querySelector('#endpoint').value = 'broken'; endpoint = 'broken'; refresh()"
    )
    wait_until(lambda: "exit code 3" in browser.text("#failures p"), 60, "a failed start")
    # The output of a worker is text.
    assert browser.text("#failures pre") == "no <b>model</b>"
    wait_until(lambda: "exit code 3" in browser.text("#ended"), 15, "the end")
    browser.run("document.querySelector('#ended tr').click()")
    wait_until(lambda: browser.text("#worker-lines") == "no <b>model</b>", 10, "its lines")
    assert "ended in starting" in browser.text("#worker-state")
    browser.run("document.querySelector('#worker').close()")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("document.querySelector('#paused').hidden")
    browser.run(
        "document.querySelector('#endpoint').value = 'expired'; endpoint = 'expired'; refresh()"
    )
    reason = "the endpoint is paused: it expired at 2026-01-02T03:04:05Z"
    wait_until(lambda: browser.text("#paused") == reason, 15, "the pause")


def test_without_hosts_and_templates_nothing_of_them_is_shown(browser, shared):
    browser.open(url_of(shared))
    browser.run("endpoint = 'local-ep'; refresh()")
    wait_until(lambda: "as of" in browser.text("#message"), 15)
    assert browser.run("document.querySelector('#managed').hidden")
    assert browser.run("document.querySelector('#hosts').hidden")


BALANCED = """
endpoints:
  web: {type: LB, workers: [{url: "http://127.0.0.1:1", id: a}, {url: "http://127.0.0.1:2", id: b, capacity: 4}]}
  local-ep: {}
"""


def test_a_load_balanced_endpoint_shows_its_requests_and_no_jobs(browser, start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(BALANCED)
    # What a front publishes is written by hand.
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_WORKERS="", OWNPOD_FRONT="off")
    browser.open(url_of(ownpod))
    browser.run("at('endpoint').value = 'web'; endpoint = 'web'; refresh()")
    wait_until(lambda: "no front runs" in browser.text("#paused"), 15, "the missing front")
    wait_until(lambda: browser.text("#workers").count("✕ unhealthy") == 2, 10)
    with redis_connect(ownpod.redis_url) as client:
        fleet, fronts = Fleet(client), Fronts(client)
        servers = {"a": ServerReading(open=2, total=9), "b": ServerReading(waiting=1)}

        def publish():
            fronts.beat(Front("f"), {"web": RouteReading(5, servers, total=12)})
            for name, state, why in (
                ("a", WorkerState.READY, ""),
                ("b", WorkerState.UNHEALTHY, "404 on /ping: <b>is it the right path?</b>"),
            ):
                fleet.publish_status(name, WorkerStatus(state, why), node="f@h", ttl_s=9)

        def row(name):
            publish()
            found = browser.text("#workers").splitlines()
            return next((line for line in found if line.split()[0] == name), "")

        wait_until(lambda: "● ready" in row("a") and "2/any" in row("a"), 15, "the ready worker")
        wait_until(lambda: "404 on /ping: <b>is it" in row("b") and "0/4" in row("b"), 15)
        assert "1 waiting for it" in row("b")
        wait_until(
            lambda: (
                (publish(), browser.text("#counts").split())[1]
                == ["3", "waiting", "2", "open", "12", "requests", "in", "all"]
            ),
            15,
        )
    assert browser.run("document.querySelector('#paused').hidden")
    hidden = "[...document.querySelectorAll('.queue')].map((part) => part.hidden)"
    assert browser.run(hidden) == [True] * 3
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    browser.run("at('endpoint').value = 'local-ep'; endpoint = 'local-ep'; refresh()")
    wait_until(lambda: browser.run(hidden) == [False] * 3, 15, "the parts of a queue")


def test_a_phone_can_show_it(browser, shared):
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=844,
        deviceScaleFactor=1,
        mobile=True,
    )
    browser.open(url_of(shared))
    wait_until(lambda: browser.run("!document.querySelector('#main').hidden"))
    assert browser.run("document.documentElement.scrollWidth <= 390")
    browser.send("Emulation.clearDeviceMetricsOverride")
