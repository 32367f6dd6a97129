"""``python -m ownpod`` is the ``ownpod`` command."""

from ownpod.tools.cli import main

main(prog_name="ownpod")
