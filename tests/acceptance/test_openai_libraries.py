"""LiteLLM, langchain-openai and langchain-runpod, unmodified, each in a Python of its own."""

import json

import pytest
from helpers import run_command, wait_until
from openai_workers import MODEL, Notes, python_with, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]

ENDPOINTS = ["vllm-pull", "sglang-pull", "vllm-mid-raw0-push"]

LITELLM = """
import asyncio, json, os, sys
import litellm
from litellm import acompletion, completion, embedding, text_completion

base, model, note, with_embeddings = json.loads(sys.argv[1])
options = {"model": f"openai/{model}", "api_base": base, "api_key": "any"}
say = lambda text: [{"role": "user", "content": text}]
joined = lambda chunks: "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
found = {}
found["chat"] = completion(**options, messages=say("from litellm")).choices[0].message.content
found["stream"] = joined(completion(**options, messages=say("one two three"), stream=True))
text = text_completion(**options | {"model": f"text-completion-openai/{model}"}, prompt="to be or", max_tokens=2)
found["completion"] = text.choices[0].text
if with_embeddings:
    rows = embedding(**options, input=["four"], encoding_format="float").data
    found["embedding"] = rows[0]["embedding"]

async def use():
    answers = await asyncio.gather(*(acompletion(**options, messages=say(f"n {n}")) for n in range(8)))
    found["many"] = [answer.choices[0].message.content for answer in answers]
    stream = await acompletion(**options, messages=say("four five"), stream=True)
    found["asyncStream"] = joined([chunk async for chunk in stream])

asyncio.run(use())
wrong = {"temperature": dict(messages=say("a"), temperature=3), "model": dict(messages=say("a"), model="openai/other"),
    "failed": dict(messages=say(f"hello !note={note} !status=500")), "limit": dict(messages=say("a !status=429"))}
for name, more in wrong.items():
    try:
        completion(**options | more)
    except Exception as error:
        found[name] = [type(error).__name__, error.status_code]
print(json.dumps(found))
"""

LANGCHAIN = """
import asyncio, json, sys
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

base, model, note, with_embeddings = json.loads(sys.argv[1])
options = {"model": model, "base_url": base, "api_key": "any"}
chat = ChatOpenAI(**options)
found = {}
answer = chat.invoke("from langchain")
found["chat"], found["tokens"] = answer.content, answer.usage_metadata["output_tokens"]
found["stream"] = "".join(chunk.content for chunk in chat.stream("one two three"))
found["batch"] = [answer.content for answer in chat.batch(["a b", "c d"])]
found["completion"] = OpenAI(**options, max_tokens=2).invoke("to be or")
if with_embeddings:
    # Without the check it needs no tokenizer from the internet.
    embeddings = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    found["embedding"] = embeddings.embed_query("four")

async def use():
    found["async"] = (await chat.ainvoke("six seven")).content
    found["asyncStream"] = "".join([chunk.content async for chunk in chat.astream("four five")])

asyncio.run(use())
for name, more, text in (("model", {"model": "other"}, "a"), ("failed", {}, f"hello !note={note} !status=500")):
    try:
        ChatOpenAI(**options | more).invoke(text)
    except Exception as error:
        found[name] = [type(error).__name__, error.status_code]
print(json.dumps(found))
"""

RUNPOD = """
import asyncio, json, sys
from langchain_runpod import ChatRunPod, RunPod

base, endpoint = json.loads(sys.argv[1])
options = {"endpoint_id": endpoint, "api_key": "any", "api_base": base, "poll_interval": 0.1}
chat = ChatRunPod(**options)
found = {"chat": chat.invoke("from langchain").content}
found["stream"] = "".join(chunk.content for chunk in chat.stream("one two"))
found["async"] = asyncio.run(chat.ainvoke("six seven")).content
found["llm"] = RunPod(**options).invoke("to be")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python():
    return python_with("openai-clients", "litellm==1.110.2", "langchain-openai==1.7.4")


@pytest.fixture(scope="module")
def python_with_langchain_runpod():
    # It needs an older langchain-core and an older httpx.
    return python_with("langchain-runpod", "langchain-runpod==0.2.0")


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llm")
    pull, push = ["vllm", "sglang", "vllm-29"], ["vllm-mid-raw0"]
    with serving(directory, pull, push) as (found, _start):
        yield found


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path)


def use(python, program, *values):
    """Runs a program; returns the JSON of its last line."""
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": "false"}
    done = run_command(python, "-c", program, json.dumps(values), timeout=250, **environ)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_litellm(ownpod, python, notes, endpoint):
    embeds = endpoint == "vllm-pull"
    found = use(python, LITELLM, ownpod.url(endpoint), MODEL, str(notes.path), embeds)
    assert found["chat"] == "from litellm"
    assert found["stream"] == "one two three"
    assert found["completion"] == "to be"
    assert found["many"] == [f"n {number}" for number in range(8)]
    assert found["asyncStream"] == "four five"
    assert found.get("embedding", [4.0, 0.5, -1.0]) == [4.0, 0.5, -1.0]
    assert found["temperature"] == ["BadRequestError", 400]
    assert found["model"] == ["NotFoundError", 404]
    assert found["failed"] == ["InternalServerError", 500]
    assert found["limit"] == ["RateLimitError", 429]
    notes.wait("+")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_langchain_openai(ownpod, python, notes, endpoint):
    embeds = endpoint == "vllm-pull"
    found = use(python, LANGCHAIN, ownpod.url(endpoint), MODEL, str(notes.path), embeds)
    assert (found["chat"], found["tokens"]) == ("from langchain", 2)
    assert found["stream"] == "one two three"
    assert found["batch"] == ["a b", "c d"]
    assert found["completion"] == "to be"
    assert found["async"] == "six seven"
    assert found["asyncStream"] == "four five"
    assert found.get("embedding", [4.0, 0.5, -1.0]) == [4.0, 0.5, -1.0]
    assert found["model"][1] == 404
    assert found["failed"][1] == 500
    notes.wait("+")


def test_langchain_runpod_uses_the_same_workers_as_jobs(ownpod, python_with_langchain_runpod):
    found = use(python_with_langchain_runpod, RUNPOD, ownpod.base, "vllm-29-pull")
    prefix = "User: "
    assert found["chat"] == f"{prefix}from langchain"
    assert found["stream"] == f"{prefix}one two"
    assert found["async"] == f"{prefix}six seven"
    assert found["llm"] == "to be"
    wait_until(lambda: set(ownpod.statuses("vllm-29-pull", "prompt")) == {"COMPLETED"}, 10)
