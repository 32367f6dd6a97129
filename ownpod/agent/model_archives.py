"""Archives of models: unpacked inside of one directory, with little memory, whatever they have."""

import tarfile
from pathlib import Path
from typing import IO, Any, Literal, cast

from ownpod.agent.model_downloads import PIECE, FetchError, Progress, Room, uncounted
from ownpod.rules.models import MOST_FILES, check_file

LONG = frozenset(
    {
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    }
)
"""Kinds of headers of an archive whose length the archive chooses."""

LONGEST_HEADER = 256 * 1024
"""Bytes of such a header, at most."""

SPARSE = "the archive has a file with holes, which models must not have"

GZIP = b"\x1f\x8b"
"""The first bytes of what gzip has packed."""


def is_archive(name: str) -> bool:
    """Whether a file is unpacked."""
    return name.endswith((".tar", ".tar.gz", ".tgz"))


class _Header(tarfile.TarInfo):
    """A header that takes no more memory than a name needs: the library reads long ones as a whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in LONG and self.size > LONGEST_HEADER:
            raise FetchError(f"the archive has a header of more than {LONGEST_HEADER} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise FetchError(SPARSE)
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_args: Any) -> None:
        raise FetchError(SPARSE)


class _Again:
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: "IO[bytes] | Counted") -> None:
        self._first = first
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        first, self._first = self._first, b""
        return first or self._stream.read(size)


class Counted:
    """A stream whose bytes are counted as they are read: unpacking one that comes over the network is progress."""

    def __init__(self, stream: Any, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        piece: bytes = self._stream.read(size)
        self._progress(len(piece))
        return piece


def unpack(
    stream: IO[bytes] | Counted, into: Path, room: Room, written: Progress = uncounted
) -> None:
    """Unpacks an archive. Its files and folders only, and inside of the directory only.

    Args:
        stream: a tar archive, with gzip or without.
        into: the directory.
        room: is called for each file before it is written.
        written: gets the bytes that are unpacked.

    Raises:
        FetchError: it is no archive, or has what a model must not have.
    """
    here = 0
    try:
        first = stream.read(2)
        again = cast("IO[bytes]", _Again(first, stream))
        # No other kinds of packing: those may need gigabytes of memory.
        mode: Literal["r|gz", "r|"] = "r|gz" if first == GZIP else "r|"
        with tarfile.open(fileobj=again, mode=mode, tarinfo=_Header) as archive:
            for count, member in enumerate(archive):
                # The library keeps all headers otherwise.
                archive.members.clear()  # type: ignore[attr-defined]
                if count > MOST_FILES:
                    raise FetchError(f"the archive has more than {MOST_FILES} files")
                name = member.name.removeprefix("./").rstrip("/")
                if name in {"", "."}:
                    continue
                path = into / check_file(name)
                if member.isdir():
                    path.mkdir(mode=0o755, parents=True, exist_ok=True)
                elif member.isreg():
                    room(member.size, here)
                    here += member.size
                    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                    _extract(archive, member, path, written)
                else:
                    raise FetchError(f"the archive has {name[:80]!r}, which is a link or a device")
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise FetchError(f"the archive cannot be unpacked: {error}") from None


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, written: Progress
) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise FetchError("the archive cannot be unpacked")
    # A second member of the same name must not write through the first one.
    path.unlink(missing_ok=True)
    with source, path.open("xb") as file:
        while piece := source.read(PIECE):
            file.write(piece)
            written(len(piece))
