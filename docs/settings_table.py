"""Writes README's table of environment variables from their declarations; ``make fix`` runs it."""

import re
from pathlib import Path

from ownpod.settings import VARIABLES

README = Path(__file__).parents[1] / "README.md"
HEAD = "| variable | default | purpose |\n| --- | --- | --- |\n"


def updated(page: str) -> str:
    """The page with its table as the declarations have it."""
    lines = "".join(
        f"| `{v.name}` | {v.unset if v.default_text is None else f'`{v.default_text}`'} | {v.about} |\n"
        for v in VARIABLES
    )
    before, head, after = page.partition(HEAD)
    return before + head + lines + re.sub(r"\A(\|.*\n)*", "", after)


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
