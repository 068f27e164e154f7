"""The salt: made once, private, and never in what it makes."""

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from medpclip.data.building.privacy import ENVIRONMENT, Salt
from medpclip.errors import MedpclipError

HEX = "00112233445566778899aabbccddeeff"


@pytest.fixture(autouse=True)
def _no_salt_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_hash_is_hmac_sha256() -> None:
    secret = bytes.fromhex(HEX)
    expected = hmac.new(secret, b"group\0patient 7", hashlib.sha256).hexdigest()[:32]
    assert Salt(secret, "here").hash("group", "patient 7") == expected
    assert Salt(secret, "here").hash("sample", "patient 7") != expected
    assert Salt(secret[::-1], "here").hash("group", "patient 7") != expected


def test_made_at_first_use_private_and_kept(tmp_path: Path) -> None:
    first = Salt.load()
    path = tmp_path / ".config" / "medpclip" / "salt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Salt.load().fingerprint == first.fingerprint
    assert path.read_text().strip() not in (first.fingerprint, first.hash("group", ""))


def test_environment_may_be_hex_or_text_and_a_named_file_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = private(tmp_path / "salt", "another secret, long enough")
    monkeypatch.setenv(ENVIRONMENT, HEX)
    assert Salt.load().fingerprint == Salt(bytes.fromhex(HEX), "here").fingerprint
    monkeypatch.setenv(ENVIRONMENT, "no hex but long enough")
    assert Salt.load().fingerprint == Salt(b"no hex but long enough", "here").fingerprint
    assert Salt.load(file).fingerprint == Salt(b"another secret, long enough", "here").fingerprint
    assert not (tmp_path / ".config").exists()


def test_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    assert Salt.load(private(tmp_path / "a", HEX + "\n")).fingerprint == Salt(bytes.fromhex(HEX), "here").fingerprint
    assert not (tmp_path / ".config").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_file_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "salt", HEX)
    path.chmod(mode)
    with pytest.raises(MedpclipError, match=f"chmod 600 {path}"):
        Salt.load(path)


def test_missing_or_short_salt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="no such salt file"):
        Salt.load(tmp_path / "none")
    monkeypatch.setenv(ENVIRONMENT, "short")
    with pytest.raises(MedpclipError, match="has 5 bytes, at least 16"):
        Salt.load()
