"""A real browser, headless, over its debugging protocol. The fixture ``browser`` in conftest.py starts it."""

import contextlib
import json
import shutil

import requests
from helpers import Process, wait_until
from websockets.sync.client import connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, directory, log, *more):
        options = (
            "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0"
        )
        self.process = Process(
            *(CHROMIUM, *options.split(), *more, f"--user-data-dir={directory}", "about:blank"),
            log=log,
        )
        file = directory / "DevToolsActivePort"
        wait_until(lambda: file.exists() and len(file.read_text().split()) == 2, 30, "chromium")
        port = file.read_text().split()[0]

        def page():
            tabs = requests.get(f"http://127.0.0.1:{port}/json/list", timeout=60).json()
            return next((tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"), "")

        url = wait_until(page, what="a tab")
        self._ends = contextlib.ExitStack()
        self._socket = self._ends.enter_context(connect(url, max_size=None, open_timeout=60))
        self._number = 0

    def send(self, method, **options):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": options}))
        while True:
            said = json.loads(self._socket.recv(timeout=60))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def open(self, url):
        self.send("Page.navigate", url=url)
        wait_until(lambda: self.run("document.readyState") == "complete")

    def run(self, script):
        """The value of an expression in the page."""
        said = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText") or ""

    def close(self):
        self._ends.close()
        self.process.kill()


def url_of(ownpod):
    return f"http://127.0.0.1:{ownpod.port}/"
