"""Ids in URLs are checked during routing: the tests have no Redis, so that a later check would fail."""

import re

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.ids import IdConverter

NO_IDS = {"filename", "path", "kind", "type_id", "model_id"}
"""Parameters of routes that are not ids: names of files of the page and of /docs; words of a list in the route; names of
GPU types, which are looked up in a list only; ids of models, which the views check, because they may have a /."""
BAD = ["zz:out", "a b", "a%0Ab", "a.b", "%00", "é", "x" * 256]


@pytest.fixture
def api(tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {apiKeys: [key]}}")
    return create_app(load_settings(OWNPOD_WORKERS_FILE=file, REDIS_URL="redis://127.0.0.1:1/0"))


def routes(app):
    """Each route, with the converters of its parameters."""
    return [rule for rule in app.url_map.iter_rules() if rule.arguments - NO_IDS]


def test_each_parameter_of_a_route_has_the_converter_of_ids(api):
    assert len(routes(api)) > 15
    for rule in routes(api):
        for name in rule.arguments - NO_IDS:
            assert type(rule._converters[name]) is IdConverter, rule.rule


@pytest.mark.parametrize("bad", BAD)
def test_an_id_with_other_characters_is_refused_on_each_route_before_keys_and_redis(api, bad):
    for rule in routes(api):
        ids = sorted(rule.arguments - NO_IDS)
        for name in ids:
            path = rule.rule
            for other in ids:
                path = path.replace(f"<id:{other}>", bad if other == name else "ok")
            path = re.sub(r"<any\((\w+)[^>]*>", r"\1", path)
            method = min(rule.methods - {"HEAD", "OPTIONS"})
            answer = api.test_client().open(path, method=method)
            polled = "/job-take" in path or "/job-stop" in path
            assert answer.status_code == (429 if polled else 400), (method, path)
            assert "letters, digits, - and _" in answer.text


def test_an_id_of_a_caller_forges_no_log_line(api, caplog):
    api.test_client().get("/v2/ep/job-take/a%0Ab")
    assert [record.message.count("\n") for record in caplog.records] == [0]
