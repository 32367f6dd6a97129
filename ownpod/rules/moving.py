"""From RunPod to OwnPod: the variables that direct RunPod's clients to another server, and the URLs in scripts. Pure."""

import re
from dataclasses import dataclass

CLIENTS: dict[str, dict[str, str]] = {
    "runpod-python, flash, Terraform 2": {"RUNPOD_API_BASE_URL": ""},
    "runpod-python, flash": {"RUNPOD_ENDPOINT_BASE_URL": "/v2"},
    "flash, MCP server": {"RUNPOD_REST_API_URL": "/v1"},
    "flash": {"RUNPOD_HAPI_URL": "/hapi", "RUNPOD_CONSOLE_URL": ""},
    "MCP server": {
        "RUNPOD_REST_V2_API_URL": "/v2",
        "RUNPOD_SERVERLESS_API_URL": "/v2",
        "RUNPOD_PUBLIC_GRAPHQL_URL": "/graphql",
        "RUNPOD_AUTHED_GRAPHQL_URL": "/graphql",
    },
    "runpodctl": {
        "RUNPOD_API_URL": "/v1",
        "RUNPOD_INVOKE_URL": "/v2",
        "RUNPOD_REST_V2_URL": "/v2",
    },
    "runpodctl, Terraform": {"RUNPOD_GRAPHQL_URL": "/graphql"},
    "rp": {
        "RP_REST_BASE": "/v2",
        "RP_API_BASE": "/v2",
        "RP_GRAPHQL_URL": "/graphql",
    },
}
"""Variables with the path that OwnPod's URL gets in each, by the clients that read them (MANAGEMENT.md, 3.1)."""

_END = r"(?![A-Za-z0-9.:-])"
"""What follows a host in a URL, so that no longer name of a host matches."""

_HOSTS = re.compile(rf"https?://(?:rest\.runpod\.io|api\.runpod\.io|api\.runpod\.ai){_END}")
"""RunPod's hosts of REST v1; of REST v2 and GraphQL; of jobs. Their paths are OwnPod's, too."""

_OTHERS = re.compile(
    r"https?://[^\s\"'/]+\.(?:api\.runpod\.(?:ai|io)|proxy\.runpod\.net)\b"
    r"|https?://(?:hapi|console)\.runpod\.(?:io|net|ai)\b"
)
"""URLs with other hosts of RunPod, which depend on the endpoint or the pod."""

VARIABLE = re.compile(r"\$\w+|\$\{\w+\}|\$\{\{ ?[\w.]+ ?\}\}")
"""A variable of a shell or of a GitHub workflow, which has OwnPod's URL when the script runs."""


@dataclass(frozen=True)
class Rewritten:
    """A script whose URLs lead to OwnPod.

    Attributes:
        text: the script.
        count: URLs that were changed.
        left: other URLs of RunPod that stay, each with the number of its line.
    """

    text: str
    count: int = 0
    left: tuple[tuple[int, str], ...] = ()


def variables(root: str) -> dict[str, str]:
    """The variables for all clients, sorted by name. ``root``: OwnPod's URL without a path."""
    base = root.rstrip("/")
    found = {name: base + path for names in CLIENTS.values() for name, path in names.items()}
    return dict(sorted(found.items()))


def rewritten(text: str, root: str) -> Rewritten:
    """A script with OwnPod's URL in place of RunPod's.

    Args:
        text: the script.
        root: OwnPod's URL without a path, or a variable of the script that has it.
    """
    base = root.rstrip("/")
    made, count = _HOSTS.subn(lambda _match: base, text)
    left = [
        (number, match[0])
        for number, line in enumerate(made.splitlines(), 1)
        for match in _OTHERS.finditer(line)
    ]
    return Rewritten(made, count, tuple(left))
