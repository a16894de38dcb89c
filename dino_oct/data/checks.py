"""What ``dino_oct/data/audit.py`` finds in a folder of scans, as numbers."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.borders import find_borders
from dino_oct.data.brightness import are_inverted
from dino_oct.data.cache import ScanCache, open_cache
from dino_oct.data.duplicates import exact_groups, near_pairs, people_of
from dino_oct.data.index import UNKNOWN, UNLABELLED, DatasetConfig, ScanIndex, index_scans, shared_patients
from dino_oct.data.shortcut import as_numbers, check_shortcuts, shortcut_features
from dino_oct.data.splits import SPLITS

SPREAD = ("least", "median", "most")
_PAIRED = 50  # scans of a group of equal ones up to which every pair is listed
_LOOKED_AT = 2000  # cached scans searched for borders that neutralising left


def audit(folder: str | Path, config: DatasetConfig | None = None, progress: bool = True) -> dict[str, Any]:
    """Check a folder of scans, or those of a table.

    Returns:
        As ``audit_scans``.

    Raises:
        InputError: missing or empty folder, or none of its images can be read.
    """
    config = config or DatasetConfig()
    index, cache = open_cache(index_scans(folder, config), config, progress)
    return {**audit_scans(index, cache, config, progress), "folder": str(folder)}


def audit_scans(index: ScanIndex, cache: ScanCache, config: DatasetConfig, progress: bool = True) -> dict[str, Any]:
    """Check scans that are indexed and decoded.

    Returns:
        JSON-ready findings: ``folder``, ``scans``, ``left_out``, ``notes``, ``mislabelled``, ``classes``,
        ``multilabels`` (scans with and without each label, where a scan may have several), ``targets``, ``splits``
        (published and used), ``units`` (patients, eyes, visits, volumes and devices, where known), ``devices`` (of each
        class, where several are known), ``sizes``, ``borders``, ``inverted``, ``patients``, ``eyes`` (labels that
        differ within one), ``duplicates`` and ``shortcut``.
    """
    splits = {"used": index.splits}
    if np.any(index.folder_splits != ""):
        splits = {"published": index.folder_splits, **splits}
    return {
        "folder": str(index.root),
        "scans": {"found": len(index) + len(cache.skipped), "usable": len(index), "summary": cache.summary()},
        "left_out": [{"file": file, "reason": reason} for file, reason in (*index.left_out, *cache.skipped)],
        "notes": list(index.notes),
        "mislabelled": list(index.mislabelled),
        "classes": list(index.class_names),
        "multilabels": _multilabels(index),
        "targets": _targets(index),
        "splits": {name: _count(index, split) for name, split in splits.items()},
        "units": _units(index),
        "devices": _devices(index),
        "sizes": _sizes(index, cache),
        "borders": _borders(index, cache, config),
        "inverted": [index.files[i] for i in np.flatnonzero(are_inverted(cache.brightness))],
        "patients": _patients(index, splits),
        "eyes": _differing_labels(index),
        "duplicates": _duplicates(index, cache, splits, progress),
        "shortcut": _shortcut(index, cache),
    }


def _class_rows(index: ScanIndex) -> dict[str, np.ndarray]:
    """Class or label → mask of its scans; those of several labels overlap. Scans without come last, "unlabelled"."""
    rows = {name: index.labels == i for i, name in enumerate(index.class_names)}
    rows |= {name: values == 1 for name, values in index.multilabels.items()}
    unlabelled = ~index.is_labelled
    return {**rows, "unlabelled": unlabelled} if unlabelled.any() else rows


def _count(index: ScanIndex, split: np.ndarray) -> dict[str, dict[str, dict[str, int]]]:
    def tally(mask: np.ndarray) -> dict[str, int]:
        return {"scans": int(mask.sum()), "patients": len(set(index.patients[mask].tolist()))}

    rows = {**_class_rows(index), "all": np.ones(len(index), dtype=bool)}
    return {
        name: {**{part: tally(mask & (split == part)) for part in SPLITS}, "all": tally(mask)}
        for name, mask in rows.items()
    }


def _multilabels(index: ScanIndex) -> dict[str, dict[str, dict[str, int]]]:
    """Label → scans and patients with it, without it, and where it is not known."""
    return {
        name: {
            kind: {"scans": int(mask.sum()), "patients": len(set(index.patients[mask].tolist()))}
            for kind, value in (("with", 1), ("without", 0), ("unknown", UNKNOWN))
            for mask in [values == value]
        }
        for name, values in index.multilabels.items()
    }


def _targets(index: ScanIndex) -> dict[str, dict[str, float | int | None]]:
    """Target → scans and patients where it is known, and its lowest, median and highest value."""
    rows = {}
    for name, values in index.targets.items():
        known = np.isfinite(values)
        spread = np.quantile(values[known], (0, 0.5, 1)).tolist() if known.any() else [None] * 3
        rows[name] = {
            "scans": int(known.sum()),
            "patients": len(set(index.patients[known].tolist())),
            **dict(zip(SPREAD, spread, strict=True)),
        }
    return rows


def _units(index: ScanIndex) -> dict[str, dict[str, Any]]:
    """Patients, and eyes, visits, volumes and devices where any is known: how many, their scans, how many per split."""
    units = {"patients": index.patients}
    for fact in ("eye", "visit", "volume", "device"):
        if fact in index.facts:
            units[f"{fact}s"] = index.fact(fact)
    counts = {}
    for name, values in units.items():
        known = np.flatnonzero(values != "")
        # Names of eyes, visits and volumes are those of a patient; a device serves many.
        keys = [(values[i], "" if name == "devices" else index.patients[i]) for i in known]
        scans = np.array(list(Counter(keys).values()))
        counts[name] = {
            "count": len(scans),
            "of_scans": len(known),
            "scans_each": {"least": int(scans.min()), "median": float(np.median(scans)), "most": int(scans.max())},
            "splits": {
                part: len({key for key, split in zip(keys, index.splits[known], strict=True) if split == part})
                for part in SPLITS
            },
        }
    return counts


def _devices(index: ScanIndex) -> dict[str, dict[str, dict[str, int]]]:
    """Class → device → scans and patients; empty where fewer than two are known. "" stands for unknown ones."""
    devices = index.fact("device")
    names = [name for name, _ in Counter(devices.tolist()).most_common()]
    if len({*names} - {""}) < 2:
        return {}
    return {
        label: {
            name: {"scans": int(rows.sum()), "patients": len(set(index.patients[rows].tolist()))}
            for name in names
            for rows in [mask & (devices == name)]
        }
        for label, mask in _class_rows(index).items()
    }


def _differing_labels(index: ScanIndex) -> dict[str, list[dict[str, Any]]]:
    """Eyes whose scans have several labels: at one visit, or only over visits (or where visits are not known)."""
    eyes, visits = index.fact("eye"), index.fact("visit")
    of_visit: dict[tuple[str, str, str], list[int]] = {}
    for i in np.flatnonzero((eyes != "") & (index.labels != UNLABELLED)).tolist():
        of_visit.setdefault((index.patients[i], eyes[i], visits[i]), []).append(i)
    of_eye: dict[tuple[str, str], list[int]] = {}
    for (patient, eye, _), scans in of_visit.items():
        of_eye.setdefault((patient, eye), []).extend(scans)

    def entry(scans: list[int], **where: str) -> dict[str, Any]:
        labels = [index.class_names[index.labels[i]] for i in scans]
        files = {label: index.files[i] for label, i in reversed(list(zip(labels, scans, strict=True)))}
        return {**where, "labels": dict(Counter(labels).most_common()), "files": files}

    def differ(scans: list[int]) -> bool:
        return len(set(index.labels[scans].tolist())) > 1

    at_one = {key: scans for key, scans in of_visit.items() if key[2] and differ(scans)}
    contradicted = {key[:2] for key in at_one}
    return {
        "at_one_visit": [entry(scans, patient=p, eye=e, visit=v) for (p, e, v), scans in at_one.items()],
        "over_visits": [
            entry(scans, patient=patient, eye=eye)
            for (patient, eye), scans in of_eye.items()
            if differ(scans) and (patient, eye) not in contradicted
        ],
    }


def _sizes(index: ScanIndex, cache: ScanCache) -> dict[str, dict[str, int]]:
    """Class → "width x height" → scans, the commonest size first."""
    names = np.array([f"{width} x {height}" for height, width in cache.original_sizes.tolist()])
    return {name: dict(Counter(names[mask].tolist()).most_common()) for name, mask in _class_rows(index).items()}


def _borders(index: ScanIndex, cache: ScanCache, config: DatasetConfig) -> dict[str, Any]:
    area = np.asarray(cache.border[:, 0])
    per_class = {
        name: {"with_border": int((area[mask] > 0).sum()), "scans": int(mask.sum()), "mean_area": _mean(area[mask])}
        for name, mask in _class_rows(index).items()
    }
    numbers: dict[str, Any] = {"per_class": per_class, "neutralised": config.neutralise_borders}
    if config.neutralise_borders:
        looked_at = np.unique(np.linspace(0, len(cache) - 1, min(_LOOKED_AT, len(cache))).astype(int)).tolist()
        numbers["looked_at_after"] = len(looked_at)
        numbers["left_after"] = sum(bool(find_borders(cache[i]).any()) for i in looked_at)
    return numbers


def _patients(index: ScanIndex, splits: dict[str, np.ndarray]) -> dict[str, Any]:
    scans = np.array(list(Counter(index.patients.tolist()).values()))
    labelled = index.labels != UNLABELLED
    in_classes = shared_patients(index.patients[labelled], index.labels[labelled])
    between = {}
    for name, split in splits.items():
        for first, second in combinations(SPLITS, 2):
            shared = sorted({*index.patients[split == first]} & {*index.patients[split == second]}, key=str)
            counted = {
                part: int(np.isin(index.patients[split == part], shared).sum()) if shared else 0
                for part in (first, second)
            }
            between[f"{name}: {first} and {second}"] = {"patients": [str(p) for p in shared], "scans": counted}
    return {
        "count": len(scans),
        "scans_per_patient": {"least": int(scans.min()), "median": float(np.median(scans)), "most": int(scans.max())},
        "in_several_classes": in_classes,
        "shared_between_splits": between,
    }


def _duplicates(index: ScanIndex, cache: ScanCache, splits: dict[str, np.ndarray], progress: bool) -> dict[str, Any]:
    groups = exact_groups(cache)
    near = sorted(near_pairs(cache, people_of(index), progress), key=lambda pair: -pair[2])
    return {
        "exact": {
            "groups": [[index.files[i] for i in group] for group in groups],
            "surplus_scans": sum(len(group) - 1 for group in groups),
            **_relations(index, [pair for group in groups for pair in _pairs(group)], splits),
        },
        "near": {
            "pairs": [[index.files[i], index.files[j], round(correlation, 3)] for i, j, correlation in near],
            **_relations(index, [(i, j) for i, j, _ in near], splits),
        },
    }


def _pairs(group: list[int]) -> list[tuple[int, int]]:
    """All pairs of a group; of a large one only those with its first scan, as pairs grow with the square."""
    return list(combinations(group, 2)) if len(group) <= _PAIRED else [(group[0], other) for other in group[1:]]


def _relations(index: ScanIndex, pairs: list[tuple[int, int]], splits: dict[str, np.ndarray]) -> dict[str, Any]:
    def differing(values: np.ndarray, counted: np.ndarray | None = None) -> list[list[str]]:
        return [
            [index.files[i], index.files[j]]
            for i, j in pairs
            if values[i] != values[j] and (counted is None or (counted[i] and counted[j]))
        ]

    return {
        "across_patients": differing(index.patients),
        "across_classes": [[index.files[i], index.files[j]] for i, j in pairs if index.contradiction(i, j)],
        **{f"across_splits_{name}": differing(split, split != "") for name, split in splits.items()},
    }


def _shortcut(index: ScanIndex, cache: ScanCache) -> dict[str, Any]:
    features = shortcut_features(index, cache)
    if index.multilabels:
        of_labels = {
            name: check_shortcuts(values, index.patients, features)[0] for name, values in index.multilabels.items()
        }
        return {
            "results": [{"label": name, **row} for name, results in of_labels.items() for row in as_numbers(results)],
            "classes_left_out": [name for name, results in of_labels.items() if not results],
        }
    results, left_out = check_shortcuts(index.labels, index.patients, features)
    return {"results": as_numbers(results), "classes_left_out": [index.class_names[label] for label in left_out]}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
