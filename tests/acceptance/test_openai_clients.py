"""OpenAI's Python client, unmodified, against workers that answer as RunPod's own do, in pull and push mode."""

import asyncio
import json

import openai
import pytest
import requests
from helpers import wait_until
from openai_workers import MODEL, Notes, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IN_PROCESS = ["vllm-mid", "vllm-mid-raw0", "vllm-29"]
CHATS = ["vllm", *IN_PROCESS, "sglang"]
PULL = [*CHATS, "infinity"]
PUSH = ["vllm", "vllm-mid", "vllm-mid-raw0", "sglang", "infinity"]
ENDPOINTS = [f"{kind}-pull" for kind in PULL] + [f"{kind}-push" for kind in PUSH]

chats = pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if "infinity" not in e])
MORE = """
  two: {}
  keeps: {onDisconnect: keep}
  short: {executionTimeout: 5000}
  idle: {}
  dies: {}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("llm"), PULL, PUSH, MORE) as found:
        yield found


@pytest.fixture
def ownpod(running):
    return running[0]


@pytest.fixture
def start(running):
    return running[1]


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path)


@pytest.fixture
def client_of(ownpod):
    with ownpod.clients() as make:
        yield make


@pytest.fixture
def asynchronous(ownpod):
    """Runs a function with an asynchronous client."""

    def run(endpoint, function, **options):
        async def use():
            url = ownpod.url(endpoint)
            async with openai.AsyncOpenAI(base_url=url, api_key="any", **options) as client:
                return await function(client)

        return asyncio.run(use())

    return run


def said(text):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def chat(client, text, **options):
    return client.chat.completions.create(**said(text), **options)


def joined(stream):
    """The text of a chat's stream."""
    parts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    return "".join(part or "" for part in parts)


TEXT = "Grüße an 世界 and 🙂 to all of you, once more"


@chats
def test_a_chat_is_answered_with_the_workers_own_object(client_of, endpoint):
    raw = client_of(endpoint).chat.completions.with_raw_response.create(**said(TEXT))
    assert raw.headers["content-type"] == "application/json"
    found = raw.parse()
    assert (found.object, found.id, found.model) == ("chat.completion", "chatcmpl-1", MODEL)
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert found.usage.completion_tokens == len(TEXT.split())


@chats
def test_a_chat_streams_every_word_its_usage_and_done(client_of, endpoint):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat(client_of(endpoint), "one two three four five six seven", **options))
    assert joined(chunks) == "one two three four five six seven"
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [finish for finish in finishes if finish] == ["stop"]
    assert chunks[-1].usage.completion_tokens == 7
    body = {**said("one two"), "stream": True}
    url = f"{client_of(endpoint).base_url}chat/completions"
    answer = requests.post(url, json=body, timeout=60)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.text.count("data: [DONE]") == 1
    assert answer.text.endswith("data: [DONE]\n\n")


@chats
def test_a_completion_is_answered_and_streamed(client_of, endpoint):
    completions = client_of(endpoint).completions
    found = completions.create(model=MODEL, prompt="to be or not", max_tokens=3)
    assert (found.object, found.choices[0].text) == ("text_completion", "to be or")
    stream = completions.create(model=MODEL, prompt="to be or not", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "to be or not"


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.startswith("vllm")])
def test_the_model_list_is_the_workers(client_of, endpoint):
    assert [model.id for model in client_of(endpoint).models.list()] == [MODEL]


@pytest.mark.parametrize("endpoint", ["vllm-pull", "vllm-mid-pull", "vllm-push", "vllm-mid-push"])
def test_responses_are_answered_and_streamed(client_of, endpoint):
    responses = client_of(endpoint).responses
    found = responses.create(model=MODEL, input=TEXT)
    assert (found.status, found.output_text) == ("completed", TEXT)
    with responses.stream(model=MODEL, input="one two three") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "one two three"
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") == 3
    assert kinds[-1] == "response.completed"


@pytest.mark.parametrize("endpoint", ["vllm-pull", "vllm-push", "infinity-pull", "infinity-push"])
def test_embeddings_are_answered(client_of, endpoint):
    found = client_of(endpoint).embeddings.create(model=MODEL, input=["a", "four"])
    assert [row.embedding for row in found.data] == [[1.0, 0.5, -1.0], [4.0, 0.5, -1.0]]
    assert found.usage.total_tokens == 2


@pytest.mark.parametrize("endpoint", ["infinity-pull", "infinity-push"])
def test_infinity_lists_its_models_and_refuses_chats(client_of, endpoint):
    client = client_of(endpoint)
    assert [model.id for model in client.models.list()] == [MODEL]
    with pytest.raises(openai.BadRequestError, match="Invalid OpenAI Route: /v1/chat/compl"):
        chat(client, "hello")
    with pytest.raises(openai.BadRequestError, match="other not found"):
        client.embeddings.create(model="other", input="a")


@pytest.mark.parametrize("stream", [False, True])
@chats
def test_an_error_of_the_engine_has_its_status_and_body(client_of, endpoint, stream):
    client = client_of(endpoint)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**said("hello"), "model": "other"}, stream=stream)
    error = caught.value
    assert error.body["message"] == "The model `other` does not exist."
    assert (error.type, error.body["code"]) == ("NotFoundError", 404)
    assert error.response.headers["content-type"] == "application/json"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "hello", temperature=3, stream=stream)
    assert (caught.value.body["code"], caught.value.type) == (400, "BadRequestError")


@pytest.mark.parametrize(
    ("code", "kind"), [(429, openai.RateLimitError), (500, openai.InternalServerError)]
)
@pytest.mark.parametrize(
    "endpoint", ["vllm-pull", "vllm-mid-pull", "vllm-29-pull", "sglang-pull", "vllm-push"]
)
def test_an_error_after_a_worker_has_begun_is_not_retried(client_of, notes, endpoint, code, kind):
    with pytest.raises(kind) as caught:
        chat(client_of(endpoint), notes.text("hello", f"status={code}"))
    assert caught.value.response.headers["x-should-retry"] == "false"
    notes.wait("+")


@pytest.mark.parametrize(
    "endpoint", ["vllm-pull", "vllm-mid-pull", "vllm-29-pull", "vllm-mid-push"]
)
def test_an_engine_that_is_dead_is_a_500_and_is_not_retried(client_of, notes, endpoint):
    with pytest.raises(openai.InternalServerError, match="the engine is dead"):
        chat(client_of(endpoint), notes.text("hello", "raise"))
    notes.wait("+x")


@pytest.mark.parametrize("path", ["/nothing", "/rerank"])
def test_a_route_that_the_worker_does_not_have_is_an_error(client_of, path):
    with pytest.raises(openai.NotFoundError):
        client_of("vllm-pull").post(path, body={"model": MODEL}, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="Invalid route"):
        client_of("vllm-mid-pull").post(path, body={"model": MODEL}, cast_to=object)


@pytest.mark.parametrize(
    "endpoint", ["vllm-pull", "vllm-mid-pull", "vllm-mid-raw0-pull", "vllm-push"]
)
def test_an_error_in_the_middle_of_a_stream_is_raised(client_of, notes, endpoint):
    stream = chat(client_of(endpoint), notes.text("one two", "break"), stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="broken in the middle"):
        seen.extend(stream)
    assert joined(seen) == "one"


@pytest.mark.parametrize(
    "endpoint", ["vllm-pull", "vllm-mid-pull", "vllm-mid-raw0-pull", "vllm-29-pull"]
)
def test_a_pull_workers_words_arrive_while_it_works(client_of, notes, endpoint):
    client = client_of(endpoint, timeout=100)
    stream = chat(client, notes.text("one two three", "pause"), stream=True)
    # Before worker-vllm's proxy, the second part has the first three words.
    first = [next(stream)]
    while endpoint == "vllm-pull" and not joined(first):
        first.append(next(stream))
    assert (first[0].choices[0].delta.role, notes.signs()) == ("assistant", "+")
    notes.go.touch()
    assert joined([*first, *stream]) == "one two three"
    notes.wait("+-")


@pytest.mark.parametrize("endpoint", ["vllm-pull", "vllm-mid-pull"])
def test_a_stream_that_its_client_leaves_is_cancelled_down_to_the_engine(
    ownpod, client_of, notes, endpoint
):
    with chat(client_of(endpoint), notes.text("one two", "pause"), stream=True) as stream:
        assert joined([next(stream)]) == ""
        notes.wait("+")
    notes.wait("+x")
    wait_until(lambda: ownpod.statuses(endpoint, notes.path) == ["CANCELLED"], 20)


def test_a_request_whose_time_is_over_is_cancelled_and_repeated_by_its_client(
    ownpod, client_of, notes
):
    # The client repeats it, because it cannot know that a worker had begun.
    client = client_of("vllm-pull", timeout=4, max_retries=1)
    with pytest.raises(openai.APITimeoutError):
        chat(client, notes.text("one two", "until"))
    wait_until(lambda: set(ownpod.statuses("vllm-pull", notes.path)) == {"CANCELLED"}, 20)
    wait_until(lambda: notes.signs().count("x") == notes.signs().count("+"), 20, "all stopped")


def test_a_request_that_waits_for_a_worker_is_gone_with_its_client(ownpod, client_of):
    client = client_of("idle", timeout=3, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        chat(client, "no worker")
    wait_until(lambda: ownpod.statuses("idle", "no worker") == ["CANCELLED"], 20)
    health = requests.get(f"{ownpod.base}/idle/health", timeout=60).json()
    assert health["jobs"]["inQueue"] == 0


def test_a_job_of_an_endpoint_that_keeps_them_goes_on_without_its_client(
    ownpod, start, client_of, notes
):
    start("vllm", "keeps", "keeps-1")
    with chat(client_of("keeps"), notes.text("one two", "pause"), stream=True) as stream:
        next(stream)
        notes.wait("+")
    client = client_of("keeps", timeout=5, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        chat(client, notes.text("three", "until"))
    notes.wait("++")
    notes.go.touch()
    notes.wait("++--")
    completed = ["COMPLETED", "COMPLETED"]
    wait_until(lambda: ownpod.statuses("keeps", notes.path) == completed, 20)


def test_a_chat_keeps_its_worker(start, client_of, notes):
    for name in ("two-1", "two-2"):
        start("vllm-mid", "two", name)
    completions = client_of("two").chat.completions.with_raw_response
    header = "X-Runpod-Worker-Id"
    worker = completions.create(**said(notes.text("hello"))).headers[header]
    assert worker in {"two-1", "two-2"}
    for number in range(6):
        again = completions.create(
            **said(notes.text(f"hello {number}")), extra_headers={header: f"strict {worker}"}
        )
        assert again.headers[header] == worker
    assert len(notes.workers()) == 1
    stream = completions.create(
        **said(notes.text("hello")), extra_headers={header: worker}, stream=True
    )
    assert joined(stream.parse()) == "hello"
    with pytest.raises(openai.NotFoundError) as caught:
        completions.create(**said("hello"), extra_headers={header: "strict another"})
    assert caught.value.body["code"] == "affinity_worker_gone"


def test_a_request_that_takes_longer_than_a_job_may_is_stopped_and_is_not_retried(
    ownpod, start, client_of, notes
):
    start("vllm", "short", "short-1")
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client_of("short"), notes.text("one", "until"))
    assert caught.value.status_code == 504
    assert caught.value.response.headers["x-should-retry"] == "false"
    notes.wait("+x")
    assert ownpod.statuses("short", notes.path) == ["TIMED_OUT"]


def test_a_worker_that_dies_in_a_stream_is_an_error(ownpod, start, client_of, notes):
    worker = start("vllm", "dies", "dies-1")
    client = client_of("dies", timeout=100)
    stream = chat(client, notes.text("one two", "pause"), stream=True)
    seen = [next(stream)]
    while not joined(seen):
        seen.append(next(stream))
    worker.kill()
    # Its container starts again. Without that it is gone after 60 s.
    start("vllm", "dies", "dies-1", wait=False)
    with pytest.raises(openai.APIError) as caught:
        seen.extend(stream)
    assert joined(seen) == "one"
    assert caught.value.type == "worker_lost"
    # Another attempt would repeat words that the client has.
    wait_until(lambda: ownpod.statuses("dies", notes.path) == ["CANCELLED"], 20)


@pytest.mark.parametrize("endpoint", ["vllm-pull", "vllm-mid-push"])
def test_the_asynchronous_client(asynchronous, endpoint):
    async def use(client):
        async def ask(number):
            text = f"number {number}"
            if number % 2:
                return (await chat(client, text)).choices[0].message.content == text
            stream = await chat(client, text, stream=True)
            return joined([chunk async for chunk in stream]) == text

        answered = await asyncio.gather(*map(ask, range(12)))
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="a")
        return answered

    assert all(asynchronous(endpoint, use))


def test_an_asynchronous_task_that_is_cancelled_cancels_its_job(ownpod, asynchronous, notes):
    async def use(client):
        task = asyncio.create_task(chat(client, notes.text("one", "until")))
        await asyncio.to_thread(notes.wait, "+")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asynchronous("vllm-pull", use)
    notes.wait("+x")
    wait_until(lambda: ownpod.statuses("vllm-pull", notes.path) == ["CANCELLED"], 20)


def test_a_key_of_idempotency_makes_one_job(ownpod, client_of, notes):
    headers = {"Idempotency-Key": f"key-{notes.path}"}
    for _ in range(2):
        found = chat(client_of("vllm-pull"), notes.text("hello"), extra_headers=headers)
        assert found.choices[0].message.content == "hello"
    notes.wait("+-")
    assert len(ownpod.jobs("vllm-pull", notes.path)) == 1


def test_sglang_without_a_template_has_no_model_list(client_of):
    with pytest.raises(openai.APIStatusError) as caught:
        client_of("sglang-pull").models.list()
    assert caught.value.status_code == 405


def test_the_input_of_the_job_is_the_route_and_the_clients_body(ownpod, client_of, notes):
    chat(client_of("vllm-pull"), notes.text("hello"), seed=7)
    (job,) = ownpod.jobs("vllm-pull", notes.path)
    body = {**said(notes.text("hello")), "seed": 7}
    assert job["input"] == {"openai_route": "/v1/chat/completions", "openai_input": body}
    assert json.dumps(job["output"]).count("chatcmpl-1") == 1
