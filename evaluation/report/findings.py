"""What flatters or weakens a comparison: the audit of the data first, then what each model has seen."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dino_oct.data.checks import audit_scans
from dino_oct.scores.bootstrap import PatientBootstrap
from dino_oct.words import counted
from evaluation.inputs.features import same_for_all
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting

_FEW_OF_CLASS = 5  # test patients
_REASONS = {
    "brightness": "another device or exposure for each class, or the lesions themselves",
    "noise": "another device or averaging for each class, or the lesions themselves",
    "position": "classes were taken from other slices of the volumes",
}


@dataclass(frozen=True)
class Finding:
    """A warning; serious where it may overturn a result."""

    kind: Literal["leak", "duplicates", "shortcut", "files", "size", "model", "other"]
    serious: bool
    text: str


def warnings(models: dict[str, Candidate], shared: Setting) -> list[Finding]:
    """``results["warnings"]``: of the data, then of the patients, then of the models."""
    data = shared.data
    identity = {"dataset": dataclasses.asdict(data.dataset), "folder": str(data.index.root.resolve())}
    report = shared.steps.json("audit", lambda: audit_scans(data.index, data.scans, data.dataset, False), **identity)
    return [*of_data(report), *_of_patients(shared), *_of_models(models, shared), *_of_features(models)]


def of_data(report: dict[str, Any]) -> list[Finding]:
    """What a reader must know of the JSON report of ``dino_oct.data.checks.audit``; one line where it found nothing."""
    findings = [*_leaks(report), *_duplicates(report), *_shortcuts(report), *_files(report)]
    if findings:
        return findings
    text = (
        f"data audit of {report['scans']['usable']:,} scans of {report['patients']['count']:,} patients: no patient in "
        "two splits, no duplicates, nothing left out, and nothing beside the retina (size, border, brightness, noise) "
        "tells the class"
    )
    return [Finding("other", False, text)]


def _leaks(report: dict[str, Any]) -> Iterator[Finding]:
    for where, shared in report["patients"]["shared_between_splits"].items():
        split, _, pair = where.partition(": ")
        if split == "used" and (patients := shared["patients"]):
            scans = ", ".join(counted(count, f"{part} scan") for part, count in shared["scans"].items())
            text = f"{counted(len(patients), 'patient')} with scans in {pair} ({scans}); use --dataset.split patient"
            yield Finding("leak", "test" in pair, text)
    if several := report["patients"]["in_several_classes"]:
        yield Finding("leak", False, f"{counted(len(several), 'patient')} with scans in more than one class")
    if eyes := report["eyes"]["at_one_visit"]:
        example = f"patient {eyes[0]['patient']}, {eyes[0]['eye']}, visit {eyes[0]['visit']}"
        text = f"{counted(len(eyes), 'eye')} with scans of more than one class at one visit (e.g. {example})"
        yield Finding("other", False, text)


def _duplicates(report: dict[str, Any]) -> Iterator[Finding]:
    exact, near = report["duplicates"]["exact"], report["duplicates"]["near"]
    if surplus := exact["surplus_scans"]:
        text = f"exact copies: {counted(surplus, 'scan')} too many ({counted(len(exact['groups']), 'group')})"
        yield Finding("duplicates", False, text)
    for name, group in (("exact copies", exact), ("near-duplicates", near)):
        for across, serious, meaning in (
            ("across_splits_used", True, "lie in different splits"),
            ("across_patients", False, "carry different patient numbers"),
            ("across_classes", name == "exact copies", "carry different classes: at least one label is wrong"),
        ):
            if pairs := group.get(across):
                text = f"{counted(len(pairs), 'pair')} of {name} {meaning} (e.g. {pairs[0][0]} and {pairs[0][1]})"
                yield Finding("duplicates", serious, text)


def _shortcuts(report: dict[str, Any]) -> Iterator[Finding]:
    cured = report["borders"]["neutralised"]
    for result in report["shortcut"]["results"]:
        if not result["better_than_chance"]:
            continue
        features = result["features"]
        mean, low, high, chance = (100 * result[name] for name in ("balanced_accuracy", "low", "high", "chance"))
        text = (
            f"{features} alone tells the class with {mean:.1f} % [{low:.1f}, {high:.1f}] balanced accuracy (chance "
            f"{chance:.1f} %)"
        )
        if features in _REASONS:
            # Lesions change these a little; another device for each class tells most scans.
            is_serious = low > (100 + chance) / 2
            text += f": {_REASONS[features]}"
        else:
            is_serious = not (cured and features == "border")
            text += ", without looking at the retina"
            if "border" in features:
                text += f"; white borders are {'neutralised' if cured else 'NOT neutralised'} here"
        yield Finding("shortcut", is_serious, text)
    if left_out := report["shortcut"]["classes_left_out"]:
        text = f"shortcut check without {', '.join(left_out)}: fewer than five patients"
        yield Finding("shortcut", False, text)
    if not report["shortcut"]["results"]:
        text = "shortcut check not possible: it takes two classes of five patients each"
        yield Finding("shortcut", False, text)


def _files(report: dict[str, Any]) -> Iterator[Finding]:
    if left_out := report["left_out"]:
        reasons = Counter(file["reason"] for file in left_out).most_common(3)
        why = "; ".join(f"{count:,} × {reason}" for reason, count in reasons)
        yield Finding("files", False, f"{counted(len(left_out), 'file')} left out ({why})")
    if wrong := report["mislabelled"]:
        text = f"{counted(len(wrong), 'file')} named after another class than the folder (the folder's is used)"
        yield Finding("files", True, f"{text}: {wrong[0]}")
    for note in report["notes"]:
        yield Finding("files", False, note)


def _of_patients(shared: Setting) -> Iterator[Finding]:
    queries, names = shared.set_of("test"), shared.class_names
    for note in PatientBootstrap(queries.patients, 0).notes():
        yield Finding("size", True, note)
    counts = {name: len(set(queries.patients[queries.labels == c].tolist())) for c, name in enumerate(names)}
    if alone := [name for name, count in counts.items() if count == 1]:
        text = f"one test patient only of {', '.join(alone)}: no intervals for what depends on that class"
        yield Finding("size", True, text)
    if few := [f"{name} {count}" for name, count in counts.items() if 1 < count < _FEW_OF_CLASS]:
        yield Finding("size", False, f"few test patients of {', '.join(few)}: their recalls are rough")
    if absent := [name for name, count in counts.items() if not count]:
        text = f"no test scan of {', '.join(absent)}: balanced accuracy and AUROC are over the other classes"
        yield Finding("size", True, text)
    known = set(shared.set_of("train").labels.tolist())
    if untrained := [name for c, name in enumerate(names) if c not in known]:
        text = f"no training scan of {', '.join(untrained)}: probes and k-NN cannot classify such scans right"
        yield Finding("size", True, text)
    tested = set(queries.patients.tolist())
    for note in shared.data.leak_notes(shared.positions["test"], "test"):
        yield Finding("leak", True, note)
    if both := len(tested & set(shared.set_of("val").patients.tolist())):
        text = f"{both} of {len(tested)} test patients also have labelled val scans, which flatters every model"
        yield Finding("leak", False, text)


def _of_models(models: dict[str, Candidate], shared: Setting) -> Iterator[Finding]:
    tested = set(shared.set_of("test").patients.tolist())
    for key, model in models.items():
        if model.provenance is not None and (both := len(tested & model.provenance.patients)):
            text = (
                f"{key} was trained on scans of {both} of the {len(tested)} test patients, in its run or one that it "
                "started from: not a test on new patients"
            )
            yield Finding("model", True, text)
    if unknown := [key for key, model in models.items() if model.provenance is None or model.provenance.unknown]:
        text = f"{', '.join(unknown)}: what these weights were trained on is not known, so they may know these patients"
        yield Finding("model", False, text)
    if elsewhere := [key for key, model in models.items() if model.has_own and not model.is_judged_by_own]:
        text = (
            f"{', '.join(elsewhere)}: the classifier was not trained on these scans, so its answers say how it carries "
            "over; the verdict compares a linear probe of its features instead"
        )
        yield Finding("model", True, text)


def _of_features(models: dict[str, Candidate]) -> Iterator[Finding]:
    """Models whose features do not tell scans apart, as those of some networks with random weights."""
    for model in models.values():
        if note := model.steps.json("features", lambda model=model: same_for_all(model.key, [model.features["test"]])):
            yield Finding("model", True, note)
