"""The file with the keys of the secrets in Redis, and the encryption: the only module that knows ``cryptography``.

The file has one key a line, the newest first. It has more than one only while a rotation is in progress, or after one
that was interrupted, because a secret may then be encrypted with any of them.
"""

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ownpod.errors import ConfigurationError, StartError

LARGEST_FILE = 65_536
"""Bytes of the largest key file that is read."""

_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")
"""A Fernet key: 32 bytes in base64 for URLs."""

_TOKEN_TIME = slice(1, 9)
"""Place of the time in a Fernet token: seconds since the epoch, after the version's byte."""


class KeyFileProblem(ConfigurationError):
    """The file with the keys of the secrets cannot be used."""


class KeyFileMissing(KeyFileProblem):
    """There is no file with the keys of the secrets."""


class WrongKey(StartError):
    """A secret was encrypted with another key than those of this host, or its record was changed."""


class Keys:
    """Encrypts and decrypts with the keys of a file.

    A secret's name is encrypted with its value, so a record that was copied to another name cannot be read.

    Args:
        texts: the keys, the newest first; at least one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        # Imported here, because an agent without secrets would otherwise need some MB more.
        from cryptography.fernet import Fernet, MultiFernet

        self.texts = tuple(texts)
        self._fernet = MultiFernet([Fernet(text) for text in texts])

    def encrypted(self, name: str, value: str) -> str:
        return self._fernet.encrypt(f"{name}={value}".encode()).decode()

    def decrypted(self, name: str, token: str) -> str:
        """A secret's value. Raises: WrongKey."""
        from cryptography.fernet import InvalidToken

        try:
            text = self._fernet.decrypt(token.encode()).decode()
        except (InvalidToken, UnicodeError):
            raise WrongKey from None
        found, given, value = text.partition("=")
        if not given or found != name:
            raise WrongKey
        return value

    def again(self, token: str) -> str:
        """A token encrypted with the newest key, with the time of the old one. Raises: WrongKey."""
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.rotate(token.encode()).decode()
        except (InvalidToken, UnicodeError):
            raise WrongKey from None


def set_ms(token: str) -> int | None:
    """When a secret was set, in ms since the epoch, by the clock of the host where it was; None: the token is none."""
    import base64
    import binascii

    try:
        head = base64.urlsafe_b64decode(token[:12])
    except (ValueError, binascii.Error):
        return None
    return int.from_bytes(head[_TOKEN_TIME], "big") * 1000 if len(head) == 9 else None


class KeyFile:
    """The file with the keys.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        # Absolute, because messages name it on hosts where other processes run in other directories.
        self.path = path.absolute()

    def read(self) -> Keys:
        """The keys.

        Raises:
            KeyFileMissing: there is no file.
            KeyFileProblem: other users can read it, or it is no key file.
        """
        text = self._text()
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        if not lines or not all(map(_KEY.fullmatch, lines)):
            raise KeyFileProblem(
                f"{self.path} is no file with keys of secrets: restore it from a backup"
            )
        return Keys(lines)

    def _text(self) -> str:
        try:
            # A pipe must not block the caller.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise KeyFileMissing(f"the key file {self.path} is not there") from None
        except OSError as error:
            raise KeyFileProblem(
                f"the key file {self.path} cannot be read: {error.strerror}"
            ) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileProblem(f"the key file {self.path} is no regular file")
            if stat.S_IMODE(status.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
                raise KeyFileProblem(
                    f"other users may read the key file {self.path}: run chmod 600 {self.path}"
                )
            return os.read(descriptor, LARGEST_FILE).decode("ascii")
        except (OSError, UnicodeError):
            raise KeyFileProblem(f"the key file {self.path} cannot be read") from None
        finally:
            os.close(descriptor)

    def make(self) -> Keys:
        """The keys of a new file. The caller has :meth:`locked`. Raises: KeyFileProblem."""
        from cryptography.fernet import Fernet

        return self._write([Fernet.generate_key().decode()])

    def add(self, keys: Keys) -> Keys:
        """Adds a new key as the first one. The caller has :meth:`locked`. Raises: KeyFileProblem."""
        from cryptography.fernet import Fernet

        return self._write([Fernet.generate_key().decode(), *keys.texts])

    def keep_newest(self, keys: Keys) -> Keys:
        """Removes all keys but the first one. The caller has :meth:`locked`. Raises: KeyFileProblem."""
        return self._write(keys.texts[:1])

    def _write(self, texts: Iterable[str]) -> Keys:
        """Replaces the file, whole or not at all, also where the host loses its power."""
        texts = list(texts)
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write("".join(f"{text}\n" for text in texts))
                file.flush()
                os.fsync(descriptor)
            new.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise KeyFileProblem(
                f"the key file {self.path} cannot be written: {error.strerror}"
            ) from None
        return Keys(texts)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Around a change of the file or of the secrets: one process of this host at a time. Blocks. Raises: KeyFileProblem."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(
                self.path.with_name(f"{self.path.name}.lock"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
        except OSError as error:
            raise KeyFileProblem(
                f"no key file can be made in {self.path.parent}: {error.strerror}"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
