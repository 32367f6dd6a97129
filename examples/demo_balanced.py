"""`make demo LB=1`: requests go straight to FastAPI workers that OwnPod starts; they wait for the first one, and for a free one."""

import concurrent.futures
import sys
import time
from typing import Any

import requests
from managed_demo import API, ManagedDemo, play
from websockets.sync.client import connect

from ownpod.supervised import Group

ENDPOINT = "text-lb"
BASE = f"{API}/lb/{ENDPOINT}"
AT_ONCE = 6
WORK_S = 2
"""Seconds for which each of them runs. All together last longer than the start of a second worker."""
IDLE_S = 3.0
"""``idleTimeout`` of the endpoint."""


class Demo(ManagedDemo):
    """Sends requests, and writes a line for each answer and for each change of the workers."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._phases: dict[str, str] = {}

    def look(self) -> dict[str, Any]:
        """Writes what has changed among the workers; returns the endpoint's health."""
        health: dict[str, Any] = requests.get(f"{API}/v2/{ENDPOINT}/health", timeout=5).json()
        workers = {w["id"]: w for w in health["ownpod"]["managed"]["workers"]}
        for worker_id, worker in workers.items():
            if self._phases.get(worker_id) != worker["phase"]:
                self._phases[worker_id] = worker["phase"]
                # The reason begins with the phase: "drains: it was idle for 3 s".
                self.say(f"worker {worker_id}: {worker['reason'] or worker['phase']}")
        for worker_id in self._phases.keys() - workers.keys():
            self.say(f"worker {worker_id}: stopped")
            del self._phases[worker_id]
        return health

    def ended(self, *sent: concurrent.futures.Future[Any]) -> bool:
        """Looks at the workers. True: all of these requests were answered."""
        self.look()
        return all(one.done() for one in sent)

    def run(self) -> bool:
        """The first request, many at once, a stream, a WebSocket, and the end of the workers."""
        self.began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            self.say(f"POST {BASE}/generate: no worker yet, so the front holds the request")
            first = pool.submit(generate, "hello", 0)
            self.until(lambda: self.ended(first), "the first answer")
            self.say(f"answered: {first.result()['text']} by worker {first.result()['worker']}")
            self.say(f"{AT_ONCE} requests of {WORK_S} s at once; a worker gets one at a time")
            many = [pool.submit(generate, f"request {number}", WORK_S) for number in range(AT_ONCE)]
            self.until(lambda: self.ended(*many), "the answers")
        answers = [one.result() for one in many]
        workers = {answer["worker"] for answer in answers}
        most = max(answer["most_at_once"] for answer in answers)
        self.say(f"answered by {len(workers)} workers, each with {most} request at a time at most")
        self.say("GET /stream: events arrive when the worker sends them")
        events = self.stream()
        echoed = self.socket()
        self.say("nothing is open now; the workers leave when they have been idle for 3 s")
        self.until(lambda: not self.look()["ownpod"]["managed"]["workers"], "the workers' end")
        return most == 1 and len(workers) == 2 and events == 5 and echoed

    def stream(self) -> int:
        """Reads server-sent events; returns their number."""
        count, began = 0, time.monotonic()
        with requests.get(f"{BASE}/stream", stream=True, timeout=30) as answer:
            for line in answer.iter_lines():
                if line:
                    count += 1
                    self.say(f"  {line.decode()} after {time.monotonic() - began:.1f} s")
        return count

    def socket(self) -> bool:
        """Keeps a WebSocket open for longer than the idle timeout. True: its worker stayed, and echoed."""
        with connect(f"{BASE.replace('http', 'ws')}/ws") as socket:
            socket.send("first")
            said = str(socket.recv(10))
            self.say(f"WebSocket open: {said}")
            until = time.monotonic() + IDLE_S + 2
            self.until(lambda: self.look() is None or time.monotonic() > until, "the time")
            socket.send("still there")
            again = str(socket.recv(10))
            self.say(f"after {IDLE_S + 2:g} s without a word: {again}")
        return said.partition(":")[0] == again.partition(":")[0]


def generate(text: str, seconds: float) -> dict[str, Any]:
    """The answer to a request that takes so many seconds. Raises: requests.RequestException."""
    body = {"text": text, "seconds": seconds}
    answer = requests.post(f"{BASE}/generate", json=body, timeout=130)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


if __name__ == "__main__":
    sys.exit(
        play(
            Demo,
            about=__doc__,
            folder="balanced",
            devices="cpu:2",
            endpoint=ENDPOINT,
            try_next=(
                f"  curl {BASE}/generate -H 'content-type: application/json' -d '{{\"text\": \"hello\"}}'",
                f"  curl -N http://{ENDPOINT}.localhost:8000/stream",
                f"  curl {API}/v2/{ENDPOINT}/health",
                f"  open {API}/ in a browser",
            ),
        )
    )
