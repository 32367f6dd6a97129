"""The input of a one-off task, as its container gets it. Pure."""

import json
from collections.abc import Mapping

_RESERVED = ("RUNPOD_", "NVIDIA_", "CUDA_", "LD_", "PATH")
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")

MOST_INPUT_BYTES = 96 * 1024
"""Bytes of a task's input that are in its environment, because Linux limits one variable to 128 KiB; a longer one is only in the
file. Also the bytes of all variables ``METADATA_<KEY>`` together, with their names."""

INPUT_FILE = "/ownpod/input.json"
"""The file with the input, in a task's container."""

INPUT_VARIABLE = "OWNPOD_INPUT_FILE"
"""The variable with the path of this file, for tasks that are plain processes, too."""


def variables(job_id: str, text: str) -> dict[str, str]:
    """The variables of a task that come from its job; what its preset has goes before them.

    Args:
        job_id: the job's id.
        text: its input, JSON text. Each plain value of an object is in a variable ``METADATA_<KEY>``.
    """
    found = {"TASK_ID": job_id}
    if len(text.encode(errors="replace")) <= MOST_INPUT_BYTES and "\0" not in text:
        found["OWNPOD_INPUT"] = text
    left = MOST_INPUT_BYTES
    for name, value in _plain_values(text).items():
        variable = f"METADATA_{name}"
        # A program is started with names and values together, and long names count as long values do.
        left -= len(f"{variable}={value}\0".encode())
        if left < 0:
            break
        found[variable] = value
    return found


def _plain_values(text: str) -> dict[str, str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found = dict[str, str]()
    for key, value in values.items() if isinstance(values, Mapping) else ():
        name = key.upper()
        if not name or not _NAME_CHARACTERS.issuperset(name) or name.startswith(_RESERVED):
            continue
        if isinstance(value, dict | list) or value is None:
            continue
        shown = value if isinstance(value, str) else json.dumps(value)
        # The environment can have neither.
        if "\0" not in shown and _is_utf8(shown):
            found.setdefault(name, shown)
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
