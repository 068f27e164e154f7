"""The lab's salt: what turns names and identifiers into keys that say nothing to anybody without it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from medpclip.errors import MedpclipError

ENVIRONMENT = "MEDPCLIP_SALT"
_MIN_BYTES = 16  # a shorter secret can be found by trying


class Salt:
    """A secret, and the keyed hashes made with it (HMAC-SHA256, RFC 2104)."""

    def __init__(self, secret: bytes, where: str) -> None:
        if len(secret) < _MIN_BYTES:
            raise MedpclipError(
                f"{where}: the salt has {len(secret)} bytes, at least {_MIN_BYTES} are needed; "
                "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        self._secret = secret

    @classmethod
    def load(cls, file: Path | None = None) -> Salt:
        """The salt from `file`, else from the environment variable MEDPCLIP_SALT, else from the user's own file.

        The user's own file (~/.config/medpclip/salt) is made at first use; a `file` that is named must exist. The text
        is taken as hexadecimal where it is, else as it stands.

        Raises:
            MedpclipError: too short, unreadable, or a file that others may read.
        """
        if file is None and (text := os.environ.get(ENVIRONMENT)):
            return cls(_decode(text), f"environment variable {ENVIRONMENT}")
        path = file if file is not None else Path.home() / ".config" / "medpclip" / "salt"
        if file is None and not path.exists():
            _make(path)
        return cls(_decode(_read_private(path)), str(path))

    @property
    def fingerprint(self) -> str:
        """Tells two salts apart, and nothing else: corpora of different fingerprints can't be compared by group."""
        return self.hash("fingerprint", "")[:16]

    def hash(self, kind: str, text: str) -> str:
        """128 bits of the keyed hash as 32 hexadecimal digits; the same text of another kind gives another hash."""
        message = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, message, hashlib.sha256).digest()[:16].hex()


def _decode(text: str) -> bytes:
    text = text.strip()
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text.encode()


def _read_private(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise MedpclipError(f"{path}: others may read the salt (mode {mode:04o}); run: chmod 600 {path}")
            return stream.read()
    except FileNotFoundError:
        raise MedpclipError(f"{path}: no such salt file; check --salt-file, or leave it out to have one made") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MedpclipError(f"{path}: unreadable salt ({error}); give a text file with --salt-file") from None


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written beside and linked: the jobs of an array start at once, and none may read another's half-written salt.
        beside = path.with_name(f".salt.{os.getpid()}.{secrets.token_hex(4)}")
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):  # another process was quicker
            os.link(beside, path)
        beside.unlink()
    except OSError as error:
        raise MedpclipError(f"{path}: can't make a salt there ({error.strerror}); set {ENVIRONMENT}") from None
