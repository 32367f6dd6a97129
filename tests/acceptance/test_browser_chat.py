"""The chat box of the page in a real browser: it keeps its session between messages and reloads, and begins another one after its end."""

import base64
import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
from browsing import url_of
from helpers import ROOT, wait_until

from ownpod.store.client import connect as redis_connect
from ownpod.store.figures import SAMPLE_MS, SAMPLES
from ownpod.store.keys import of_endpoint

SCREEN = {"width": 1180, "height": 1330, "deviceScaleFactor": 1, "mobile": False}

FILE = """
endpoints: {{local-ep: {{}}}}
models:
  parrot:
    presets:
      chat:
        command: [{python}, {handler}]
        env: {{LOAD_S: "1"}}
        session: {{idleTimeout: 600}}
      count: {{command: [python, count.py], protocol: stdout}}
"""


@pytest.fixture
def ownpod(start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    handler = ROOT / "examples" / "sessions" / "handler.py"
    file.write_text(FILE.format(python=json.dumps(sys.executable), handler=handler))
    return start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:1",
    )


def choose(browser, name):
    browser.run(f"at('endpoint').value = '{name}'; endpoint = '{name}'; refresh()")


def free(browser):
    return not browser.run("Boolean(chatOf(endpoint).busy)")


def send(browser, text):
    wait_until(lambda: free(browser), 20, "the end of the message before")
    browser.run(f"at('chat-text').value = {json.dumps(text)}; at('chat-send').click()")


def lines(browser, css_class):
    """The texts of the lines of a CSS class in the chat."""
    return browser.run(
        f"[...document.querySelectorAll('#chat-log .{css_class}')].map((l) => l.innerText)"
    )


def session(browser):
    return browser.run("chatOf(endpoint).session")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_chat_keeps_its_session_through_messages_and_a_reload(browser, ownpod):
    browser.open(url_of(ownpod))
    for other in ("local-ep", "parrot-count"):
        # Neither has sessions.
        choose(browser, other)
        wait_until(lambda: "as of" in browser.text("#message"), 15)
        assert browser.run("at('chat').hidden")
    choose(browser, "parrot-chat")
    wait_until(lambda: not browser.run("at('chat').hidden"), 15, "the chat box")
    evil = '<img src=x onerror="window.evil = 1">'
    send(browser, evil)
    first = f"{evil}! You have spoken 1 times; first you said: {evil}"
    wait_until(lambda: lines(browser, "model") == [first], 60, "the first answer")
    wait_until(lambda: free(browser), 10)
    assert browser.run("window.evil") is None
    kept = session(browser)
    wait_until(lambda: f"session {kept} · waiting" in browser.text("#chat-state"), 15)
    browser.open(url_of(ownpod))
    choose(browser, "parrot-chat")
    wait_until(lambda: session(browser) == kept, 15, "the session after a reload")
    send(browser, "two")
    second = f"two! You have spoken 2 times; first you said: {evil}"
    wait_until(lambda: lines(browser, "model") == [second], 30, "the second answer")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")

    # A stop cancels the task; the session goes on.
    send(browser, '{"prompt": "slow", "seconds": 9}')
    wait_until(lambda: "slow!" in lines(browser, "model")[-1], 20, "the first word")
    browser.run("at('chat-stop').click()")
    wait_until(lambda: any("cancelled" in line for line in lines(browser, "note")), 20)
    send(browser, "{no JSON")
    wait_until(lambda: "is not valid JSON" in lines(browser, "note")[-1], 10)

    # The end of the session is shown, and the next message begins another one.
    browser.run("at('chat-end').click()")
    wait_until(lambda: "The session has ended: manual" in lines(browser, "note")[-1], 20)
    send(browser, "new")
    wait_until(
        lambda: lines(browser, "model")[-1] == "new! You have spoken 1 times; first you said: new",
        60,
        "the answer of the new session",
    )
    assert session(browser) not in {None, kept}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_chat_continues_a_stream_that_broke_off_and_replaces_an_ended_session(browser, ownpod):
    browser.open(url_of(ownpod))
    choose(browser, "parrot-chat")
    wait_until(lambda: not browser.run("at('chat').hidden"), 15, "the chat box")
    # Each response is cut behind its fourth read, as a proxy might.
    browser.run(
        """
        const whole = window.fetch;
        window.fetches = [];
        window.fetch = async (url, options) => {
          const response = await whole(url, options);
          if (!String(url).startsWith("/api/tasks/")) return response;
          window.fetches.push([String(url), (options.headers || {})["Last-Event-ID"]]);
          let reads = 0;
          const reader = response.body.getReader();
          const body = new ReadableStream({
            async pull(control) {
              const { done, value } = await reader.read();
              if (done) return control.close();
              control.enqueue(value);
              if (++reads === 4) { control.close(); reader.cancel(); }
            },
          });
          return new Response(body, { status: response.status, headers: response.headers });
        };
        """
    )
    # A session that is unknown by now, as after a long time.
    browser.run("chatOf(endpoint).session = 'aaaaaaaaaaaaaa'")
    send(browser, '{"prompt": "cut", "seconds": 4}')
    expected = "cut! You have spoken 1 times; first you said: cut"
    wait_until(lambda: (lines(browser, "model") or [""])[-1] == expected, 90, "the answer")
    wait_until(lambda: free(browser), 20)
    assert lines(browser, "model") == [expected]
    fetches = browser.run("window.fetches")
    assert any(last for url, last in fetches if url.endswith("/events")), fetches


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_javascript_example_follows_a_task_with_the_browsers_event_source(browser, ownpod):
    example = (ROOT / "examples" / "sessions" / "client.mjs").read_text()
    browser.open(url_of(ownpod))
    # The page's policy allows no other script, so the example is evaluated as the debugger's.
    browser.run("globalThis.process = { env: { OWNPOD_URL: location.origin }, argv: [] }; 0")
    browser.run(f"{example.replace('export ', '')}; globalThis.follow = follow; 0")
    body = {
        "task_type": "session",
        "task_difficulty": "low",
        "model_id": "parrot",
        "task_preset": "chat",
        "metadata": {"prompt": "hi", "seconds": 1},
    }
    browser.run(
        "globalThis.got = []; globalThis.finished = null; "
        f"follow({json.dumps(body)}, (name, data) => got.push([name, data])).then((data) => {{ finished = data; }}); 0"
    )
    finished = wait_until(lambda: browser.run("finished"), 60, "the end of the task")
    assert finished["status"] == "completed"
    got = browser.run("got")
    assert [name for name, _ in got].count("task_finish") == 1
    assert (got[0][0], got[-1][0]) == ("connection", "task_finish")
    text = "".join(data["delta"] for name, data in got if name == "text_delta")
    assert text == "hi! You have spoken 1 times; first you said: hi"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_picture_of_the_readme_has_a_chat_and_the_last_hour(browser, ownpod, tmp_path):
    """`PAGE_PICTURE=docs/images/page.png pytest tests/acceptance/test_browser_chat.py -k picture` makes it again."""
    now, chance, waiting = int(time.time() * 1000), random.Random(4), 0
    with redis_connect(ownpod.redis_url) as client:
        for step in range(SAMPLES):
            # Made up: more tasks in the middle of the hour.
            up = 1 if 60 < step < 180 else -1
            waiting = min(5, max(0, waiting + chance.choice((-1, 0, 0, up))))
            sample = [now - (SAMPLES - step) * SAMPLE_MS, waiting, int(waiting > 0)]
            client.rpush(of_endpoint("parrot-chat", "history"), json.dumps(sample))
    browser.send("Emulation.setDeviceMetricsOverride", **SCREEN)
    browser.open(url_of(ownpod))
    choose(browser, "parrot-chat")
    wait_until(lambda: not browser.run("at('chat').hidden"), 15, "the chat box")
    for number, text in enumerate(("hello", "how are you?"), 1):
        send(browser, text)
        wait_until(lambda n=number: len(lines(browser, "model")) == n, 60, "an answer")
    wait_until(lambda: free(browser), 20)
    send(browser, '{"prompt": "tell me more", "seconds": 30}')
    wait_until(lambda: "more!" in lines(browser, "model")[-1], 30, "the first words")
    wait_until(lambda: "running" in browser.text("#jobs"), 15)
    # Its sessions are served nevertheless.
    assert "paused for jobs that are no tasks" in browser.text("#paused")
    shot = base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])
    assert shot.startswith(b"\x89PNG")
    Path(os.environ.get("PAGE_PICTURE") or tmp_path / "page.png").write_bytes(shot)
