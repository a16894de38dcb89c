"""Pseudonyms: stable under one key, unlike under another, and the key is its owner's alone."""

import hashlib
import multiprocessing
import re
import stat

import pytest

from dino_oct.data.identity import identity_key, pseudonym
from dino_oct.errors import InputError


def test_a_pseudonym_is_stable_and_depends_on_identity_and_key():
    key, other = bytes(32), bytes(31) + b"\1"
    assert re.fullmatch("[0-9a-f]{12}", pseudonym("Mustermann", key))
    assert pseudonym("Mustermann", key) == pseudonym("Mustermann", key)
    assert len({pseudonym("Mustermann", key), pseudonym("Mustermann ", key), pseudonym("Mustermann", other)}) == 3
    assert not hashlib.sha256(b"Mustermann").hexdigest().startswith(pseudonym("Mustermann", key))


def test_a_pseudonym_is_the_published_hmac():
    """RFC 4231, test case 2: HMAC-SHA256 of a text under the key "Jefe"."""
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60"


def test_the_key_is_drawn_once_and_closed_to_others(tmp_path):
    folder = tmp_path / "cache"
    key = identity_key(folder)
    assert len(key) == 32
    assert identity_key(folder) == key
    assert identity_key(tmp_path / "other") != key
    assert [file.name for file in folder.iterdir()] == ["identity.key"]
    assert stat.S_IMODE((folder / "identity.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_processes_that_ask_at_once_get_one_key(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        keys = pool.map(identity_key, [tmp_path / "cache"] * 8)
    assert len(set(keys)) == 1


def test_what_is_no_key_is_not_replaced(tmp_path):
    (tmp_path / "identity.key").write_bytes(b"short")
    with pytest.raises(InputError, match=r"identity.key: damaged: 5 bytes, expected 32"):
        identity_key(tmp_path)
    assert (tmp_path / "identity.key").read_bytes() == b"short"
    (tmp_path / "identity.key").unlink()
    (tmp_path / "identity.key").mkdir()
    with pytest.raises(InputError, match="a folder where a file is expected"):
        identity_key(tmp_path)
