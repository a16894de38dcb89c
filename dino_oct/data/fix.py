"""A table of scans without leaks between splits: one person has one name and is in one split."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dino_oct.data.cache import ScanCache
from dino_oct.data.duplicates import exact_groups, near_pairs, people_of
from dino_oct.data.index import ScanIndex
from dino_oct.data.splits import SPLITS
from dino_oct.data.table import table_of
from dino_oct.words import counted


@dataclass(frozen=True)
class Fixed:
    """A corrected table and what was corrected.

    Attributes:
        columns: as ``table.table_of`` gives them.
        left_out: (file, reason) of scans that are not in it.
        changes: one line a kind; empty where nothing was.
    """

    columns: dict[str, list[str]]
    left_out: tuple[tuple[str, str], ...]
    changes: tuple[str, ...]


def fixed_table(index: ScanIndex, cache: ScanCache, beside: Path, progress: bool = False) -> Fixed:
    """Correct what the audit finds to leak between splits.

    People with exact copies or near-duplicates of each other become one patient, under the first of their numbers.
    Where there is a published split, a patient in several of its parts is moved into the part with most of the scans
    (train before val before test where equal). Exact copies with different labels are left out: one label at least is
    wrong.

    Args:
        beside: folder of the table; files below it are named from there, others by their absolute path.
    """
    people = people_of(index)
    groups = exact_groups(cache)
    joined = _joined(people, [(group[0], other) for group in groups for other in group[1:]])
    while True:  # joined people leave room for further neighbours of others
        again = _joined(joined, [(i, j) for i, j, _ in near_pairs(cache, joined, progress)])
        if np.array_equal(again, joined):
            break
        joined = again
    columns, changes = table_of(index), []
    patients, names = _named(index, people, joined)
    if names:
        members = len(set(people[np.isin(joined, list(names))].tolist()))
        changes.append(
            f"{counted(members, 'patient')} joined into {len(names):,}: exact copies or near-duplicates of each other"
        )
    by_volume = (patients != "") & (np.array(columns["patient"]) == "") & ~np.isin(joined, list(names))
    if by_volume.any():
        changes.append(f"{counted(by_volume.sum(), 'scan')} without a patient took their volume as one")
    columns["patient"] = patients.tolist()

    reasons = _contradictions(index, groups)
    splits = np.array(columns["split"], dtype="<U5")
    keep = np.array([i not in reasons for i in range(len(index))], dtype=bool)
    moved = _in_one_split(patients, splits, keep)
    if (is_moved := (moved != splits) & keep).any():
        to = Counter(moved[is_moved].tolist())
        parts = ", ".join(f"{to[part]:,} to {part}" for part in SPLITS if to[part])
        count = len(set(patients[is_moved].tolist()))
        moved_scans = f"{counted(is_moved.sum(), 'scan')} of {counted(count, 'patient')}"
        changes.append(f"{moved_scans} moved to where most of theirs are: {parts}")
    columns["split"] = moved.tolist()

    columns["file"] = [_from(beside, index.path(i)) for i in range(len(index))]
    if reasons:
        changes.append(f"{counted(len(reasons), 'scan')} left out: exact copies with different labels")
    kept = {name: [value for value, is_kept in zip(values, keep, strict=True) if is_kept]
            for name, values in columns.items()}  # fmt: skip
    return Fixed(kept, tuple((index.files[i], reason) for i, reason in sorted(reasons.items())), tuple(changes))


def _joined(people: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """(N,) str: for each scan the first, in order of name, of all the people that pairs of scans join to its own."""
    names, codes = np.unique(people, return_inverse=True)
    if not pairs:
        return people
    links = codes[np.array(pairs)]  # (M, 2)
    graph = coo_array((np.ones(len(links)), links.T), shape=(len(names),) * 2)
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return names[first][group][codes]


def _named(index: ScanIndex, people: np.ndarray, joined: np.ndarray) -> tuple[np.ndarray, set[str]]:
    """The patient of each scan, "" where not known, and which of ``joined`` stand for several people."""
    known = np.array(table_of(index)["patient"])
    members: dict[str, set[str]] = {}
    for one, all_of_them in zip(people.tolist(), joined.tolist(), strict=True):
        members.setdefault(all_of_them, set()).add(one)
    several = {name for name, of_name in members.items() if len(of_name) > 1}
    is_volume = (known == "") & (people != index.patients)
    patients = np.where(is_volume, people, known).astype(object)
    taken, count = set(known.tolist()), 0
    for name in sorted(several):
        rows = joined == name
        numbers = sorted({*known[rows].tolist()} - {""}, key=lambda text: (not text.isdecimal(), len(text), text))
        if not numbers:
            count += 1
            while f"joined {count}" in taken:
                count += 1
            numbers = [f"joined {count}"]
        patients[rows] = numbers[0]
    return patients.astype(np.str_), several


def _contradictions(index: ScanIndex, groups: list[list[int]]) -> dict[int, str]:
    """Position → reason of labelled scans that equal others of another label."""
    reasons, is_labelled, several = {}, index.is_labelled, index.multilabel_matrix()
    for group in groups:
        labelled = [i for i in group if is_labelled[i]]
        first: dict[tuple[int, bytes], int] = {}  # of those labelled alike
        for i in labelled:
            first.setdefault((int(index.labels[i]), several[i].tobytes()), i)
        for i in labelled if len(first) > 1 else []:
            for j in first.values():
                if names := index.contradiction(i, j):
                    reasons[i] = f"{names[0]}, but equal to {index.files[j]}, which is {names[1]}"
                    break
    return reasons


def _in_one_split(patients: np.ndarray, splits: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Splits with each known patient's scans in the one that most of them are in; "" stays."""
    used = keep & (splits != "") & (patients != "")
    counts: dict[str, Counter[str]] = {}
    for patient, split in zip(patients[used].tolist(), splits[used].tolist(), strict=True):
        counts.setdefault(patient, Counter())[split] += 1
    most = {patient: max(SPLITS, key=lambda part, n=of_part: n[part]) for patient, of_part in counts.items()}
    moved = splits.copy()
    for i in np.flatnonzero(used).tolist():
        moved[i] = most[patients[i]]
    return moved


def _from(folder: Path, file: Path) -> str:
    """A file's path below a folder; its absolute path where it is not there."""
    # Links stay as they are named: what they lead to may have a name that says nothing.
    folder, file = (Path(os.path.abspath(path)) for path in (folder, file))
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
