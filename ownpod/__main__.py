"""``python -m ownpod`` is the ``ownpod`` command."""

from ownpod.cli import main

main(prog_name="ownpod")
