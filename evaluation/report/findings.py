"""What flatters or weakens a comparison: the audit of the data first, then what each model has seen."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from dino_oct.data.checks import audit
from dino_oct.scores.bootstrap import PatientBootstrap
from dino_oct.scores.paired import ScanSet, classes_of_one_patient
from evaluation.inputs.features import same_for_all
from evaluation.report.answers import Setting
from evaluation.report.models import Candidate

_FEW_OF_CLASS = 5  # test patients


@dataclass(frozen=True)
class Finding:
    """A warning; serious where it may overturn a result."""

    kind: Literal["leak", "duplicates", "shortcut", "files", "size", "model", "other"]
    serious: bool
    text: str


def warnings(models: dict[str, Candidate], shared: Setting) -> list[Finding]:
    """``results["warnings"]``: of the data, then of the patients, then of the models."""
    identity = {"dataset": dataclasses.asdict(shared.data.dataset), "folder": str(shared.data.index.root.resolve())}
    report = shared.cache.json(
        "audit",
        shared.identity(**identity),
        lambda: audit(shared.data.index.root, shared.data.dataset, progress=False),
    )
    return [*of_data(report), *_of_patients(shared), *_of_models(models, shared), *_of_features(models, shared)]


def of_data(report: dict[str, Any]) -> list[Finding]:
    """What ``dino_oct.data.audit.audit`` found that a reader must know; one line where it found nothing."""
    findings = [*_leaks(report), *_duplicates(report), *_shortcuts(report), *_files(report)]
    counted = f"{report['scans']['usable']:,} scans of {report['patients']['count']:,} patients"
    if not findings:
        text = (
            f"data audit of {counted}: no patient in two splits, no duplicates, nothing left out, and neither image "
            "size nor white border nor brightness tells the class"
        )
        return [Finding("other", False, text)]
    return findings


def _leaks(report: dict[str, Any]) -> list[Finding]:
    findings = []
    for where, shared in report["patients"]["shared_between_splits"].items():
        split, _, pair = where.partition(": ")
        if split == "used" and (patients := shared["patients"]):
            scans = ", ".join(f"{count:,} {part} scans" for part, count in shared["scans"].items())
            text = f"{len(patients):,} patients have scans in {pair} ({scans}); use --dataset.split patient"
            findings.append(Finding("leak", "test" in pair, text))
    several = report["patients"]["in_several_classes"]
    if several:
        findings.append(Finding("leak", False, f"{len(several):,} patients have scans in more than one class"))
    return findings


def _duplicates(report: dict[str, Any]) -> list[Finding]:
    findings = []
    exact, near = report["duplicates"]["exact"], report["duplicates"]["near"]
    if exact["surplus_scans"]:
        text = f"{exact['surplus_scans']:,} scans are exact copies of others ({len(exact['groups']):,} groups)"
        findings.append(Finding("duplicates", False, text))
    if near["pairs"]:
        text = f"{len(near['pairs']):,} pairs of scans are nearly the same (copies, or one place imaged twice)"
        findings.append(Finding("duplicates", False, text))
    for name, group in (("exact", exact), ("near", near)):
        for across, meaning in (
            ("across_splits_used", "lie in different splits"),
            ("across_patients", "carry different patient numbers"),
            ("across_classes", "carry different classes: at least one label is wrong"),
        ):
            if pairs := group.get(across):
                serious = across == "across_splits_used" or (name, across) == ("exact", "across_classes")
                text = f"{len(pairs):,} pairs of {name} duplicates {meaning} (e.g. {pairs[0][0]} and {pairs[0][1]})"
                findings.append(Finding("duplicates", serious, text))
    return findings


def _shortcuts(report: dict[str, Any]) -> list[Finding]:
    findings = []
    cured = report["borders"]["neutralised"]
    for result in report["shortcut"]["results"]:
        if not result["better_than_chance"]:
            continue
        percent = [100 * result[name] for name in ("balanced_accuracy", "low", "high", "chance")]
        text = (
            f"{result['features']} alone tells the class with {percent[0]:.1f} % [{percent[1]:.1f}, {percent[2]:.1f}] "
            f"balanced accuracy (chance {percent[3]:.1f} %)"
        )
        if result["features"] == "brightness":
            # Lesions change the brightness a little; another device for each class tells most scans.
            is_serious = percent[1] > (100 + percent[3]) / 2
            text += ": another device or exposure for each class, or the lesions themselves"
            findings.append(Finding("shortcut", is_serious, text))
            continue
        text += ", without looking at the retina"
        if "border" in result["features"]:
            text += "; white borders " + ("are neutralised here" if cured else "are NOT neutralised here")
        findings.append(Finding("shortcut", not (cured and result["features"] == "border"), text))
    if left_out := report["shortcut"]["classes_left_out"]:
        text = f"shortcut check without {', '.join(left_out)}: fewer than five patients"
        findings.append(Finding("shortcut", False, text))
    if not report["shortcut"]["results"]:
        findings.append(
            Finding("shortcut", False, "shortcut check not possible: it takes two classes of five patients each")
        )
    return findings


def _files(report: dict[str, Any]) -> list[Finding]:
    findings = []
    if left_out := report["left_out"]:
        reasons = Counter(file["reason"] for file in left_out).most_common(3)
        counted = "; ".join(f"{count:,} × {reason}" for reason, count in reasons)
        findings.append(Finding("files", False, f"{len(left_out):,} files were left out ({counted})"))
    if wrong := report["mislabelled"]:
        text = (
            f"{len(wrong):,} files are named after another class than their folder (the folder's is used): {wrong[0]}"
        )
        findings.append(Finding("files", True, text))
    return findings + [Finding("files", False, note) for note in report["notes"]]


def _of_patients(shared: Setting) -> list[Finding]:
    queries, names = shared.set_of("test"), shared.class_names
    findings = [Finding("size", True, note) for note in PatientBootstrap(queries.patients, 0).notes()]
    if alone := classes_of_one_patient(queries, names):
        text = f"one test patient only of {', '.join(alone)}: no intervals for what depends on that class"
        findings.append(Finding("size", True, text))
    counts = {name: _patients(queries, c) for c, name in enumerate(names)}
    few = [f"{name} {count}" for name, count in counts.items() if 1 < count < _FEW_OF_CLASS]
    if few:
        findings.append(Finding("size", False, f"few test patients of {', '.join(few)}: their recalls are rough"))
    absent = [name for name, count in counts.items() if not count]
    if absent:
        text = f"no test scan of {', '.join(absent)}: balanced accuracy and AUROC are over the other classes"
        findings.append(Finding("size", True, text))
    known = set(shared.set_of("train").labels.tolist())
    untrained = [name for c, name in enumerate(names) if c not in known]
    if untrained:
        text = f"no training scan of {', '.join(untrained)}: probes and k-NN cannot classify such scans right"
        findings.append(Finding("size", True, text))
    tested = set(queries.patients.tolist())
    for split in ("train", "val"):
        if both := len(tested & set(shared.set_of(split).patients.tolist())):
            text = f"{both} of {len(tested)} test patients also have labelled {split} scans, which flatters every model"
            findings.append(Finding("leak", split == "train", text))
    return findings


def _patients(scans: ScanSet, label: int) -> int:
    return len(set(scans.patients[scans.labels == label].tolist()))


def _of_models(models: dict[str, Candidate], shared: Setting) -> list[Finding]:
    tested = set(shared.set_of("test").patients.tolist())
    findings, unknown = [], []
    for key, model in models.items():
        if model.provenance is None or model.provenance.unknown:
            unknown.append(key)
        if model.provenance is not None and (both := len(tested & model.provenance.patients)):
            text = (
                f"{key} was trained on scans of {both} of the {len(tested)} test patients, in its run or one that it "
                "started from: not a test on new patients"
            )
            findings.append(Finding("model", True, text))
    if unknown:
        text = f"{', '.join(unknown)}: what these weights were trained on is not known, so they may know these patients"
        findings.append(Finding("model", False, text))
    if elsewhere := [key for key, model in models.items() if model.has_own and not model.is_judged_by_own]:
        text = (
            f"{', '.join(elsewhere)}: the classifier was not trained on these scans, so its answers say how it carries "
            "over; the verdict compares a linear probe of its features instead"
        )
        findings.append(Finding("model", True, text))
    return findings


def _of_features(models: dict[str, Candidate], shared: Setting) -> list[Finding]:
    """Models whose features do not tell scans apart, as those of some networks with random weights."""
    findings = []
    for key, model in models.items():
        note = shared.cache.json(
            f"features {key}",
            shared.identity(model),
            lambda key=key, model=model: same_for_all(key, [model.features["test"]]),
        )
        if note:
            findings.append(Finding("model", True, note))
    return findings
