"""Every step that a comparison keeps is found by all that it depends on: each input is changed, and the key with it.

(The scan cache's key is tested in tests/data/test_cache.py, the feature cache's in test_feature_cache.py.)
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from dino_oct.data.phantom import phantom_folder
from dino_oct.errors import InputError
from dino_oct.provenance import TrainedPatients
from evaluation.config import ComparisonOptions as Options
from evaluation.config import DataOptions, DatasetOptions
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import read_run
from evaluation.inputs.steps import StepCache
from evaluation.report.answers import ask
from evaluation.report.cases import show_scans
from evaluation.report.embedding import embedding
from evaluation.report.findings import warnings
from evaluation.report.label_errors import suspects
from evaluation.report.leaderboard import leaderboard
from evaluation.report.models import open_candidates
from evaluation.report.scans import ShownScans
from evaluation.report.steps import SPLITS, Setting, data_digest
from evaluation.report.table import Intervals, score

LONG = ("leaderboard", "maps", "audit", "embedding", "suspects")  # only their keys are wanted
EVERY = {
    "knn",
    "linear",
    "classifier",
    "facts",
    "resamples",
    "audit",
    "suspects",
    "embedding",
    "leaderboard",
    "logits",
    "maps",
}
OF_MODEL = EVERY - {"audit", "resamples"}  # resamples take the model's answers


class Keys(StepCache):
    """A cache that notes the key of every step, and does not make the long ones."""

    def __init__(self, folder):
        super().__init__(folder)
        self.keys: dict[str, str] = {}

    def arrays(self, step, make, **identity):
        kind = step.split()[0]
        self.keys.setdefault(kind, "")
        self.keys[kind] += json.dumps({**self.identity, "step": step, **identity}, sort_keys=True, default=str)
        if kind in LONG:
            raise InputError("only the key is wanted")
        return super().arrays(step, make, **identity)


@pytest.fixture(scope="module")
def original(trained, tmp_path_factory, cache_root):
    """Scans that are no phantoms to the program, with masks and layers, and a run whose copy is changed."""
    folder = tmp_path_factory.mktemp("keys")
    phantoms = phantom_folder(read_run(trained).phantom, cache_root)
    for name in ("train", "val", "test", "masks"):
        shutil.copytree(phantoms / name, folder / "scans" / name)
    shutil.copy(phantoms / "layers.npz", folder / "scans")
    shutil.copytree(trained, folder / "run")
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "copy"))


def keys(folder: Path, **changed) -> dict[str, str]:
    """Step → key of a comparison of the run with its own start, whatever of it can be asked for."""
    given = {"k": (3,), "leaderboard": 2, "cases": 2, "bootstrap": 20, "methods": ("attention", "gradcam")}
    values = {"lesion_values": (255,), "retina_values": (128,)}
    dataset = DatasetOptions(split="official", max_side=changed.pop("max_side", None))
    options = Options(models=("x",), **{**given, **values, **changed})
    data = open_data(None, DataOptions(data=str(folder / "scans"), dataset=dataset), lambda text: None)
    cache = Keys(folder.parent / "steps")
    shared = Setting(data, cache, options)
    models = open_candidates([str(folder / "run")], shared)
    answers = {key: ask(model, shared) for key, model in models.items()}
    for of_model in answers.values():
        score(of_model, Intervals(shared), shared)
    for step in (
        lambda: warnings(models, shared),
        lambda: suspects(answers, shared, ShownScans(shared)),
        lambda: embedding(models, shared),
        lambda: leaderboard(models, shared),
    ):
        try:
            step()
        except InputError as reason:
            assert "only the key" in str(reason)  # noqa: PT017
    show_scans(shared.positions["test"][: options.cases].tolist(), models, {}, shared, None)
    assert set(cache.keys) == EVERY
    return cache.keys


def edit_scan(folder: Path) -> None:
    file = sorted((folder / "scans" / "train").rglob("*.jpeg"))[3]
    scan = np.asarray(Image.open(file)).copy()
    scan[:20] //= 2
    Image.fromarray(scan).save(file, "JPEG")


def edit_mask(folder: Path) -> None:
    file = max((folder / "scans" / "masks" / "test").rglob("*.png"), key=lambda f: np.asarray(Image.open(f)).sum())
    values = np.asarray(Image.open(file)).copy()
    values[values == 255] = 128
    values[20, 20] = 255
    Image.fromarray(values).save(file)


def edit_layers(folder: Path) -> None:
    file = folder / "scans" / "layers.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    np.savez(file, **{**arrays, "rows": arrays["rows"] + 1})


def rename_class(folder: Path) -> None:
    for split in SPLITS:
        (folder / "scans" / split / "NORMAL").rename(folder / "scans" / split / "ZERO")


def move_label(folder: Path) -> None:
    file = sorted((folder / "scans" / "train" / "CNV").glob("*.jpeg"))[0]
    file.rename(folder / "scans" / "train" / "DME" / file.name)


def add_damaged(folder: Path) -> None:
    (folder / "scans" / "train" / "CNV" / "CNV-999-1.jpeg").write_bytes(b"no image")


def edit_weights(which: str):
    def edit(folder: Path) -> None:
        file = folder / "run" / which / "backbone.safetensors"
        tensors = load_file(file)
        tensors["norm.bias"] = tensors["norm.bias"] + 0.01
        save_file(tensors, file)

    return edit


def edit_export(name: str, value):
    def edit(folder: Path) -> None:
        file = folder / "run" / "export" / "config.json"
        config = json.loads(file.read_text())
        places = {"mean": config["pretrained_cfg"], "norm_eps": config}
        place = places.get(name, config["model_args"])
        place[name] = value
        file.write_text(json.dumps(config))

    return edit


def edit_run(name: str, value):
    def edit(folder: Path) -> None:
        file = folder / "run" / "config.yaml"
        settings = yaml.safe_load(file.read_text())
        settings["monitor"][name] = value
        file.write_text(yaml.safe_dump(settings))

    return edit


CHANGES = {
    "a scan's pixels": (edit_scan, EVERY),
    "a class's name": (rename_class, EVERY),
    "a scan's class": (move_label, EVERY),
    "a file that is left out": (add_damaged, {"audit"}),
    "a mask's pixels": (edit_mask, {"leaderboard"}),
    "the layers": (edit_layers, {"leaderboard"}),
    "the weights": (edit_weights("export"), OF_MODEL | {"resamples"}),
    "the weights before training": (edit_weights("checkpoints/start"), {"leaderboard"}),
    "the normalisation": (edit_export("mean", [0.3, 0.3, 0.3]), OF_MODEL),
    "the eps of the norms": (edit_export("norm_eps", 1e-3), OF_MODEL),
    "the number of heads": (edit_export("num_heads", 4), OF_MODEL),
    "the image size": (edit_run("image_size", [24, 24]), OF_MODEL),
    "the attention size": (edit_run("attention_size", 40), {"leaderboard", "maps"}),
}
SETTINGS = {
    "k": ((4,), {"knn", "resamples"}),
    "temperature": (0.2, {"knn", "resamples"}),
    "methods": (("attention", "occlusion"), {"leaderboard", "maps"}),
    "leaderboard": (1, {"leaderboard"}),
    "cases": (3, {"logits", "maps"}),
    "bootstrap": (30, {"leaderboard", "resamples"}),
    "seed": (5, {"leaderboard", "resamples", "embedding"}),
    "lesion_values": ((128, 255), {"leaderboard"}),
    "retina_values": ((), {"leaderboard"}),
    "max_side": (48, EVERY),
}


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {step for step in EVERY if before[step] != after[step]}


@pytest.fixture
def before(folder):
    return keys(folder)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_on_disk_changes_the_steps_that_read_it(change, folder, before):
    edit, steps = CHANGES[change]
    assert differing(before, keys(folder)) == set()
    edit(folder)
    assert differing(before, keys(folder)) >= steps


@pytest.mark.parametrize("name", SETTINGS)
def test_whatever_is_asked_differently_is_another_step(name, folder, before):
    value, steps = SETTINGS[name]
    if name == "lesion_values":
        before = keys(folder, retina_values=())
        assert differing(before, keys(folder, retina_values=(), lesion_values=value)) >= steps
    else:
        assert differing(before, keys(folder, **{name: value})) >= steps


def test_the_digest_of_data_is_of_every_part(folder):
    data = open_data(
        None, DataOptions(data=str(folder / "scans"), dataset=DatasetOptions(split="official")), lambda text: None
    )
    index, scans = data.index, data.scans
    first = data_digest(data)
    digests = {first}
    for name in ("labels", "patients", "splits", "folder_splits"):
        column = getattr(index, name).copy()
        column[0] = column[-1] if column[0] != column[-1] else (1 if name == "labels" else "val")
        digests.add(data_digest(dataclasses.replace(data, index=dataclasses.replace(index, **{name: column}))))
    texts = {"notes": ("x",), "mislabelled": ("x",), "class_names": ("A", "B", "C", "D"), "split_rule": "x"}
    for name, value in {**texts, "left_out": (("x", "y"),)}.items():
        digests.add(data_digest(dataclasses.replace(data, index=dataclasses.replace(index, **{name: value}))))
    for name in ("border", "brightness", "tissue", "original_sizes"):
        kept = getattr(scans, name)
        setattr(scans, name, np.array(kept) + 1)
        digests.add(data_digest(data))
        setattr(scans, name, kept)
    for provenance in (
        TrainedPatients(frozenset(), True),
        TrainedPatients(frozenset({"1"}), True),
        TrainedPatients(frozenset(), True, ("x",)),
    ):
        digests.add(data_digest(dataclasses.replace(data, provenance=provenance)))
    digests.add(data_digest(dataclasses.replace(data, notes=("y",))))
    assert data_digest(data) == first
    assert len(digests) == 1 + 4 + 5 + 4 + 3 + 1
