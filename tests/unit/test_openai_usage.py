"""Tokens of replies of OpenAI routes: bodies and streams of several workers, and the end of a stream."""

import json

import pytest

from ownpod.rules.openai_usage import SEARCHED, Usage, tokens_per_second, usage_of

CHAT = {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "hello"}}]}
COUNTS = {"prompt_tokens": 9, "total_tokens": 21, "completion_tokens": 12}


def event(**data):
    return f"data: {json.dumps(data)}\n\n"


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (json.dumps({**CHAT, "usage": COUNTS}), Usage(9, 12)),
        (json.dumps({**CHAT, "usage": COUNTS}, indent=2), Usage(9, 12)),
        (json.dumps({**CHAT, "usage": COUNTS, "prompt_logprobs": None}), Usage(9, 12)),
        ('{"object":"list","usage":{"prompt_tokens":8,"total_tokens":8}}', Usage(8, 0)),
        (json.dumps({"usage": {"input_tokens": 3, "output_tokens": 4}}), Usage(3, 4)),
        (event(choices=[], usage=COUNTS) + "data: [DONE]\n\n", Usage(9, 12)),
        (event(usage=None) + event(usage=COUNTS) + event(usage=None), Usage(9, 12)),
        (event(usage={"completion_tokens": 1}) + event(usage=COUNTS), Usage(9, 12)),
        (
            event(type="message_delta", usage={"output_tokens": 15}) + event(type="message_stop"),
            Usage(0, 15),
        ),
        # A text that begins within an event, as the end of a stream does.
        (json.dumps({"choices": [], "usage": COUNTS})[6:], Usage(9, 12)),
        ("", None),
        ("not JSON", None),
        (json.dumps(CHAT), None),
        (event(usage=None), None),
        ('{"usage": 12}', None),
        ('{"usage": {"prompt_tokens": "9"}}', None),
        ('{"usage": {"prompt_tokens": true, "completion_tokens": -1}}', None),
        ('{"usage": {"completion_tokens": 1e3}}', None),
        ('{"usage": {"completion_tokens": 10000000000}}', None),
        ('{"usage": {"completion_tokens": 12', None),
        ('{"usage": {"a": ' + "[" * 5000, None),
    ],
)
def test_tokens_are_read_where_a_worker_reports_them(text, usage):
    assert usage_of(text) == usage


def test_what_the_model_has_written_is_no_report():
    written = json.dumps({"usage": {"prompt_tokens": 1, "completion_tokens": 999}})
    choice = {"message": {"content": written, "tool_calls": [{"arguments": written}]}}
    assert usage_of(json.dumps({"choices": [choice]})) is None
    assert usage_of(json.dumps({"usage": COUNTS, "choices": [choice]})) == Usage(9, 12)


def test_a_schema_with_the_same_names_is_no_report():
    tool = {"properties": {"usage": {"output_tokens": {"type": "integer"}}}}
    assert usage_of(json.dumps({"usage": COUNTS, "tools": [tool]})) == Usage(9, 12)


def test_only_the_end_of_a_long_body_is_searched():
    body = json.dumps({"data": [0.5] * 100_000, "usage": COUNTS})
    assert usage_of(body) == Usage(9, 12)
    assert usage_of(json.dumps({"usage": COUNTS, "data": "x" * SEARCHED})) is None


def test_many_places_that_look_like_reports_are_not_all_parsed():
    parsed = '{"usage": {"prompt_tokens": 1}}' + '"usage": {}' * 15
    assert usage_of(parsed) == Usage(1, 0)
    assert usage_of(parsed + '"usage": {}') is None


def test_a_rate_needs_tokens_and_a_duration():
    assert tokens_per_second(Usage(9, 12), 600) == 20
    assert tokens_per_second(Usage(9, 0), 600) is None
    assert tokens_per_second(Usage(9, 12), 0) is None
    assert tokens_per_second(None, 600) is None
