"""CA certificates in HAProxy. A server that is added at run time can name only a file of them that is in its memory."""

import re
from collections.abc import Iterable
from pathlib import Path

from ownpod.front.runtime import Runtime, word

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)
FINE = ("New CA file", "transaction", "Success")
"""Parts of the responses to commands that have succeeded."""


def load(runtime: Runtime, paths: Iterable[str]) -> dict[str, str]:
    """Loads files that HAProxy does not have yet. Returns the problems in words, by file."""
    wanted = set(paths)
    if not wanted:
        return {}
    (listed,) = runtime.ask("show ssl ca-file")
    known = {line.rpartition(" - ")[0] for line in listed.splitlines()}
    problems = {}
    for path in sorted(wanted - known):
        try:
            commands = loading(path, Path(path).read_text())
        except (OSError, ValueError) as error:
            problems[path] = f"its CA file cannot be read: {error}"
            continue
        if runtime.run(commands, *FINE):
            problems[path] = "its CA file has no certificates that HAProxy accepts"
    return problems


def loading(path: str, text: str) -> list[str]:
    """The commands that load a file of CA certificates, one certificate each, because a command has a largest size.

    Raises: ValueError: it has none.
    """
    certificates = _CERTIFICATE.findall(text)
    if not certificates:
        raise ValueError("no certificates")
    name = word(path)
    commands = [f"new ssl ca-file {name}"]
    for position, certificate in enumerate(certificates):
        lines = [line for line in certificate.splitlines() if line.strip()]
        verb = "add" if position else "set"
        # The empty line ends the certificate.
        commands.append(f"{verb} ssl ca-file {name} <<\n" + "\n".join(lines) + "\n")
    return [*commands, f"commit ssl ca-file {name}"]
