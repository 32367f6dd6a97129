"""What OpenAI's clients send and get, for each way in which RunPod's workers answer."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.openai import (
    DONE,
    LONGEST_ROUTE,
    Rendering,
    Reply,
    error,
    job_input,
    reply_of,
    route_of,
    sends_queries,
    wants_stream,
    with_query,
)

JOB = Job("j", "ep", JobStatus.COMPLETED, 0, 1, 0)
CHAT = '{"id": "c", "object": "chat.completion",  "choices": [{"index": 0}], "big": 1.50}'
FLAT = {"object": "error", "message": "too long", "type": "BadRequestError", "param": None}
VLLM = 'vLLM returned HTTP 404: {"error":{"message":"no model","type":"NotFoundError","code":404}}'


def ended(output=None, status=JobStatus.COMPLETED, **changes):
    return replace(JOB, status=status, output=output, **changes)


def failed(text, **changes):
    return reply_of(ended(status=JobStatus.FAILED, error=text, **changes))


def about(reply):
    found = json.loads(reply.body)["error"]
    return reply.status, found["message"]


# --- the request


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("v1/chat/completions", "/v1/chat/completions"),
        ("//v1//models/", "/v1/models"),
        ("chat/completions", "/chat/completions"),
        ("v1/models/org/a b?c#d%", "/v1/models/org/a%20b%3Fc%23d%25"),
        ("v1/é\ud800", "/v1/%C3%A9%3F"),
        ("v1/models/a:b@c", "/v1/models/a:b@c"),
        ("x" * (LONGEST_ROUTE - 1), "/" + "x" * (LONGEST_ROUTE - 1)),
    ],
)
def test_a_route_is_the_path_of_a_url(path, route):
    assert route_of(path) == route


@pytest.mark.parametrize(
    "path", ["", "/", "//", "v1/../x", "..", "v1/./x", "a\nb", "\0", "a\x7f", "x" * LONGEST_ROUTE]
)
def test_a_path_that_is_no_route_is_refused(path):
    with pytest.raises(ValueError, match="route"):
        route_of(path)


@pytest.mark.parametrize(
    ("image", "sends"),
    [
        ("runpod/worker-v1-vllm:v2.25.2", True),
        ("runpod/worker-v1-vllm:v2.24.0", True),
        ("docker.io/runpod/worker-v1-vllm:3.0", True),
        ("mirror:5000/team/worker-vllm:v2.24.0-cu128", True),
        ("worker-v1-vllm:v2.25.2@sha256:" + "a" * 64, True),
        ("runpod/worker-v1-vllm:v2.23.0", False),
        ("runpod/worker-v1-vllm:v2.9.6", False),
        ("runpod/worker-v1-vllm:v1.99.0", False),
        ("runpod/worker-v1-vllm:stable-cuda12.1.0", False),
        ("runpod/worker-v1-vllm:latest", False),
        ("runpod/worker-v1-vllm", False),
        ("runpod/worker-v1-vllm@sha256:" + "a" * 64, False),
        ("runpod/worker-v1-sglang:v2.25.2", False),
        ("x/my-worker-vllm:v2.25.2", False),
        ("", False),
        (None, False),
    ],
)
def test_only_worker_vllm_since_its_proxy_gets_queries(image, sends):
    assert sends_queries(image) is sends


@pytest.mark.parametrize(
    ("query", "route"),
    [
        ("", "/v1/x"),
        ("a=b&c[]=d", "/v1/x?a=b&c%5B%5D=d"),
        ("a=%20é+\ud800", "/v1/x?a=%20%C3%A9+?"),
        ("a=b?c/d#e\n\0", "/v1/x?a=b?c/d%23e%0A%00"),
    ],
)
def test_a_query_follows_the_route_as_its_client_has_written_it(query, route):
    assert with_query("/v1/x", query) == route


def test_a_route_is_not_too_long_with_its_query():
    assert len(with_query("/v1/x", "y" * (LONGEST_ROUTE - 6))) == LONGEST_ROUTE
    with pytest.raises(ValueError, match="2000 characters"):
        with_query("/v1/x", "y" * (LONGEST_ROUTE - 5))


def test_a_job_whose_attempts_were_all_lost_has_the_type_of_that():
    lost = replace(JOB, status=JobStatus.FAILED, error="{'error': 'x'}", all_lost=True)
    reply = reply_of(lost)
    assert (reply.status, reply.should_retry) == (500, False)
    assert json.loads(reply.body)["error"]["type"] == "worker_lost"
    assert (
        json.loads(reply_of(replace(lost, all_lost=False)).body)["error"]["type"] != "worker_lost"
    )


def test_the_body_is_in_the_jobs_input_as_it_was_sent():
    body = '{"a":1.50,  "a": 2, "s": "\\ud800 \\n é"}'
    text = job_input("/v1/completions", body)
    assert text == f'{{"openai_route": "/v1/completions", "openai_input": {body}}}'
    assert job_input("/v1/models", "") == '{"openai_route": "/v1/models", "openai_input": {}}'
    assert job_input("/v1/x", '{\r\n"a":\n1}').endswith('{  "a": 1}}')


@pytest.mark.parametrize(
    ("value", "streams"),
    [(True, True), (False, False), (1, False), ("true", False), ("yes", False), (None, False)],
)
def test_only_true_asks_for_events(value, streams):
    assert wants_stream({"stream": value}) is streams
    assert not wants_stream({})


# --- responses without a stream


@pytest.mark.parametrize(
    ("output", "body"),
    [
        (f"[{CHAT}]", CHAT),
        (CHAT, CHAT),
        (f" [ {CHAT} , {{}} ]", CHAT),
        (json.dumps([CHAT]), CHAT),
        (json.dumps([CHAT[:20], CHAT[20:]]), CHAT),
        (json.dumps(["{", '"a": 1', "}"]), '{"a": 1}'),
        (json.dumps(CHAT), CHAT),
        (json.dumps(["two", "lines"]), '"two\\nlines"'),
        (f'["x", {CHAT}]', '"x"'),
        ("[1e999]", "1e999"),
        ("7", "7"),
        ("[]", "{}"),
        (None, "{}"),
        ('["\\ud800"]', '"?"'),
        ('[{"object": "response", "error": {"code": "server_error", "message": "x"}}]', None),
        ('[{"object": "response", "error": null}]', None),
        ('[{"detail": "x", "more": 1}]', None),
    ],
)
def test_an_answer_is_the_workers_json_unchanged(output, body):
    reply = reply_of(ended(output))
    assert (reply.status, reply.should_retry) == (200, None)
    assert reply.body == (output[1:-1] if body is None else body)


def test_without_an_output_the_chunks_are_it():
    for output in (None, "[]", "null", ""):
        assert reply_of(ended(output), [CHAT]).body == CHAT
        assert reply_of(ended(output), [f"[{CHAT}]"]).body == CHAT
        assert reply_of(ended(output), ['"{"', '"}"']).body == "{}"
    assert reply_of(ended("1"), [CHAT]).body == "1"


def test_a_deep_answer_is_passed_on():
    deep = "[" * 100_000 + "]" * 100_000
    assert reply_of(ended(f'{{"error": {deep}}}')).status == 200
    assert reply_of(ended(deep)).status == 200
    assert reply_of(ended(json.dumps([f'{{"detail": {deep}}}']))).status == 200


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ({**FLAT, "code": 400}, 400, "too long"),
        ({**FLAT, "code": 422}, 422, "too long"),
        ({**FLAT, "code": 200}, 400, "too long"),
        ({**FLAT, "type": "x", "code": True}, 500, "too long"),
        ({**FLAT, "type": 3}, 500, "too long"),
        ({"error": {"message": "m", "type": "t", "code": 429}}, 429, "m"),
        ({"error": {"message": "m", "type": "t", "code": "404"}}, 404, "m"),
        ({"error": {"message": "m", "type": "NotFoundError", "code": None}}, 404, "m"),
        ({"error": {"message": "m", "type": "worker_error", "code": None}}, 500, "m"),
        ({"error": {"message": VLLM, "type": "worker_error", "code": None}}, 404, "no model"),
        ({"error": "text"}, 500, "text"),
        ({"error": "text", "code": 400}, 400, "text"),
        ({"error": VLLM}, 404, "no model"),
        ({"error": [1]}, 500, "[1]"),
        ({"error": {"odd": 1}}, 500, '{"odd": 1}'),
        ({"object": "error", "code": 400}, 400, '{"object": "error", "code": 400}'),
        ({"detail": "Method Not Allowed"}, 405, "Method Not Allowed"),
        ({"detail": "Not Found"}, 404, "Not Found"),
        ({"detail": [{"loc": 1}]}, 422, '[{"loc": 1}]'),
        ({"detail": "other"}, 400, "other"),
    ],
)
def test_an_error_in_an_output_has_its_status(output, status, message):
    text = json.dumps(output)
    for shape in (text, f"[{text}]", json.dumps(text), json.dumps([text])):
        reply = reply_of(ended(shape))
        assert about(reply) == (status, message)
        assert reply.should_retry is False
    assert about(reply_of(ended("[]"), [text])) == (status, message)
    assert about(Rendering().first_error(text)) == (status, message)
    assert about(Rendering().first_error(json.dumps(text))) == (status, message)
    # worker-sglang makes an event of an error's body, with one line of data for each line of its JSON.
    lines = json.dumps(output, indent=4).splitlines()
    event = "".join(f"data: {line}\n" for line in lines) + "\n"
    assert about(Rendering().first_error(json.dumps(event))) == (status, message)
    assert Rendering().first_error(json.dumps(f"{EVENT}{event}")) is None


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (repr({"message": VLLM, "type": "worker_error", "code": None}), 404, "no model"),
        (repr({"message": "it's", "type": "BadRequestError", "code": 400}), 400, "it's"),
        (str(FLAT | {"code": 400}), 400, "too long"),
        (json.dumps({"error_type": "E", "error_message": "m", "error_traceback": "t"}), 500, "m"),
        (json.dumps({"error_message": ""}), 500, "the handler failed"),
        (json.dumps({"error": {"message": "m", "type": "t", "code": 401}}), 401, "m"),
        (VLLM, 404, "no model"),
        (f"handler: {VLLM} \ntraceback: x", 404, "no model"),
        ("handler: no memory \ntraceback: Traceback\n File secret.py", 500, "no memory"),
        (VLLM[:-1], 404, VLLM[:-1]),
        ("vLLM returned HTTP 503: {} x", 503, "vLLM returned HTTP 503: {} x"),
        ("vLLM returned HTTP 200: {}", 500, "vLLM returned HTTP 200: {}"),
        ("plain", 500, "plain"),
        (None, 500, "the worker failed"),
        ("{'open", 500, "{'open"),
        ("{'a': {1}}", 500, "{'a': {1}}"),
        ("{'a': " + "(" * 5000, 500, "{'a': " + "(" * 5000),
        (repr({"a": "half \ud800"}), 500, '{"a": "half \\ud800"}'),
        ("half \ud800", 500, "half ?"),
    ],
)
def test_a_failed_job_has_the_status_that_its_error_names(text, status, message):
    reply = failed(text)
    assert about(reply) == (status, message)
    assert reply.should_retry is False
    reply.body.encode()


def test_jobs_that_ended_otherwise():
    late = reply_of(ended(status=JobStatus.TIMED_OUT, error="executionTimeout"))
    assert (about(late), late.should_retry) == ((504, "executionTimeout"), False)
    unbegun = reply_of(ended(status=JobStatus.TIMED_OUT, attempt=0))
    assert (unbegun.status, unbegun.should_retry, unbegun.retry_after) == (503, True, 5)
    cancelled = reply_of(ended(status=JobStatus.CANCELLED))
    assert (cancelled.status, cancelled.should_retry) == (503, False)


@pytest.mark.parametrize("odd", [{}, [], {"a": [1]}, 1.5, True])
def test_an_output_whose_object_is_no_word_is_passed_on(odd):
    text = json.dumps({"error": "x", "object": odd})
    assert reply_of(ended(text)) == Reply(200, text)
    assert Rendering().text_of(text) == f"data: {text}\n\n"


def test_an_error_has_all_members_that_clients_read():
    assert json.loads(error(404, "m").body) == {
        "error": {"message": "m", "type": "not_found_error", "param": None, "code": None}
    }
    found = json.loads(error(500, "m", "kind", "code").body)["error"]
    assert (found["type"], found["code"]) == ("kind", "code")


# --- streams


def stream(*chunks, job=None):
    rendering = Rendering()
    texts = [rendering.text_of(json.dumps(chunk)) for chunk in chunks]
    return "".join(texts) + rendering.end_of(job or ended('["x"]'))


EVENT = 'data: {"a": 1}\n\n'


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([EVENT, EVENT], EVENT * 2 + DONE),
        (["da", "ta: {}\n", "\ndata: [DO", "NE]\n\n"], "data: {}\n\ndata: [DONE]\n\n"),
        ([EVENT, "data: [DONE]"], EVENT + "data: [DONE]"),
        (
            [[{"a": 1}, {"b": 2}], [{"c": 3}]],
            f'{EVENT}data: {{"b": 2}}\n\ndata: {{"c": 3}}\n\n{DONE}',
        ),
        ([{"a": 1}], EVENT + DONE),
        ([[], None, "", {"a": 1}], EVENT + DONE),
        (["data:[DONE]\r\n\r\n"], "data:[DONE]\r\n\r\n"),
        ([{"content": "data: [DONE]"}], f'data: {{"content": "data: [DONE]"}}\n\n{DONE}'),
        (["data: x"], f"data: x\n\n{DONE}"),
        (["data: x\n"], f"data: x\n\n{DONE}"),
        (["data: x", {"a": 1}], f"data: x\n\n{EVENT}{DONE}"),
        (['{"a": 1}\n'], EVENT + DONE),
        (["data: x", '{"a": 1}'], f'data: x{{"a": 1}}\n\n{DONE}'),
        (['data: {\ndata:  "a": 1\ndata: }\n\n'], f'data: {{\ndata:  "a": 1\ndata: }}\n\n{DONE}'),
        (["half \ud800\n\n"], f"half ?\n\n{DONE}"),
        ([7], f"data: 7\n\n{DONE}"),
    ],
)
def test_strings_are_written_as_they_come_and_the_rest_as_events(chunks, text):
    assert stream(*chunks) == text


@given(st.lists(st.integers(0, 200)))
def test_however_a_worker_divides_its_events_they_are_the_same(places):
    text = "".join(f'data: {{"n": {n}, "t": "é{n}"}}\n\n' for n in range(8)) + DONE
    cuts = sorted({min(place, len(text)) for place in places})
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert stream(*parts) == text


def test_a_chunk_of_several_lines_is_one_event():
    assert Rendering().text_of('{"a":\n1,\r\n"b": 2}') == 'data: {"a":\ndata: 1,\ndata: "b": 2}\n\n'


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (f"[{CHAT}]", f"data: {CHAT}\n\n{DONE}"),
        (CHAT, f"data: {CHAT}\n\n{DONE}"),
        (json.dumps([EVENT, DONE]), EVENT + DONE),
        (json.dumps(EVENT + DONE), EVENT + DONE),
        (json.dumps([[{"a": 1}]]), EVENT + DONE),
        ("[]", DONE),
        (None, DONE),
    ],
)
def test_the_output_of_a_job_without_chunks_is_its_stream(output, text):
    assert stream(job=ended(output)) == text


def test_an_error_ends_a_stream_without_done():
    after = stream(EVENT, job=ended(status=JobStatus.FAILED, error=VLLM))
    assert (
        after
        == EVENT + 'data: {"error":{"message":"no model","type":"NotFoundError","code":404}}\n\n'
    )
    late = stream(EVENT, job=ended(status=JobStatus.TIMED_OUT, error="late"))
    assert '"type": "timeout_error"' in late
    assert "[DONE]" not in late
    flat = stream(EVENT, {**FLAT, "code": 400})
    assert flat.startswith(f'{EVENT}data: {{"error": {{"message": "too long"')
    assert "[DONE]" not in flat
    assert "[DONE]" not in stream(job=ended(json.dumps({"error": "x"})))
    cut = stream("data: {", job=ended(status=JobStatus.FAILED, error="x"))
    assert cut.startswith('data: {\n\ndata: {"error"')


def test_an_error_is_a_status_only_before_anything_was_written():
    text = json.dumps({**FLAT, "code": 400})
    rendering = Rendering()
    assert rendering.first_error('""') is None
    assert rendering.first_error(f'["", {text}]').status == 400
    assert rendering.first_error(f'["x", {text}]') is None
    assert rendering.first_error("[]") is None
    rendering.text_of(json.dumps(EVENT))
    assert rendering.first_error(text) is None


def test_a_comment_divides_no_line():
    rendering = Rendering()
    assert rendering.comment() == ": waiting\n\n"
    assert not rendering.has_begun
    rendering.text_of('"data: {"')
    assert rendering.has_begun
    assert rendering.comment() == ""
    rendering.text_of('"}\\n"')
    assert rendering.comment() == ": waiting\n"
    rendering.text_of('"\\n"')
    assert rendering.comment() == ": waiting\n\n"
