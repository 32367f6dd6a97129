"""OpenAI's client against a load-balanced endpoint: its requests go through the front to the server's own paths."""

import sys
from pathlib import Path

import openai
import pytest
from helpers import Process, answers, wait_until
from openai_workers import MODEL, Llm, Notes

from ownpod.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVER = Path(__file__).parent / "llm" / "llm_engine.py"


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    """The endpoint ``llm`` with two servers."""
    directory = tmp_path_factory.mktemp("llm")
    ports = {name: free_port() for name in ("w1", "w2")}
    servers = [
        Process(sys.executable, SERVER, log=directory / f"{name}.log", PORT=port)
        for name, port in ports.items()
    ]
    workers = ", ".join(
        f"{{id: {name}, url: 'http://127.0.0.1:{port}'}}" for name, port in ports.items()
    )
    file = directory / "workers.yaml"
    file.write_text(f"endpoints: {{llm: {{type: LB, workers: [{workers}]}}}}\n")
    found = None
    try:
        for port in ports.values():
            wait_until(lambda port=port: answers(f"http://127.0.0.1:{port}/ping"), 40, "a server")
        found = Llm(directory, OWNPOD_WORKERS_FILE=file, OWNPOD_FRONT="on", OWNPOD_API_KEYS="k")
        yield found
    finally:
        if found is not None:
            found.stop()
            print(found.output)
        for server in servers:
            server.kill()
            print(server.output[-2000:])


@pytest.fixture
def client(ownpod):
    with openai.OpenAI(base_url=ownpod.url("llm"), api_key="k") as found:
        yield found


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path)


def said(text):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def test_every_route_of_the_server_is_answered(client):
    assert client.chat.completions.create(**said("hello")).choices[0].message.content == "hello"
    assert client.completions.create(model=MODEL, prompt="to be").choices[0].text == "to be"
    assert client.responses.create(model=MODEL, input="a b").output_text == "a b"
    vectors = client.embeddings.create(model=MODEL, input=["four"]).data
    assert vectors[0].embedding == [4.0, 0.5, -1.0]
    assert [model.id for model in client.models.list()] == [MODEL]


def test_words_arrive_while_the_server_works(client, notes):
    text = notes.text("one two three", "pause")
    stream = client.chat.completions.create(**said(text), stream=True)
    words = (chunk.choices[0].delta.content for chunk in stream)
    first = next(word for word in words if word)
    assert (first, notes.signs()) == ("one", "+")
    notes.go.touch()
    assert first + "".join(word or "" for word in words) == "one two three"


def test_the_servers_errors_pass_unchanged(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**said("a"), "model": "other"})
    assert caught.value.body["message"] == "The model `other` does not exist."
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**said("a"), temperature=3)
    with pytest.raises(openai.RateLimitError):
        client.with_options(max_retries=0).chat.completions.create(**said("a !status=429"))


def test_a_client_that_leaves_stops_the_server(client, notes):
    text = notes.text("one two", "pause")
    with client.chat.completions.create(**said(text), stream=True) as stream:
        next(stream)
        notes.wait("+")
    notes.wait("+x")


def test_a_chat_keeps_its_worker(client, notes):
    completions = client.chat.completions.with_raw_response
    header = "X-Runpod-Worker-Id"
    worker = completions.create(**said(notes.text("hello"))).headers[header]
    for _ in range(6):
        again = completions.create(**said(notes.text("hello")), extra_headers={header: worker})
        assert again.headers[header] == worker
    assert len(notes.workers()) == 1


def test_a_wrong_key_and_an_unknown_endpoint_are_openais_errors(ownpod, client):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.with_options(base_url=ownpod.url("another")).models.list()
