"""Talk to a model that stays loaded: python examples/sessions/client.py "hello" "how are you?". Needs requests only.

Each argument is one task of the same session. OWNPOD_URL and OWNPOD_API_KEY are the API and a key; MODEL, PRESET and DIFFICULTY choose the preset.
"""

import json
import os
import sys
import time
import uuid

import requests

URL = os.environ.get("OWNPOD_URL", "http://127.0.0.1:8000").rstrip("/")
KEY = os.environ.get("OWNPOD_API_KEY")
HEADERS = {"X-API-Key": KEY} if KEY else {}
TIMEOUT = (5, 45)
"""Seconds: to connect; without a byte. OwnPod sends a comment each 15 s while nothing happens."""
TRIES = 30
"""Reconnects, 2 s apart, until this client gives up."""


def events_of(lines):
    """The events of a stream of lines, by the HTML standard: (id, event, data). A block without data is no event."""
    last_id, event, data = "", "", []
    for line in lines:
        if not line:
            if data:
                yield last_id, event or "message", json.loads("\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        # A line that begins with a colon is a comment, and has no name.
        if name == "id" and "\0" not in value:
            last_id = value
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)


def lines_of(response):
    """The lines of a response as soon as each is complete; a last line without an end is dropped, as its event is cut off."""
    rest = b""
    for piece in response.iter_content(None):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode().removesuffix("\r")


def checked(response):
    """Raises: SystemExit with OwnPod's reason, if the request was refused."""
    if not response.ok:
        try:
            body = response.json()
            reason = f"{body.get('code', response.status_code)}: {body['detail']}"
        except (ValueError, KeyError):
            reason = f"HTTP {response.status_code}"
        raise SystemExit(f"refused: {reason}")
    return response


def run(body):
    """Submits a task, and yields its events (event, data) up to ``task_finish``, also over broken connections."""
    # With this key a POST that is repeated, because its answer was lost, is the same task.
    headers = {**HEADERS, "Idempotency-Key": str(uuid.uuid4())}
    task_id, last_id, tries = None, "", 0
    while True:
        try:
            if task_id is None:
                answer = requests.post(
                    f"{URL}/api/tasks/submit",
                    json=body,
                    headers=headers,
                    stream=True,
                    timeout=TIMEOUT,
                )
            else:
                # An id is a place in the stream: what follows it is sent, nothing twice.
                resume = {**HEADERS, **({"Last-Event-ID": last_id} if last_id else {})}
                answer = requests.get(
                    f"{URL}/api/tasks/{task_id}/events",
                    headers=resume,
                    stream=True,
                    timeout=TIMEOUT,
                )
            with answer:
                task_id = checked(answer).headers["X-Task-Id"]
                for event_id, event, data in events_of(lines_of(answer)):
                    last_id, tries = event_id, 0
                    yield event, data
                    if event == "task_finish":
                        return
        except requests.RequestException as error:
            print(f"[{error}]", file=sys.stderr)
        # No task_finish: the task has not finished, only the connection.
        tries += 1
        if tries > TRIES:
            raise SystemExit(f"no connection to {URL}; the task goes on: {task_id}")
        time.sleep(2)


def main():
    session_id = None
    for prompt in sys.argv[1:] or ["hello"]:
        body = {
            "task_type": "session",
            "task_difficulty": os.environ.get("DIFFICULTY", "low"),
            "model_id": os.environ.get("MODEL", "parrot"),
            "task_preset": os.environ.get("PRESET", "chat"),
            "session_id": session_id,
            "metadata": {"prompt": prompt},
        }
        print(f"> {prompt}")
        for event, data in run(body):
            if event == "text_delta":
                print(data["delta"], end="", flush=True)
            elif event == "connection":
                session_id = data.get("session_id") or session_id
                print(f"[{data['status']}, session {session_id}]", file=sys.stderr)
            elif event == "worker":
                # `restarted`: another attempt begins, and what was printed of the earlier one is void.
                print(f"[{data['status']}]", file=sys.stderr)
            elif event == "task_finish":
                print()
                if data["status"] != "completed":
                    raise SystemExit(f"{data['status']}: {data.get('error', '')}")


if __name__ == "__main__":
    main()
