"""The docs name tests, files and each other; they must be there."""

import re
import runpy
from pathlib import Path

import yaml

from ownpod.settings import VARIABLES

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_every_row_of_the_compatibility_table_is_backed_by_a_test():
    rows = [
        line
        for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| what"))
    ]
    named = [re.search(r"`(test_\w+)` \|$", row) for row in rows]
    assert all(named), [row for row, name in zip(rows, named, strict=True) if not name]
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [m[1] for m in named if m and f"def {m[1]}(" not in sources]
    assert missing == []


def test_every_file_and_heading_that_the_docs_name_is_there():
    missing = []
    for page in PAGES:
        text = page.read_text()
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
            linked = page.parent / target if target else page
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                missing.append((page.name, target, anchor))
        names = re.findall(r"`(test_\w+\.py)`", text)
        missing += [(page.name, name) for name in names if not [*(ROOT / "tests").rglob(name)]]
    assert missing == []


def test_every_module_that_the_docs_name_is_there():
    missing = [
        (page.name, name)
        for page in PAGES
        if page.name != "CHANGES.md"
        for name in re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|lua|yaml))?)`", page.read_text())
        if not any((base / name).exists() for base in (ROOT, ROOT / "ownpod", page.parent))
    ]
    assert missing == []


def test_every_test_that_the_docs_name_is_there():
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`(test_\w+)`", page.read_text())
        if f"def {name}(" not in sources
    ]
    assert missing == []


def test_the_index_has_every_page_once():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
    for page in pages:
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or index.count(f"]({name})") == 1, name


def test_the_compose_file_passes_every_variable_on_and_no_other():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    variables = {variable.name for variable in VARIABLES}
    variables |= {variable.alias.name for variable in VARIABLES if variable.alias}
    # Of the embedded Redis, whose place the service redis takes.
    variables -= {"OWNPOD_DATA_DIR", "OWNPOD_APPENDFSYNC"}
    assert "OWNPOD_APPENDFSYNC" in services["redis"]["command"]
    for name in ("api", "front", "dispatcher", "flower"):
        passed = services[name]["environment"]
        # gunicorn reads it by itself.
        assert passed.keys() == variables | {"GUNICORN_CMD_ARGS"}, name
        # What is not passed on as it is.
        fixed = {variable: value for variable, value in passed.items() if value is not None}
        assert fixed.keys() == {"REDIS_URL", "OWNPOD_WORKERS_FILE"}
        assert fixed["REDIS_URL"].startswith("${REDIS_URL:-")


def test_the_compose_file_mounts_every_file_that_a_variable_names():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    files = {variable.name for variable in VARIABLES if variable.file}
    files |= {"OWNPOD_PRESETS_FILE"}
    files |= {"OWNPOD_WORKERS_FILE", "OWNPOD_WORKER_CA_BUNDLE", "OWNPOD_TLS_CERTIFICATE"}
    for name in ("api", "front", "dispatcher", "flower"):
        mounted = {re.match(r"\$\{(\w+)", volume)[1] for volume in services[name]["volumes"]}
        assert mounted == files, name


def test_the_readme_table_is_that_of_the_declarations():
    page = (ROOT / "README.md").read_text()
    updated = runpy.run_path(str(ROOT / "docs" / "settings_table.py"))["updated"]
    assert updated(page) == page, "`make fix` writes README's table"
    assert page.count("\n| `OWNPOD_") + page.count("\n| `REDIS_URL`") == len(VARIABLES) - 1


def test_no_command_and_no_service_publishes_a_port_to_the_whole_network():
    pages = [*PAGES, *ROOT.glob("*.yml")]
    pages += [page for page in (ROOT / "examples").rglob("*") if page.suffix in {".md", ".yaml"}]
    published = re.compile(r"(?:\s-p|--publish)[ =\n]+(\S+)")
    found = [
        (page.name, port)
        for page in pages
        for port in published.findall(page.read_text())
        if not port.startswith(("127.0.0.1:", "172.17.0.1:"))
    ]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ports = {name: service.get("ports", []) for name, service in services.items()}
    found += [
        (name, port) for name in ports for port in ports[name] if not port.startswith("127.0.0.1:")
    ]
    assert found == []
    assert [name for name in ports if ports[name]] == ["api", "front", "flower"]


def test_the_readme_names_both_forms_of_compose():
    start = (ROOT / "README.md").read_text().partition("## Without Docker")[0]
    assert "docker compose" in start
    assert "docker-compose`" in start
