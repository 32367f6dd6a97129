"""``ownpod env`` and ``ownpod rewrite``: RunPod's clients, and scripts with RunPod's URLs, directed to OwnPod."""

import difflib
import shlex
from pathlib import Path

import click
from marshmallow import ValidationError

from ownpod.errors import BadRequest
from ownpod.rules import moving
from ownpod.validation import check_http_url

url_option = click.option(
    "--url",
    envvar="OWNPOD_URL",
    default="http://localhost:8000",
    show_default=True,
    help="OwnPod's URL without a path, as the clients reach it; also OWNPOD_URL.",
)


@click.command()
@url_option
@click.option(
    "--form",
    type=click.Choice(["shell", "file"]),
    default="shell",
    show_default=True,
    help="The syntax: lines with export for a shell, or NAME=VALUE for a file of variables.",
)
def env(url: str, form: str) -> None:
    """Print the variables that direct RunPod's clients to OwnPod.

    They are for runpod-python, flash, the MCP server, runpodctl and the Terraform provider. The key stays in
    RUNPOD_API_KEY: give it one of OwnPod's admin keys.

    \b
    Examples:
      eval "$(ownpod env --url http://10.0.0.5:8000)"
      ownpod env --form file >> "$GITHUB_ENV"
    """  # noqa: D301 - click's mark for lines that it must not wrap
    for name, value in moving.variables(_checked(url)).items():
        click.echo(f"export {name}={shlex.quote(value)}" if form == "shell" else f"{name}={value}")


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
@url_option
@click.option("--write", is_flag=True, help="Change the files, instead of printing the changes.")
def rewrite(files: tuple[Path, ...], url: str, *, write: bool) -> None:
    """Put OwnPod's URL in place of RunPod's into scripts and workflow files.

    Without --write it prints what it would change, and changes nothing. URLs that depend on an endpoint or a pod
    stay, and are named.

    \b
    Examples:
      ownpod rewrite .github/workflows/deploy.yaml --url http://10.0.0.5:8000
      ownpod rewrite deploy.sh --url '${OWNPOD_URL}' --write
    """  # noqa: D301 - click's mark for lines that it must not wrap
    root = url if moving.VARIABLE.fullmatch(url) else _checked(url)
    texts = {file: _read(file) for file in files}
    for file, text in texts.items():
        made = moving.rewritten(text, root)
        if write and made.count:
            _write(file, made.text)
            click.echo(f"{file}: {made.count} URLs")
        elif made.count:
            click.echo("".join(_difference(file, text, made.text)), nl=False)
        else:
            click.echo(f"{file}: no URL of RunPod's APIs", err=True)
        for line, found in made.left:
            click.echo(f"{file}:{line}: stays: {found}", err=True)


def _difference(file: Path, old: str, new: str) -> list[str]:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), str(file), str(file), n=0
    )
    # The last line of a file may have no end.
    return [line if line.endswith("\n") else f"{line}\n" for line in lines]


def _checked(url: str) -> str:
    try:
        check_http_url(url)
    except ValidationError as error:
        raise BadRequest(f"--url: {error.messages[0]}") from None
    return url


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{file}: cannot be read: it is not UTF-8") from None


def _write(file: Path, text: str) -> None:
    try:
        file.write_bytes(text.encode())
    except OSError as error:
        raise BadRequest(f"{file}: cannot be written: {error.strerror}") from None
