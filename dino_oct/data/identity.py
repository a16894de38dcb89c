"""Pseudonyms of patients: the same for the same header, and of no use without the key."""

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from dino_oct.errors import InputError
from dino_oct.files import check_regular, naming, private_folder

_FILE, _BYTES = "identity.key", 32


def pseudonym(identity: str, key: bytes, digits: int = 12) -> str:
    """Hexadecimal digits of an identity: HMAC-SHA256 under a key.

    A plain hash would not do: names and birth dates are few enough to be tried one by one.
    """
    return hmac.new(key, identity.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:digits]


def identity_key(cache_root: str | Path) -> bytes:
    """The secret of this cache folder, drawn once, readable by its owner only.

    Without it pseudonyms cannot be made again: keep it with the originals, and do not pass it on with the scans.

    Raises:
        InputError: what stands in its place is no key.
        OSError: it cannot be read or written.
    """
    folder = private_folder(Path(cache_root))
    file = folder / _FILE
    with naming(file):
        if not os.path.lexists(file):
            _draw(file)
        key = check_regular(file).read_bytes()
    if len(key) != _BYTES:
        raise InputError(
            f"{file}: damaged: {len(key)} bytes, expected {_BYTES}; put a copy back, or remove it for new pseudonyms"
        )
    return key


def _draw(file: Path) -> None:
    """Write a new key, whole or not at all; another process may be first."""
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(secrets.token_bytes(_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(new, file)  # unlike a rename, it replaces no key that another process drew
    finally:
        new.unlink(missing_ok=True)
