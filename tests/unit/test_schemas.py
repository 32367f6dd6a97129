import pytest

from ownpod.api import schemas
from ownpod.configuration.workers import WorkerSchema
from ownpod.errors import BadRequest


def parse(body):
    return schemas.parse(schemas.RunSchema(), body)


def test_unknown_keys_are_ignored():
    found = parse(b'{"input": {"a": 1}, "webhookV9": 1, "policy": {"x": 1}}')
    assert found["input"] == {"a": 1}


def test_a_whole_number_may_be_written_as_a_fraction():
    policy = parse(b'{"input": {}, "policy": {"executionTimeout": 5000.0}}')["policy"]
    assert policy["execution_timeout_ms"] == 5000


@pytest.mark.parametrize("job_input", ["{}", '{"input": {}}', "[]", '"text"', "0", "false"])
def test_any_input_but_null_is_taken(job_input):
    parse(b'{"input": %s}' % job_input.encode())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"{", "must be JSON"),
        (b"[]", "JSON object"),
        (b'{"input": NaN}', "NaN is not JSON"),
        (b'{"in": {}}', "input: is missing"),
        (b'{"input": null}', "input: is null"),
        (b'{"input": {}, "policy": 5}', "policy: "),
        (b'{"input": {}, "policy": {"executionTimeout": "5"}}', "policy.executionTimeout: "),
        (b'{"input": {}, "policy": {"executionTimeout": 4999}}', "policy.executionTimeout: "),
        (b'{"input": {}, "policy": {"executionTimeout": 1.5}}', "policy.executionTimeout: "),
        (b'{"input": {}, "policy": {"ttl": 9999}}', "policy.ttl: "),
        (b'{"input": {}, "policy": {"lowPriority": 1}}', "policy.lowPriority: must be true or"),
        (b'{"input": {}, "webhook": "localhost"}', "webhook: must be an http"),
        (b'{"input": {}, "webhook": 5}', "webhook: must be an http"),
        (b'{"input": {}, "s3Config": "x"}', "s3Config: must be an object"),
        (b'\xff{"input": 1}', "must be JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_body_names_the_field(body, says):
    with pytest.raises(BadRequest) as caught:
        parse(body)
    assert says in str(caught.value)


@pytest.mark.parametrize(("text", "ms"), [("1", 1000), ("5000", 5000), ("999999", 300000)])
def test_milliseconds_are_brought_into_the_limits(text, ms):
    assert schemas.whole_number("wait", text, schemas.WAIT_MS) == ms


def test_milliseconds_must_be_whole():
    with pytest.raises(BadRequest, match="wait: must be a whole number"):
        schemas.whole_number("wait", "1s", schemas.WAIT_MS)


@pytest.mark.parametrize("value", [0, 0.0, 1, "true", "", None])
def test_only_true_and_false_decide_whether_a_certificate_is_checked(value):
    worker = {"url": "https://h:1"}
    assert WorkerSchema().validate(worker | {"verifyTls": value}).keys() == {"verifyTls"}
    assert not any(WorkerSchema().validate(worker | {"verifyTls": flag}) for flag in (True, False))
