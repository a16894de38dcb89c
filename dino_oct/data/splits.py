"""Patient-wise, class-stratified splits."""

import hashlib
from collections import Counter, defaultdict

import numpy as np

SPLITS = ("train", "val", "test")


def split_patients(
    patients: np.ndarray, labels: np.ndarray, fractions: dict[str, float], seed: int = 0
) -> dict[str, str]:
    """Give each patient one split, so that every split holds about its share of every class's scans.

    A patient with several classes is placed once, with the rarest of them. Within a class, patients are taken in an
    order drawn from (seed, patient) and each goes to the split that lacks most scans. The result depends neither on
    the order of the scans nor on anything but the arguments.

    Args:
        patients: (N,) str, patient of each scan.
        labels: (N,) int, class of each scan; one value for all scans means no stratification.
        fractions: {"val": share, "test": share} of the scans; the rest trains.
        seed: another seed, another split.

    Returns:
        Patient → "train", "val" or "test". Every class has a patient in train; a class of two or more patients also
        has one in test, of three or more also in val, where these shares are not 0.
    """
    names = patients.tolist()
    scans_of: dict[str, Counter] = defaultdict(Counter)
    for patient, label in zip(names, labels.tolist(), strict=True):
        scans_of[patient][label] += 1
    patients_with = Counter(label for scans in scans_of.values() for label in scans)
    drawn = sorted(
        scans_of, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode(errors="surrogateescape")).digest()
    )
    strata: dict[int, list[str]] = defaultdict(list)
    for patient in drawn:
        strata[min(scans_of[patient], key=lambda label: (patients_with[label], label))].append(patient)
    split_of: dict[str, str] = {}
    for members in strata.values():
        split_of.update(_place(members, {p: scans_of[p].total() for p in members}, fractions))
    for label in patients_with:
        holders = [patient for patient in drawn if label in scans_of[patient]]
        # A class whose patients were all placed with a rarer class can miss train altogether.
        if all(split_of[patient] != "train" for patient in holders):
            split_of[holders[0]] = "train"
    return split_of


def _place(members: list[str], scans: dict[str, int], fractions: dict[str, float]) -> dict[str, str]:
    total = sum(scans.values())
    lacking = {"train": total * (1 - sum(fractions.values())), **{s: total * share for s, share in fractions.items()}}
    placed: dict[str, str] = {}
    for patient in members:
        neediest = max(lacking, key=lambda split: lacking[split]) if placed else "train"
        placed[patient] = neediest
        lacking[neediest] -= scans[patient]
    for split in ("test", "val"):
        trained_on = [patient for patient, where in placed.items() if where == "train"]
        if fractions.get(split, 0) > 0 and split not in placed.values() and len(trained_on) > 1:
            # The smallest leaves the class's training share least disturbed.
            placed[min(reversed(trained_on), key=scans.__getitem__)] = split
    return placed
