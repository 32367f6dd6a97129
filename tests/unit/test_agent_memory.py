"""What the agent keeps in memory, measured in processes of their own."""

import subprocess
import sys

import pytest


def printed(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.slow
def test_an_agent_imports_no_library_that_its_engine_does_not_need():
    # Each takes some megabytes of a process that runs on every host.
    found = printed("import sys, ownpod.tools.agent, ownpod.agent.run; print(*sys.modules)")
    never = {"limits", "requests", "urllib3", "celery", "flask", "cryptography.fernet"}
    assert never & set(found) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_is_free_in_the_heap_is_returned():
    # The block that stays keeps the allocator from returning what is below by itself.
    program = """
from pathlib import Path
from ownpod.processes import return_memory
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
blocks = [bytes(1000) for _ in range(40_000)]
stays = blocks[-1]
del blocks
before = pages()
return_memory()
print(before, pages())
"""
    before, after = map(int, printed(program))
    assert before - after > 5000
