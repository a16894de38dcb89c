"""Random streams, each keyed by its purpose: two that share a user's seed share nothing else."""

import hashlib

import numpy as np


def seed_of(purpose: str, *key: int) -> int:
    """A seed of 64 bits from what the numbers are for and what they depend on.

    Args:
        purpose: of the stream, in words; no two streams have the same.
        key: the user's seed first, then epoch, step or whatever else tells the stream's parts apart.
    """
    text = "/".join([purpose, *(str(int(number)) for number in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def short_seed_of(purpose: str, *key: int) -> int:
    """``seed_of`` in 32 bits, for libraries that take no more."""
    return seed_of(purpose, *key) % 2**32


def generator(purpose: str, *key: int) -> np.random.Generator:
    """A numpy generator of a stream; see ``seed_of``."""
    return np.random.Generator(np.random.Philox(key=seed_of(purpose, *key)))
