"""What a report says about itself: how its numbers were made, with which versions, and what it must not be used for."""

import contextlib
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

from dino_oct.scores.text import missing_intervals
from dino_oct.scores.units import RULES
from dino_oct.words import scans_of
from evaluation.config import ComparisonOptions
from evaluation.maps.chefer import PATENT_NOTICE
from evaluation.report.label_errors import FOLDS
from evaluation.report.models import Candidate
from evaluation.report.results import Results
from evaluation.report.severity import NEIGHBOURS as SEVERITY_NEIGHBOURS
from evaluation.report.steps import Setting
from evaluation.report.table import RULE

PACKAGES = (
    "dino-oct", "torch", "timm", "numpy", "scipy", "scikit-learn", "umap-learn", "faiss-gpu", "faiss-cpu", "matplotlib",
)  # fmt: skip
INTENDED_USE = (
    "Research only: to compare networks on retinal OCT scans. Not a medical device; nothing here has been validated "
    "for diagnosis, triage or treatment, and no decision about a patient may rest on it."
)


def versions() -> dict[str, str]:
    """Python, the packages that made the numbers, and the machine's kind."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            by_package[package] = metadata.version(package)
    return {**by_package, "machine": f"{platform.system()} {platform.machine()}"}


def command() -> str:
    """The command line as it was given."""
    program = Path(sys.argv[0])
    return shlex.join(["python", program.name if program.is_absolute() else str(program), *sys.argv[1:]])


def single_commands(models: dict[str, Candidate], options: ComparisonOptions) -> list[str]:
    """The commands of the single evaluations, which print the same numbers."""
    given = ["--data", options.data] if options.data else []
    for section in ("dataset", "phantom"):
        chosen = getattr(options, section)
        usual = vars(type(chosen)())
        for name, value in vars(chosen).items():
            if value != usual[name] and (section, name) != ("dataset", "cache_dir"):
                words = value if isinstance(value, (list, tuple)) else [value]
                given += [f"--{section}.{name.replace('_', '-')}", *(shlex.quote(str(word)) for word in words)]
    given += ["--bootstrap", str(options.bootstrap), "--seed", str(options.seed)]
    shared, ks = " ".join(given), " ".join(map(str, options.k))
    return [
        f"dino-oct {name} --model {model.source.name} {own} {shared}"
        for model in models.values()
        for name, own in (("knn", f"--k {ks}"), ("linear", "--fractions 1"))
    ]


def paragraphs(results: Results, shared: Setting) -> list[str]:
    """How the numbers were made."""
    counted = "; ".join(
        f"{split}: {scans_of(counts)} ("
        + ", ".join(f"{name} {count['scans']:,}" for name, count in counts["classes"].items())
        + ")"
        for split, counts in results.data.sets.items()
    )
    options, dataset, embedding = shared.options, shared.data.dataset, results.embedding
    phantoms = " The scans are phantoms, drawn by the built-in generator." if results.data.synthetic else ""
    borders = "replaced by the scan's own background" if dataset.neutralise_borders else "left as they are"
    kinds = ", ".join(f"{key} ({model.kind}, {model.architecture})" for key, model in results.models.items())
    texts = [
        f"Scans. {results.data.folder}; {counted}. Split: {dataset.split} (seed {dataset.split_seed}); patients, "
        f"not scans, are split. White borders are {borders}.{phantoms} Every model is tested on the same scans.",
        f"Models. {kinds}. Scans are resized to each model's own input size; weights are identified by their sha256.",
        f"k-NN: cosine similarity of frozen features, votes exp(similarity / {options.temperature:g}) of the k = "
        f"{', '.join(map(str, options.k))} nearest training scans (Wu et al. 2018). Linear probe: L2 "
        "logistic regression on standardised frozen features of all labelled training scans, its strength chosen among "
        "20 values by balanced accuracy on validation patients. Classifier: the one that a supervised "
        "model was trained with.",
        f"Intervals: 95 %. Standard errors by a bootstrap over patients ({options.bootstrap} resamples, seed "
        f"{options.seed}), who bring all their scans; point ± t × error with degrees of freedom from the number of "
        "patients (of each class, for a mean over classes; fewer where some have most of the scans), on a logit scale "
        "for shares, Fisher's z for correlations, a logarithmic one for ratios; at 0 and 100 % an exact bound by the "
        "number of patients. Differences are paired on the same resamples. "
        f"{RULE[0].upper()}{RULE[1:]}. The verdict compares the best model of each kind, chosen on validation "
        "patients.",
        "AUROC: one class against the rest, mean over classes. Calibration error: 15 bins of equal width (Guo et al. "
        "2017). Urgent against routine: CNV and DME against DRUSEN and NORMAL; a scan counts as called urgent where "
        "its most probable class is; AUROC of the summed probability of the urgent classes.",
    ]
    if results.by_unit:
        shares = ", ".join(f"{100 * share:g} %" for share in RULES.values() if 0 < share < 1)
        texts.append(
            f"By {', '.join(results.by_unit)}: class scores of slices become those of a unit as their mean, their "
            f"maximum or the mean of the highest {shares} (one slice at least), each class by itself, scaled to a sum "
            "of 1; for the linear probe also by gated attention pooling of the features (Ilse et al. 2018), trained on "
            "the training units and stopped early on the validation units. Each row uses what has the highest balanced "
            "accuracy on the validation units. Units whose scans have several classes are left out. Intervals are by "
            "patient."
        )
    if results.suspects:
        texts.append(
            f"Suspected label errors: {FOLDS}-fold cross-validation grouped by patient over all labelled scans of all "
            f"splits; {results.suspects.rule}"
        )
    if embedding:
        texts.append(
            f"Embedding maps: UMAP (n_neighbors 15, min_dist 0.1, euclidean, seed {options.seed}) of "
            f"{len(embedding.scans):,} test scans. Purity is measured on the features, not on the map."
        )
    if results.severity:
        texts.append(
            f"Severity: {results.severity.measure}; Spearman's correlation of test scans with a lesion; "
            f"neighbours: {SEVERITY_NEIGHBOURS} training scans by cosine."
        )
    if results.cases:
        reference = results.settings["reference_model"]
        texts.append(
            f"Cases are chosen by rule: drawn by seed {options.seed}, and best, median and worst by the probability "
            f"that {reference} (the best on validation) gives the true class; each rule spreads over classes and "
            "patients. Maps explain the class that each model calls; attention is the mean of the last block's "
            "heads; every map is scaled to its own maximum."
        )
        if results.volumes and results.volumes.shown:
            texts.append(
                "Volumes of cases: each slice is judged and explained by itself. What a model says of the whole volume "
                "and eye pools its probabilities of their test scans by the rule of its table by unit, or by the mean "
                "where that is attention pooling."
            )
        if "lrp" in options.methods:
            texts.append(PATENT_NOTICE)
    made_with = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return [*texts, f"Made by: {results.command} ({made_with})."]


def limits(results: Results) -> list[str]:
    """What the numbers do not say."""
    sentences = []
    if results.data.synthetic:
        sentences.append("The scans are synthetic: an order of models on phantoms need not hold on patients.")
    sentences += [
        "One training of each model: intervals tell how the result depends on the test patients, not how it would "
        "change with another seed of the training.",
        "One data set: other devices, clinics and populations were not tested.",
        "Many comparisons are shown and not corrected for their number; only the verdict was fixed beforehand.",
        "Explanation maps show where a model's answer is sensitive, not that the model is right, and not where the "
        "disease is.",
        "ms per scan is that of this machine at the time, beside whatever else ran on it.",
        *(f"{note[0].upper()}{note[1:]}." for note in missing_intervals(results)),
    ]
    if any(model.kind != "supervised" for model in results.models.values()):
        sentences.append(
            "Models without a classifier are judged by a linear probe on frozen features, supervised ones also by a "
            "classifier that was trained through the whole network: the two protocols ask different things."
        )
    return sentences
