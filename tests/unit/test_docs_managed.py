"""The pages about managed workers: their examples are accepted, and their tables have each key and each phase."""

import re
from pathlib import Path

import pytest

from ownpod.configuration import balancing, hours, load_endpoints, presets, templates
from ownpod.rules.managed import Phase
from ownpod.rules.placement import POOLS_BY_NAME
from ownpod.settings import VARIABLES, load

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "templates.md"


def endpoints(tmp_path, text):
    (tmp_path / "workers.yaml").write_text(text)
    return load_endpoints(load({"OWNPOD_WORKERS_FILE": str(tmp_path / "workers.yaml")}))


def files():
    for name in (
        *("templates.md", "tutorial-managed.md"),
        *("howto/docker-workers.md", "howto/load-balanced.md", "howto/openai.md"),
    ):
        text = (ROOT / "docs" / name).read_text()
        found = re.findall(r"^```yaml\n(endpoints:.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert found, name
        yield from found
    for name in ("managed", "sharing", "balanced", "worker-llm"):
        yield (ROOT / "examples" / name / "workers.yaml").read_text()


@pytest.mark.parametrize("text", list(files()))
def test_the_endpoints_of_the_pages_and_examples_are_accepted(tmp_path, text):
    found = endpoints(tmp_path, text).values()
    assert all(endpoint.managed or endpoint.is_balanced for endpoint in found)


def test_the_endpoints_in_the_comments_of_workers_yaml_are_accepted(tmp_path):
    lines = (ROOT / "workers.yaml").read_text().splitlines()
    begin = lines.index("# endpoints:")
    text = "\n".join(line[2:] for line in lines[begin:] if line.startswith("#"))
    text = text.replace("/etc/ssl/my-ca.pem", __file__)
    found = endpoints(tmp_path, text)
    assert found["my-endpoint"].managed is None
    assert found["my-managed-endpoint"].managed.scaling.workers_max == 3
    assert found["llama-7b-inference"].preset.session.queue == 5


def test_the_reference_has_each_key_phase_and_pool():
    page = PAGE.read_text()
    rows = set(re.findall(r"(?m)^\| `([\w]+)`", page))
    schemas = (
        templates.TemplateSchema,
        templates.LimitsSchema,
        templates.GpuSchema,
        balancing.BalancingSchema,
        hours.HoursSchema,
    )
    keys = {field.data_key or name for schema in schemas for name, field in schema().fields.items()}
    assert keys - rows == set()
    assert set(Phase) - rows == set()
    assert [pool for pool in POOLS_BY_NAME if f"`{pool}`" not in page] == []


def test_the_page_of_presets_has_each_key_and_alias_and_its_examples_are_accepted(tmp_path):
    page = (ROOT / "docs" / "presets.md").read_text()
    rows = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"(?m)^\| (`[^|]*) \|", page))))
    schemas = (
        presets.PresetSchema,
        presets.ModelSchema,
        presets.SessionSchema,
        presets.WorkersSchema,
        presets.DifficultySchema,
    )
    keys = {f.data_key or name for s in schemas for name, f in s().fields.items()}
    # The GPU service's words are in the rows of OwnPod's.
    assert keys - rows == {"docker_image", "env_vars", "class"}
    aliases = {v.alias.name: v.name for v in VARIABLES if v.alias}
    assert dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| `(OWNPOD_\w+)`", page)) == aliases
    examples = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        assert all(endpoint.preset for endpoint in endpoints(tmp_path, text).values())
