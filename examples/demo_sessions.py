"""`make demo SESSION=1`: a model that takes 3 s to load stays loaded for its client, until the session has been idle for 5 s."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import requests
from managed_demo import API, ManagedDemo, play
from sessions.client import events_of, lines_of

MODEL, PRESET, DIFFICULTY = "parrot", "chat", "low"
ENDPOINT = f"{MODEL}-{PRESET}"
SUBMIT = f"{API}/api/tasks/submit"
LOAD_S = 3.0
IDLE_S = 5
"""``idleTimeout`` of the preset."""


class Demo(ManagedDemo):
    """Submits tasks, and writes a line for each event."""

    def run(self) -> bool:
        """Two tasks of one session, its idle time-out, a task that comes too late, and a one-off task."""
        self.began = time.monotonic()
        self.say(f"POST {SUBMIT}: no session yet, and the model takes {LOAD_S:g} s to load")
        first_s, first = self.task(prompt="hello")
        session = str(first["session_id"])
        self.say(f"POST {SUBMIT} with session_id {session}: its model is loaded")
        next_s, following = self.task(session=session, prompt="again")
        faster = f"the first words came after {first_s:.1f} s, then after {next_s:.1f} s"
        self.say(f"{faster}, from the same process")
        self.say(f"no more tasks; the session ends when it has been idle for {IDLE_S} s")
        self.until(lambda: self.shown(session)["status"] == "killed", "the session's end")
        ended = self.shown(session)
        self.say(f"session {session}: {ended['reason']}, after {ended['tasks_done']} tasks")
        refused = requests.post(SUBMIT, json=body("late", session), timeout=10)
        self.say(f"POST with its id: HTTP {refused.status_code} {refused.json()['code']}")
        self.say("POST with task_type oneoff: a program of its own, which ends with its task")
        _, counted = self.task(one_off=True, to=3)
        return (
            first["status"] == following["status"] == counted["status"] == "completed"
            and first_s >= LOAD_S
            and next_s < first_s
            and ended["reason"] == "idle_timeout"
            and refused.status_code == 404
        )

    def task(
        self, *, session: str | None = None, one_off: bool = False, **metadata: Any
    ) -> tuple[float, dict[str, Any]]:
        """Runs a task. Returns: seconds until its first words, and the data of ``task_finish``."""
        began, first_s, text = time.monotonic(), 0.0, ""
        for event, data in sent(body("", session, one_off=one_off) | {"metadata": metadata}):
            if event == "text_delta":
                first_s = first_s or time.monotonic() - began
                text += data["delta"]
            elif event == "task_finish":
                self.say(f"  task_finish  {data['status']} after {data['execution_ms']} ms")
                return first_s, data
            else:
                if event in {"text", "output"}:
                    self.say(f"  text_delta   {text!r}, in pieces")
                if event != "text":
                    self.say(f"  {event:<12} {brief(data)}")
        return first_s, {"status": "cut off", "session_id": session}

    def shown(self, session: str) -> dict[str, Any]:
        """A session as the API shows it."""
        found: dict[str, Any] = requests.get(f"{API}/api/sessions/{session}", timeout=5).json()
        return found


def body(prompt: str, session: str | None = None, *, one_off: bool = False) -> dict[str, Any]:
    """The body of a submission."""
    return {
        "task_type": "oneoff" if one_off else "session",
        "session_id": session,
        "task_difficulty": DIFFICULTY,
        "model_id": MODEL,
        "task_preset": "count" if one_off else PRESET,
        "metadata": {"prompt": prompt},
    }


def sent(task: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Submits a task; yields its events until the stream ends. Raises: requests.RequestException."""
    with requests.post(SUBMIT, json=task, stream=True, timeout=60) as answer:
        answer.raise_for_status()
        for _, event, data in events_of(lines_of(answer)):
            yield event, data


def brief(data: dict[str, Any]) -> str:
    """The values of an event that people want to see."""
    if "output" in data:
        return json.dumps(data["output"])
    names = ("status", "session_id", "gpu_name", "reason", "load_seconds", "log", "error")
    values = {name: data[name] for name in names if data.get(name) is not None}
    return ", ".join(
        str(value) if name in {"status", "log"} else f"{name} {value}"
        for name, value in values.items()
    )


if __name__ == "__main__":
    sys.exit(
        play(
            Demo,
            about=__doc__,
            folder="sessions",
            devices="cpu:1",
            endpoint=ENDPOINT,
            try_next=(
                "  .venv/bin/ownpod session start parrot chat",
                "  .venv/bin/ownpod session send parrot/chat --prompt 'hello again'",
                '  .venv/bin/python examples/sessions/client.py "hello" "how are you?"',
                "  sh examples/sessions/curl.sh",
                f"  open {API}/ in a browser: a chat box that keeps its session",
            ),
        )
    )
