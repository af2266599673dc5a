"""Encryption at rest: key file and sealed values."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.cipher import Cipher
from storage.faults import CipherFault


def test_what_is_sealed_opens_for_its_record_only(tmp_path: Path) -> None:
    cipher = Cipher.open(tmp_path / "key")
    sealed = cipher.encrypt(b"secret", "accounts/1/functions/a")
    assert b"secret" not in sealed
    assert cipher.decrypt(sealed, "accounts/1/functions/a") == b"secret"
    assert sealed != cipher.encrypt(b"secret", "accounts/1/functions/a")
    with pytest.raises(CipherFault, match="another record"):
        cipher.decrypt(sealed, "accounts/1/functions/b")


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    cipher = Cipher.open(tmp_path / "key")
    sealed = cipher.encrypt(b"secret", "a")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(CipherFault):
            cipher.decrypt(bytes(changed), "a")
    for length in range(len(sealed)):
        with pytest.raises(CipherFault):
            cipher.decrypt(sealed[:length], "a")


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        ciphers = list(threads.map(lambda _: Cipher.open(tmp_path / "key"), range(8)))
    sealed = ciphers[0].encrypt(b"secret", "a")
    assert all(cipher.decrypt(sealed, "a") == b"secret" for cipher in ciphers)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_another_key_is_told_from_damage(tmp_path: Path) -> None:
    sealed = Cipher.open(tmp_path / "one").encrypt(b"secret", "a")
    with pytest.raises(CipherFault, match=r"sealed with another key.*restore the key file"):
        Cipher.open(tmp_path / "two").decrypt(sealed, "a")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    Cipher.open(path)
    path.chmod(mode)
    with pytest.raises(CipherFault, match="chmod 600"):
        Cipher.open(path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_key_of_wrong_length_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(CipherFault, match="restore the key file"):
        Cipher.open(path)


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(CipherFault, match="can't be used"):
        Cipher.open(tmp_path / "missing" / "key")
