"""The split of a patient: a function of the patient alone."""

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "val", "test")


def split_patients(patients: Iterable[str], fractions: dict[str, float], seed: int = 0) -> dict[str, str]:
    """Give each patient a split by a hash of (seed, patient).

    Nothing else enters: a scan or a patient more or less in the folder moves nobody, and a larger share of one split
    takes patients of train alone. The price: shares are met on average only, in every class alike, so a class of few
    patients may have none in validation or test.

    Args:
        patients: names, repeats allowed.
        fractions: {"val": share, "test": share} of the patients; the rest trains.
        seed: another seed, another split.

    Returns:
        Patient → "train", "val" or "test".
    """
    test, val = fractions.get("test", 0.0), fractions.get("val", 0.0)
    split_of = {}
    for patient in set(patients):
        key = f"patient split:{seed}:{patient}".encode(errors="surrogateescape")
        position = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
        # From the two ends, so that neither share moves the other.
        split_of[patient] = "test" if position < test else "val" if position >= 1 - val else "train"
    return split_of
