"""The chat of the page with a worker that speaks OpenAI's API, in a real browser."""

import json
import sys

import pytest
import requests
from browsing import url_of
from helpers import wait_until
from test_browser_chat import choose, free, lines, send

HANDLER = '''
import asyncio, json
import runpod

async def handler(job):
    """As worker-vllm: whole objects, or text with events. It says how many messages it got, or waits for ever."""
    given = job["input"]
    if given.get("openai_route") == "/v1/models":
        yield {"object": "list", "data": [{"id": "parrot"}, {"id": "other"}]}
        return
    body = given["openai_input"]
    asked = body["messages"][-1]["content"]
    if asked == "wrong":
        yield {"object": "error", "message": "no such word", "type": "bad", "param": None, "code": 400}
        return
    for word in [f"{body['model']} ", f"{len(body['messages'])} ", asked]:
        yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}) + "\\n\\n"
    if asked == "wait":
        await asyncio.sleep(300)
    usage = {"prompt_tokens": 1, "completion_tokens": 3}
    yield "data: " + json.dumps({"choices": [], "usage": usage}) + "\\n\\ndata: [DONE]\\n\\n"

runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
'''
FILE = """
endpoints:
  chat:
    template: {{command: [{python}, {handler}]}}
    idleTimeout: 600
  echo:
    template: {{command: [{python}, {echo}]}}
"""
ECHO = """
import runpod
runpod.serverless.start({"handler": lambda job: {"echo": job["input"]}})
"""


@pytest.fixture
def ownpod(start_ownpod, tmp_path):
    handler, echo, file = (tmp_path / name for name in ("handler.py", "echo.py", "workers.yaml"))
    handler.write_text(HANDLER)
    echo.write_text(ECHO)
    names = {
        "python": json.dumps(sys.executable),
        "handler": json.dumps(str(handler)),
        "echo": json.dumps(str(echo)),
    }
    file.write_text(FILE.format(**names))
    return start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:2",
    )


def jobs(ownpod):
    return requests.get(f"{ownpod.base}/chat/requests", timeout=10).json()["requests"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_chat_asks_for_models_streams_remembers_and_stops(browser, ownpod):
    browser.open(url_of(ownpod))
    choose(browser, "chat")
    wait_until(lambda: not browser.run("at('openai').hidden"), 15, "the base URL")
    assert browser.text("#openai-url") == f"{url_of(ownpod)}v2/chat/openai/v1"
    assert browser.run("at('chat').hidden")
    # Looking at an endpoint starts no worker.
    assert jobs(ownpod) == []
    browser.run("at('openai-models').click()")
    wait_until(lambda: not browser.run("at('chat').hidden"), 60, "the chat box")
    assert browser.run("[...at('chat-model').options].map((o) => o.value)") == ["parrot", "other"]
    evil = '<img src=x onerror="window.evil = 1">'
    send(browser, evil)
    wait_until(lambda: lines(browser, "model") == [f"parrot 1 {evil}"], 30, "the answer")
    wait_until(lambda: "3 tokens" in browser.text("#chat-state"), 10, "the speed")
    assert browser.run("window.evil") is None
    browser.run("at('chat-model').value = 'other'")
    send(browser, "two")
    wait_until(lambda: lines(browser, "model")[-1] == "other 3 two", 30, "the second answer")
    send(browser, "wrong")
    wait_until(lambda: (lines(browser, "note") or [""])[-1] == "no such word", 30, "the error")

    send(browser, "wait")
    # The message without an answer was not sent again.
    wait_until(lambda: lines(browser, "model")[-1] == "other 5 wait", 30, "the first words")
    browser.run("at('chat-stop').click()")
    wait_until(lambda: free(browser) and lines(browser, "note")[-1] == "stopped", 20)
    wait_until(lambda: jobs(ownpod)[0]["status"] == "CANCELLED", 20)

    browser.run("at('chat-end').click()")
    wait_until(lambda: lines(browser, "model") == [], 10)
    browser.open(url_of(ownpod))
    choose(browser, "chat")
    # The models are known after a reload, the conversation is not.
    wait_until(lambda: not browser.run("at('chat').hidden"), 15, "the chat box after a reload")
    send(browser, "new")
    wait_until(lambda: lines(browser, "model") == ["parrot 1 new"], 30, "the answer")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_page_says_why_an_endpoint_has_no_chat(browser, ownpod):
    browser.open(url_of(ownpod))
    choose(browser, "echo")
    wait_until(lambda: not browser.run("at('openai').hidden"), 15, "the base URL")
    browser.run("at('openai-models').click()")
    wait_until(lambda: "no list of models" in browser.text("#openai-note"), 60, "the reason")
    assert browser.run("at('chat').hidden")
    assert not browser.run("at('openai-models').disabled")
