"""What continuing on OCT does to a pretrained network, on patients that it has not seen: runs, scores, tables.

    python tests/benchmarks/evidence.py --recipes frozen gentle --seeds 0 1 2 --scans DIR --weights FILE
    python tests/benchmarks/evidence.py                       rebuild the tables of docs/evidence.md from the results

Recipes are in docs/evidence/recipes.yaml. A run that is there is not done again, nor a result. DIR holds
``oct2017-4class`` (split by patient: the test patients are seen by no training), ``octdl-subset`` (external test),
``duke-dme`` (fluid masks of two graders), and the recipes' unlabelled folders.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from dino_oct.cli import run_command
from dino_oct.data.index import DatasetConfig
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.data.tissue import tissue_mask
from dino_oct.devices import default_device
from dino_oct.errors import InputError
from dino_oct.features import extract, predict_scans, resize_all
from dino_oct.files import write_whole
from dino_oct.knn import knn_votes
from dino_oct.limits import Seed
from dino_oct.models.attention import cls_attentions
from dino_oct.models.backbone import load_backbone, open_layer_scales, patch_size
from dino_oct.models.network import normalise
from dino_oct.pictures import fit_short_side
from dino_oct.precision import use_bf16
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import PatientBootstrap, Scale
from dino_oct.scores.probes import choose, choose_within, draw_patients, logistic_path, standardisation
from dino_oct.streams import generator
from evaluation.config import ClassTargetOptions
from evaluation.inputs.model import as_classifier, open_model
from evaluation.inputs.sources import open_source
from evaluation.maps.methods import MapSettings, enlarge, make_maps
from evaluation.scores.localization import RankedPixels

REPOSITORY = Path(__file__).resolve().parents[2]
EVIDENCE = REPOSITORY / "docs" / "evidence"
SPLIT = DatasetConfig(split="patient", val_fraction=0.2, test_fraction=0.4)
SIZE = (224, 224)  # of the scans that are judged
ATTENTION_SIDE = 336  # short side of the scans whose attention is judged
CS = tuple(np.logspace(-5, 2, 20).tolist())
PATIENTS = (4, 20, 100)  # whose labels a probe gets
MAPS = ("relevance", "lrp", "gradcam")  # for the class DME
DRAWS = 10  # of such patients
EXTERNAL = {"NORMAL": "NO", "DME": "DME"}  # class of OCT2017 → of OCTDL


@dataclass
class Options:
    """Train and judge recipes, then write the tables of docs/evidence.md."""

    recipes: list[str] = field(default_factory=list)
    """Names in docs/evidence/recipes.yaml; none: only the tables."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Of weights, order and views."""
    scans: Path = Path("../shared/data")
    """Folder of the scans."""
    weights: Path = Path("../shared/weights/dinov2_vits14_pretrain.pth")
    """Pretrained network."""
    out: Path = Path("runs/evidence")
    """Folder of the runs."""
    fluid: bool = True
    """Also judge attention against the fluid masks (minutes)."""


@dataclass(frozen=True)
class Recipe:
    """One entry of recipes.yaml; ``settings`` are nested as in a preset, ``like`` is the recipe that it changes."""

    name: str
    about: str
    kind: str
    start: str
    like: str
    unlabelled: list[str]
    settings: dict[str, Any]


def read_recipe(name: str) -> Recipe:
    """Raises InputError for a name that there is not."""
    file = yaml.safe_load((EVIDENCE / "recipes.yaml").read_text())
    if name not in file["recipes"]:
        raise InputError(f"{name}: no such recipe; choose of {', '.join(file['recipes'])}")
    entry = file["recipes"][name]
    kind = entry.get("kind", "pretrain")
    settings = json.loads(json.dumps(file["base"].get(kind, {})))
    like = entry.get("like", "")
    changes = {**(file["recipes"][like].get("change", {}) if like else {}), **entry.get("change", {})}
    for key, value in changes.items():
        section, _, setting = key.partition(".")
        settings.setdefault(section, {})[setting] = value
    unlabelled = entry.get("unlabelled", file["base"]["unlabelled"])
    return Recipe(name, entry["about"], kind, entry.get("start", "weights"), like, unlabelled, settings)


# ---- training --------------------------------------------------------------------------------------------------------
def start_of(recipe: Recipe, seed: int, options: Options) -> str:
    """SOURCE that a recipe starts from."""
    if recipe.start == "weights":
        return str(options.weights)
    if recipe.start == "random":
        return "random:vit_small_patch14_dinov2"
    return str(train(read_recipe(recipe.start), seed, options))


def train(recipe: Recipe, seed: int, options: Options) -> str:
    """SOURCE of a recipe's result; trains where there is none yet.

    Raises:
        InputError: the training failed.
    """
    start = start_of(recipe, seed, options)
    if recipe.kind == "frozen":
        return start
    run = options.out / f"{recipe.name}-{seed}"
    done = run / "minutes.json"
    if done.is_file():
        return str(run)
    run.mkdir(parents=True, exist_ok=True)
    dataset = {"split": SPLIT.split, "val_fraction": SPLIT.val_fraction, "test_fraction": SPLIT.test_fraction}
    settings = {**recipe.settings, "seed": seed, "data": str(options.scans / "oct2017-4class"), "out": str(run)}
    settings["dataset"] = {**dataset, "max_side": 640, **settings.get("dataset", {})}
    if recipe.kind == "supervised":
        settings["model"] = start
        if recipe.start == "random":
            settings["network"] = {**settings["network"], "args": ["img_size=168", "init_values=1.0"]}
    else:
        settings["init"] = start
        settings["dataset"]["unlabelled"] = [str(options.scans / folder) for folder in recipe.unlabelled]
        if recipe.start == "random":
            settings["model"] = {**settings["model"], "args": ["img_size=224", "init_values=1.0"]}
    preset = options.out / f"{recipe.name}-{seed}.yaml"
    preset.write_text(yaml.safe_dump(settings))
    script = "supervised/train.py" if recipe.kind == "supervised" else "dino_oct/train.py"
    began = time.perf_counter()
    status = subprocess.run([sys.executable, script, "--config", str(preset)], cwd=REPOSITORY).returncode
    if status:
        raise InputError(f"{recipe.name}: the training ended with status {status}")
    done.write_text(json.dumps((time.perf_counter() - began) / 60))
    return str(run)


# ---- judging ---------------------------------------------------------------------------------------------------------
class Judge:
    """The scans that networks are judged on, decoded once."""

    def __init__(self, options: Options):
        self.options = options
        self.device, self.bf16 = default_device(), use_bf16("auto")
        dataset = DatasetConfig(**{**SPLIT.__dict__, "max_side": 640})
        self.index, self.scans = load_scans(str(options.scans / "oct2017-4class"), dataset, PhantomConfig(), print)
        self.data = ScanData(self.index, self.scans, dataset, None, ())
        self.images = resize_all((self.scans[i] for i in range(len(self.index))), SIZE)
        self.splits = {name: self.index.positions(name) for name in ("train", "val", "test")}
        self.labels, self.patients = self.index.labels, self.index.patients
        self.bootstrap = PatientBootstrap(self.patients[self.splits["test"]])

    @cached_property
    def external(self) -> tuple[torch.Tensor, np.ndarray]:
        """OCTDL's scans of classes that OCT2017 has too, and their class there."""
        dataset = DatasetConfig(max_side=640)
        index, scans = load_scans(str(self.options.scans / "octdl-subset"), dataset, PhantomConfig(), print)
        own = {index.class_names.index(other): self.index.class_names.index(name) for name, other in EXTERNAL.items()}
        positions = [i for i in range(len(index)) if int(index.labels[i]) in own]
        images = resize_all((scans[i] for i in positions), SIZE)
        return images, np.array([own[int(index.labels[i])] for i in positions])

    def features(self, backbone: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
        """CLS features (N, D)."""
        return extract(backbone, images, self.device, 64, self.bf16)

    def judge(self, backbone: torch.nn.Module) -> dict[str, Any]:
        """All scores of a network: ``scores`` (name → value, interval, and which test scans are right)."""
        features = self.features(backbone, self.images)
        external = self.features(backbone, self.external[0])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # thousands of small problems
        try:
            return self.of_features(features, external)
        finally:
            torch.set_num_threads(threads)

    def of_features(self, features: np.ndarray, external: np.ndarray) -> dict[str, Any]:
        """As ``judge``, of the features of all scans and of the external ones."""
        train, val, test = self.splits.values()
        n_classes, truth = len(self.index.class_names), self.labels[test]
        result: dict[str, Any] = {}
        votes = knn_votes(features[train], self.labels[train], features[test], (5, 10), n_classes)
        for k, of_k in votes.items():
            result[f"knn_{k}"] = self.score(of_k.argmax(axis=1) == truth)
        mean, std = standardisation(features[train])
        z, z_external = (torch.from_numpy((part - mean) / std) for part in (features, external))
        chosen = choose(logistic_path(z[train], self.labels[train], n_classes, CS), z[val], self.labels[val])
        result["probe"] = self.score(chosen.classifier.probabilities(z[test]).argmax(axis=1) == truth)
        for count in PATIENTS:
            result[f"probe_{count}"] = self.score(self.few_labels(features, count))
        # The external scans have no safe patient identity: a number without an interval. Two classes are asked for.
        classes = [self.index.class_names.index(name) for name in EXTERNAL]
        of_two = train[np.isin(self.labels[train], classes)]
        known = knn_votes(features[of_two], self.labels[of_two], external, (5,), n_classes)[5].argmax(axis=1)
        probed = chosen.classifier.probabilities(z_external)[:, classes].argmax(axis=1)
        result["external_knn_5"] = {"value": 100 * float((known == self.external[1]).mean())}
        result["external_probe"] = {"value": 100 * float((np.array(classes)[probed] == self.external[1]).mean())}
        return result

    def few_labels(self, features: np.ndarray, count: int) -> np.ndarray:
        """Share of the draws of ``count`` labelled patients in which each test scan is right."""
        train, test, n_classes = self.splits["train"], self.splits["test"], len(self.index.class_names)
        share = count / len(np.unique(self.patients[train]))
        right = []
        for draw in range(DRAWS):
            rng = generator("labelled patients of the evidence", draw, count)
            chosen = train[draw_patients(self.labels[train], self.patients[train], share, rng)]
            mean, std = standardisation(features[chosen])
            x, y = torch.from_numpy((features[chosen] - mean) / std), self.labels[chosen]

            def fit(x, y, n_classes):
                return logistic_path(x, y, n_classes, CS)

            fallback = min(CS, key=lambda c: abs(np.log(c)))
            probe = choose_within(fit, x, y, self.patients[chosen], n_classes, fallback).classifier
            called = probe.probabilities(torch.from_numpy((features[test] - mean) / std)).argmax(axis=1)
            right.append(called == self.labels[test])
        return np.mean(right, axis=0)

    def score(self, right: np.ndarray) -> dict[str, Any]:
        """Accuracy in per cent with its interval by patient, and what each test scan adds."""
        interval = self.bootstrap.mean(100.0 * right, Scale.PERCENT)
        scans = right.astype(int).tolist() if right.dtype == bool else np.round(right, 3).tolist()
        return {"value": interval.point, "low": interval.low, "high": interval.high, "right": scans}


# ---- attention on fluid ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Fluid:
    """Scans (H, W) with fluid of the two graders (H, W) bool, and their subjects."""

    scans: list[np.ndarray]
    graders: tuple[list[np.ndarray], list[np.ndarray]]
    subjects: np.ndarray


def read_fluid(folder: Path) -> Fluid:
    """Scans on which the first grader marked fluid."""
    scans, graders, subjects = [], ([], []), []
    for file in sorted((folder / "images").glob("*.png")):
        masks = [np.array(Image.open(folder / f"masks_grader{i}" / file.name)) > 0 for i in (1, 2)]
        if masks[0].any():
            scans.append(np.array(Image.open(file).convert("L")))
            for of_grader, mask in zip(graders, masks, strict=True):
                of_grader.append(mask)
            subjects.append(file.stem.split("_")[0])
    return Fluid(scans, graders, np.array(subjects))


def precision(values: np.ndarray, mask: np.ndarray) -> float:
    """Average precision of a map's pixels against a mask, per cent."""
    return 100 * RankedPixels(values, mask).average_precision()


def attention_on_fluid(backbone: torch.nn.Module, fluid: Fluid, device: torch.device) -> np.ndarray:
    """Average precision (scans, blocks, heads + 1) of CLS attention; the mean of a block's heads is last."""
    depth, scores = len(backbone.blocks), []
    for scan, mask in zip(fluid.scans, fluid.graders[0], strict=True):
        image = fit_short_side(scan, ATTENTION_SIDE, patch_size(backbone))
        prepared = normalise(image[None].to(device), backbone)
        of_scan = []
        for of_block in cls_attentions(backbone, prepared, range(depth)):
            maps = of_block[0].cpu().numpy()
            maps = enlarge(np.concatenate([maps, maps.mean(axis=0, keepdims=True)]), mask.shape)
            of_scan.append([precision(values, mask) for values in maps])
        scores.append(of_scan)
    return np.array(scores)


def explained_fluid(source: str, fluid: Fluid, judge: Judge) -> dict[str, np.ndarray]:
    """Average precision (scans,) of maps for the class DME, by method: of the source's classifier or of a probe that is
    fitted to OCT2017's training scans."""
    options = ClassTargetOptions(image_size=SIZE)
    model = as_classifier(open_model(open_source(source), image_size=SIZE, with_classifier=True), options, judge.data)
    target = model.class_index("DME")
    scores = {}
    for method in MAPS:
        maps = make_maps(model, method, fluid.scans, [target] * len(fluid.scans), MapSettings())
        pairs = zip(maps, fluid.graders[0], strict=True)
        scores[method] = np.array([precision(enlarge(values, mask.shape)[0], mask) for values, mask in pairs])
    return scores


def chosen_on_others(scores: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Score of each scan (N,) by the candidate that is best on the other subjects; scores: (N, candidates)."""
    chosen = np.empty(len(scores))
    for subject in np.unique(subjects):
        own = subjects == subject
        others = [scores[subjects == other].mean(axis=0) for other in np.unique(subjects) if other != subject]
        chosen[own] = scores[own, np.mean(others, axis=0).argmax()]
    return chosen


def controls(fluid: Fluid) -> dict[str, np.ndarray]:
    """Average precision of maps that know nothing of networks, and of the other grader."""
    rows, columns = np.mgrid[0 : 1 : 1j * fluid.scans[0].shape[0], 0 : 1 : 1j * fluid.scans[0].shape[1]]
    blob = np.exp(-((rows - 0.5) ** 2 + (columns - 0.5) ** 2) / (2 * 0.2**2))
    maps: dict[str, Callable[[int], np.ndarray]] = {
        "the other grader": lambda i: fluid.graders[1][i].astype(float),
        "blob in the centre": lambda i: blob,
        "brightness": lambda i: fluid.scans[i].astype(float),
        "darkness in the retina": lambda i: tissue_mask(fluid.scans[i]) * (255.0 - fluid.scans[i]),
        "retina": lambda i: tissue_mask(fluid.scans[i]).astype(float),
        "random": lambda i: generator("random maps of the evidence", i).random(fluid.scans[i].shape),
    }
    return {
        name: np.array([precision(make(i), fluid.graders[0][i]) for i in range(len(fluid.scans))])
        for name, make in maps.items()
    }


# ---- results ---------------------------------------------------------------------------------------------------------
def open_network(source: str, recipe: Recipe) -> torch.nn.Module:
    """The backbone of a SOURCE; random ones as a control can be used (scales of the residual branches at 1)."""
    args = {"img_size": 224} if recipe.kind == "frozen" and recipe.start == "random" else None
    backbone = load_backbone(source, model_args=args)
    if backbone.load_report.matched == 0:
        open_layer_scales(backbone)
    return backbone.to(default_device()).eval()


def judge_run(judge: Judge, recipe: Recipe, seed: int, options: Options) -> None:
    """Train a recipe and write its result, unless they are there."""
    file = EVIDENCE / f"{recipe.name}-{seed}.json"
    result = json.loads(file.read_text()) if file.is_file() else {}
    wants_fluid = options.fluid and "fluid" not in result
    if result.get("scores") and not wants_fluid:
        return
    source = train(recipe, seed, options)
    backbone = open_network(source, recipe)
    if "scores" not in result:
        minutes = Path(source) / "minutes.json"
        result = {
            "recipe": recipe.name,
            "about": recipe.about,
            "seed": seed,
            "kind": recipe.kind,
            "start": recipe.start,
            "like": recipe.like,
            "unlabelled": recipe.unlabelled if recipe.kind == "pretrain" else [],
            "settings": recipe.settings,
            "minutes": json.loads(minutes.read_text()) if minutes.is_file() else None,
            "scores": judge.judge(backbone),
        }
        if recipe.kind == "supervised":
            size = (recipe.settings["network"]["image_size"],) * 2
            test, network = judge.splits["test"], load_backbone(source, num_classes=None).to(judge.device)
            called = predict_scans(network, judge.scans, test, size, judge.device).argmax(axis=1)
            result["scores"]["classifier"] = judge.score(called == judge.labels[test])
        if recipe.kind == "pretrain":
            result["validation"] = validation_curve(Path(source))
        write_result(file, result)
    if wants_fluid:
        fluid = read_fluid(options.scans / "duke-dme")
        scores = attention_on_fluid(backbone, fluid, judge.device)
        maps = {name: values.round(2).tolist() for name, values in explained_fluid(source, fluid, judge).items()}
        result["fluid"] = {"subjects": fluid.subjects.tolist(), "precision": scores.round(2).tolist(), "maps": maps}
        write_result(file, result)
    print(f"{recipe.name}-{seed}:", ", ".join(f"{k} {v['value']:.1f}" for k, v in result["scores"].items()), flush=True)


def write_result(file: Path, result: dict[str, Any]) -> None:
    """Numbers on few lines, so that a diff can be read."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in result.items()]
    write_whole(file, "{\n" + ",\n".join(lines) + "\n}\n")


def validation_curve(run: Path) -> list[dict[str, float]]:
    """What the trainer's monitor said at each evaluation."""
    names = ("step", "knn_5", "knn_10", "probe", "rankme", "feature_spread", "attention_entropy", "attention_area")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in names if name in line} for line in lines if "rankme" in line]


# ---- tables ----------------------------------------------------------------------------------------------------------
COLUMNS = {
    "knn_5": "k-NN, k = 5",
    "knn_10": "k-NN, k = 10",
    "probe": "probe",
    "probe_4": "probe, 4 patients",
    "probe_20": "probe, 20 patients",
    "probe_100": "probe, 100 patients",
    "classifier": "fine-tuned",
}
DEFAULT = "longer"  # what --preset auto chooses for such scans and weights
CHANGES = ("knn_5", "knn_10", "probe", "probe_4", "probe_20")


class Results:
    """All results by recipe, with intervals by patient that are paired over recipes and averaged over seeds."""

    def __init__(self):
        self.patients = np.array(json.loads((EVIDENCE / "split.json").read_text())["patients"])
        self.bootstrap = PatientBootstrap(self.patients)
        self.by_recipe: dict[str, list[dict[str, Any]]] = {}
        for name in yaml.safe_load((EVIDENCE / "recipes.yaml").read_text())["recipes"]:
            if files := sorted(EVIDENCE.glob(f"{name}-[0-9]*.json")):
                self.by_recipe[name] = [json.loads(file.read_text()) for file in files]

    def right(self, recipe: str, score: str, seeds: Collection[int] | None = None) -> np.ndarray | None:
        """Share of the seeds (all, or these) in which each test scan is right, (N,)."""
        runs = [run for run in self.by_recipe[recipe] if score in run["scores"] and (not seeds or run["seed"] in seeds)]
        return np.mean([run["scores"][score]["right"] for run in runs], axis=0) if runs else None

    def value(self, recipe: str, score: str) -> str:
        """Mean over seeds with its interval; not of few labels where the features have seen all of them."""
        knows_labels = self.by_recipe[recipe][0]["kind"] == "supervised" and score.startswith("probe_")
        right = None if knows_labels else self.right(recipe, score)
        return "–" if right is None else self.bootstrap.mean(100 * right, Scale.PERCENT).words()

    def change(self, recipe: str, score: str, other: str = "frozen") -> str:
        """Difference to another recipe in points, paired on the same scans; bold where the interval leaves 0 out."""
        of_both = {run["seed"] for run in self.by_recipe[recipe]} & {run["seed"] for run in self.by_recipe[other]}
        seeds = of_both if len(self.by_recipe[other]) > 1 else None  # frozen weights have no seeds
        right, before = self.right(recipe, score, seeds), self.right(other, score, seeds)
        if right is None or before is None:
            return "–"
        interval = self.bootstrap.mean(100 * (right - before), Scale.DIFFERENCE)
        words = interval.words(signed=True)
        return f"**{words}**" if interval.is_above(0) or interval.is_below(0) else words

    def accuracy_table(self) -> list[str]:
        """One row a recipe: accuracy."""
        lines = ["| recipe | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
        for name, runs in self.by_recipe.items():
            cells = [self.value(name, score) for score in COLUMNS]
            lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
        return lines

    def summary_table(self) -> list[str]:
        """The README's: frozen weights beside the default recipe."""
        lines = ["| accuracy % | as they are | continued on OCT | change |", "|---|---|---|---|"]
        for score, title in COLUMNS.items():
            if score != "classifier":
                cells = [self.value("frozen", score), self.value(DEFAULT, score), self.change(DEFAULT, score)]
                lines.append(f"| {title} | " + " | ".join(cells) + " |")
        return lines

    def change_table(self) -> list[str]:
        """One row a continued recipe: change against the frozen weights."""
        return self._changes([name for name, runs in self.by_recipe.items() if runs[0]["kind"] == "pretrain"], "frozen")

    def ablation_table(self) -> list[str]:
        """One row a recipe that changes one thing of another: change against that one, on the seeds of both."""
        pairs = {name: runs[0].get("like", "") for name, runs in self.by_recipe.items()}
        bases = [base for base in dict.fromkeys(pairs.values()) if base in self.by_recipe]
        lines: list[str] = []
        for base in bases:
            lines += ["", f"Against `{base}`:", ""]
            lines += self._changes([name for name, like in pairs.items() if like == base], base)
        return lines[1:]

    def _changes(self, names: list[str], base: str) -> list[str]:
        titles = [COLUMNS[score] for score in CHANGES]
        lines = ["| recipe | what it is | seeds | " + " | ".join(titles) + " |", "|---" * (3 + len(titles)) + "|"]
        for name in names:
            runs = self.by_recipe[name]
            facts = [f"| {name}", runs[0]["about"], str(len(runs))]
            lines.append(" | ".join([*facts, *(self.change(name, score, base) for score in CHANGES)]) + " |")
        return lines

    def external_table(self) -> list[str]:
        """OCTDL, which has no safe patient numbers: no intervals."""
        lines = ["| recipe | k-NN, k = 5 | probe |", "|---|---|---|"]
        for name, runs in self.by_recipe.items():
            cells = [np.mean([r["scores"][f"external_{s}"]["value"] for r in runs]) for s in ("knn_5", "probe")]
            seen = "octdl-subset" in runs[0]["unlabelled"]
            lines.append(f"| {name}{' (has seen these scans)' if seen else ''} | {cells[0]:.1f} | {cells[1]:.1f} |")
        return lines

    def fluid_table(self) -> list[str]:
        """Average precision of CLS attention on fluid, the head chosen on the other subjects."""
        judged = {name: [run for run in runs if "fluid" in run] for name, runs in self.by_recipe.items()}
        judged = {name: runs for name, runs in judged.items() if runs}
        if not judged:
            return []
        subjects = np.array(next(iter(judged.values()))[0]["fluid"]["subjects"])
        bootstrap = PatientBootstrap(subjects)

        def of(name: str, pick: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            return np.mean([pick(np.array(run["fluid"]["precision"])) for run in judged[name]], axis=0)

        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "best head": lambda s: chosen_on_others(s[:, :, :-1].reshape(len(s), -1), subjects),
            "best head of the last block": lambda s: chosen_on_others(s[:, -1, :-1], subjects),
            "mean of the last block's heads": lambda s: s[:, -1, -1],
        }
        lines = ["| map | average precision % | change against frozen |", "|---|---|---|"]
        for name in judged:
            for way, pick in ways.items():
                values = of(name, pick)
                change = "–"
                if name != "frozen" and "frozen" in judged:
                    change = bootstrap.mean(values - of("frozen", pick), Scale.DIFFERENCE).words(signed=True)
                lines.append(f"| {name}: {way} | {bootstrap.mean(values, Scale.PERCENT).words()} | {change} |")
            for method in judged[name][0]["fluid"]["maps"]:
                values = self._maps(judged[name], method)
                change = "–"
                if name != "frozen" and "frozen" in judged:
                    before = self._maps(judged["frozen"], method)
                    change = bootstrap.mean(values - before, Scale.DIFFERENCE).words(signed=True)
                lines.append(f"| {name}: {method} | {bootstrap.mean(values, Scale.PERCENT).words()} | {change} |")
        others = EVIDENCE / "fluid_controls.json"
        for name, values in json.loads(others.read_text()).items() if others.is_file() else ():
            lines.append(f"| {name} | {bootstrap.mean(np.array(values), Scale.PERCENT).words()} | |")
        return lines

    @staticmethod
    def _maps(runs: list[dict[str, Any]], method: str) -> np.ndarray:
        return np.mean([run["fluid"]["maps"][method] for run in runs], axis=0)


def write_tables() -> None:
    """Put the tables between the markers of docs/evidence.md and of the README."""
    results = Results()
    for page, names in {
        REPOSITORY / "docs" / "evidence.md": ("change", "ablation", "accuracy", "external", "fluid"),
        REPOSITORY / "README.md": ("summary",),
    }.items():
        text = page.read_text()
        for name in names:
            table = "\n".join(getattr(results, f"{name}_table")())
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
        write_whole(page, text)


def main(options: Options) -> None:
    """Train, judge, write the tables."""
    if options.recipes:
        judge = Judge(options)
        split = {"patients": np.unique(judge.patients[judge.splits["test"]], return_inverse=True)[1].tolist()}
        split |= {name: [len(p), len(set(judge.patients[p]))] for name, p in judge.splits.items()}
        write_result(EVIDENCE / "split.json", split)
        for name in options.recipes:
            for seed in options.seeds:
                judge_run(judge, read_recipe(name), seed, options)
        if options.fluid and not (EVIDENCE / "fluid_controls.json").is_file():
            of_maps = controls(read_fluid(options.scans / "duke-dme"))
            write_result(EVIDENCE / "fluid_controls.json", {k: v.round(2).tolist() for k, v in of_maps.items()})
    write_tables()


if __name__ == "__main__":
    run_command(main, Options)
