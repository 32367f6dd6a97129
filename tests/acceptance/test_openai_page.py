"""The programs of docs/howto/openai.md, from its own text."""

import re
import sys

import pytest
from helpers import ROOT, run_command
from openai_workers import MODEL, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (ROOT / "docs" / "howto" / "openai.md").read_text()


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("llm"), ["vllm"]) as (found, _start):
        yield found


def test_the_program_in_python_prints_the_answer(ownpod):
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    url = "http://localhost:8000/v2/chat/openai/v1"
    assert url in program
    program = program.replace(url, ownpod.url("vllm-pull"))
    done = run_command(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello!"


def test_the_command_with_curl_prints_the_answer(ownpod):
    (command,) = re.findall(r'^    (curl -s "\$BASE.*\n.*)$', PAGE, re.MULTILINE)
    command = command.replace("Qwen/Qwen3-8B", MODEL)
    done = run_command("sh", "-euc", command, BASE=ownpod.url("vllm-pull"), KEY="any")
    assert done.returncode == 0, done.stderr
    assert '"content": "Hello!"' in done.stdout.replace('":"', '": "'), done.stdout
