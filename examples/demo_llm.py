"""`make demo LLM=1`: OpenAI's API on a small model on the CPU, whose worker OwnPod starts; a client that leaves cancels its job."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import requests
from managed_demo import API, ManagedDemo, play

from ownpod.supervised import write

ENDPOINT = "llm"
JOBS = f"{API}/v2/{ENDPOINT}"
BASE = f"{JOBS}/openai/v1"
QUESTION = "Why is the sky blue? Answer in two sentences."
LONGEST_S = 180.0
"""No request of the demo takes longer, also on a busy machine."""


class Demo(ManagedDemo):
    """Asks as any OpenAI client does, and writes what comes."""

    def run(self) -> bool:
        """The list of models, two answers, one that its client leaves, and embeddings."""
        self.began = time.monotonic()
        self.say(f"GET {BASE}/models: no worker yet, so OwnPod starts one, which loads the model")
        models = requests.get(f"{BASE}/models", timeout=LONGEST_S)
        models.raise_for_status()
        model = str(models.json()["data"][0]["id"])
        self.say(f"models: {model}")
        self.say(f"POST {BASE}/chat/completions, as a stream: {QUESTION}")
        tokens = self.answer(model, QUESTION, 48)
        self.say("again, and the client leaves after a few tokens")
        left = self.leave(model)
        self.say(f"POST {BASE}/embeddings")
        body = {"model": model, "input": ["a cat", "a dog"]}
        vectors = requests.post(f"{BASE}/embeddings", json=body, timeout=LONGEST_S).json()["data"]
        self.say(f"  {len(vectors)} vectors of {len(vectors[0]['embedding'])} numbers")
        wrong = requests.post(f"{BASE}/chat/completions", json={"messages": 1}, timeout=LONGEST_S)
        self.say(f"a wrong request: HTTP {wrong.status_code} {json.dumps(wrong.json())}")
        return tokens > 1 and left and len(vectors) == 2 and wrong.status_code == 400

    def answer(self, model: str, question: str, most: int) -> int:
        """Writes an answer while it is made; returns the number of its tokens."""
        began, first_s, text, usage = time.monotonic(), 0.0, "", {}
        with stream(model, question, most) as events:
            for event in events:
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    delta = choice["delta"].get("content") or ""
                    first_s = first_s or (time.monotonic() - began if delta else 0.0)
                    text += delta
                    # Whole lines, because each line of this output has a prefix.
                    if len(text) > 70 and delta.startswith(" "):
                        write("model", text.strip())
                        text = ""
        write("model", text.strip())
        count = int(usage["completion_tokens"])
        speed = (count - 1) / max(time.monotonic() - began - first_s, 0.001)
        self.say(f"{count} tokens; the first after {first_s:.1f} s, then {speed:.1f} tokens/s")
        return count

    def leave(self, model: str) -> bool:
        """Begins a long answer (``ignore_eos``: the model does not end it by itself) and closes the connection. True: its job was cancelled."""
        with stream(model, "Tell me a very long story.", 1500, ignore_eos=True) as events:
            for number, _ in enumerate(events):
                if number == 5:
                    break
        job = str(requests.get(f"{JOBS}/requests?limit=1", timeout=5).json()["requests"][0]["id"])
        status = ""

        def ended() -> bool:
            nonlocal status
            status = requests.get(f"{JOBS}/status/{job}", timeout=5).json()["status"]
            return status not in {"IN_QUEUE", "IN_PROGRESS"}

        self.until(ended, "the end of the job")
        self.say(f"  job {job}: {status}")
        return status == "CANCELLED"


@contextlib.contextmanager
def stream(model: str, question: str, most: int, **more: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a chat's answer. The end of the block closes the connection. Raises: requests.RequestException."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": most,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    with requests.post(
        f"{BASE}/chat/completions", json=body, stream=True, timeout=LONGEST_S
    ) as answer:
        answer.raise_for_status()
        lines = answer.iter_lines(chunk_size=None)
        data = (line[6:] for line in lines if line.startswith(b"data: "))
        yield (json.loads(text) for text in data if text != b"[DONE]")


if __name__ == "__main__":
    sys.exit(
        play(
            Demo,
            about=__doc__,
            folder="worker-llm",
            devices="cpu:1",
            endpoint=ENDPOINT,
            try_next=(
                f"  open {API}/ in a browser, and choose the endpoint {ENDPOINT}: a chat",
                f"  curl {BASE}/models",
                f"  curl -N {BASE}/chat/completions -H 'Content-Type: application/json' -d '"
                + json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "stream": True})
                + "'",
                "  pip install openai; then in Python:",
                f'    import openai; client = openai.OpenAI(base_url="{BASE}", api_key="any")',
                "  docs/howto/openai.md has more clients",
            ),
        )
    )
