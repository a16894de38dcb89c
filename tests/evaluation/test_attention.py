"""Attention maps: their masks and spread, and the command as a user runs it."""

import json
import subprocess

import numpy as np
import pytest
import torch
from conftest import REAL_SCANS, REFERENCE, REPOSITORY, TINY_RUN
from PIL import Image

from dino_oct.cli import parse_options, read_settings, write_settings
from dino_oct.config import TrainConfig
from dino_oct.errors import InputError
from dino_oct.models.attention import cls_attention
from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.models.frozen import load_frozen
from dino_oct.models.network import normalise
from dino_oct.pictures import fit_short_side
from evaluation import attention
from evaluation.inputs import selection
from evaluation.scores.attention import mass_mask, spread

CPU = torch.device("cpu")
TINY_FILE = ["--model", str(REFERENCE / "backbone_final.pth"), "--heads", "3"]


@pytest.fixture
def run(tmp_path, cache_root, monkeypatch):
    """A folder as a finished tiny run leaves it; its final weights are other random ones than those at its start."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    config = parse_options(TrainConfig, TINY_RUN[2:], read_settings(TrainConfig, REPOSITORY / TINY_RUN[1]))
    folder = tmp_path / "tiny"
    for seed, part in enumerate(("checkpoints/start", "export")):
        args = {"patch_size": 8, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
        save_export(load_backbone("random:vit_tiny_patch16_224", model_args=args, seed=seed), folder / part)
    write_settings(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


@pytest.fixture
def scan_file(tmp_path):
    """A wide scan without class or patient: a bright band on noise."""
    scan = np.random.default_rng(0).integers(0, 60, (64, 96), dtype=np.uint8)
    scan[28:40] += 150
    Image.fromarray(scan).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def refused(args: list[object]) -> str:
    """The one line that a wrong command line ends with."""
    with pytest.raises(InputError) as error:
        attention.main(parse_options(attention.Options, [str(arg) for arg in args]))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("mass", [0.05, 0.6, 0.9, 1.0])
def test_a_mask_holds_the_mass_with_as_few_patches_as_can_be(mass):
    maps = np.random.default_rng(0).dirichlet(np.full(35, 0.3), 20).reshape(20, 5, 7).astype(np.float32)
    for values, mask in zip(maps.astype(np.float64), mass_mask(maps, mass), strict=True):
        total = values.sum()
        assert values[mask].sum() >= mass * total * (1 - 1e-12)
        # No smaller set can do: even the largest values, one fewer, hold less.
        assert np.sort(values.ravel())[::-1][: mask.sum() - 1].sum() < mass * total


def test_a_mask_by_hand():
    attention_map = np.array([[[0.1, 0.4], [0.2, 0.1]]])  # 80 % of the mass on patches, the rest on CLS
    assert mass_mask(attention_map, 0.5).tolist() == [[[False, True], [False, False]]]
    assert mass_mask(attention_map, 0.6).tolist() == [[[False, True], [True, False]]]
    assert mass_mask(attention_map, 1.0).all()
    assert mass_mask(np.full((1, 2, 5), 0.1), 0.55).sum() == 6


def test_spread_of_known_maps():
    uniform, peak, half = np.full((3, 4), 1 / 12), np.zeros((3, 4)), np.zeros((3, 4))
    peak[1, 2] = 0.7
    half[:, :2] = 1 / 12
    measures = spread(np.stack([uniform, peak, half, np.zeros((3, 4))]), 0.6)
    assert measures[:, 0] == pytest.approx([1, 0, np.log(6) / np.log(12), np.nan], nan_ok=True)
    assert measures[:3, 1] == pytest.approx([8 / 12, 1 / 12, 4 / 12])
    assert measures[:, 2] == pytest.approx([0, 0.3, 0.5, 1])


def test_scans_take_turns_through_classes_and_patients():
    labels = np.array([0, 0, 0, 1, 1, 0, 1])
    patients = np.array(["1", "1", "2", "3", "3", "1", "4"])
    positions = np.arange(7)
    assert selection.take_turns(positions, labels, patients, 4) == [0, 3, 2, 6]
    assert selection.take_turns(positions, labels, patients, 99) == [0, 3, 2, 6, 1, 4, 5]
    assert selection.take_turns(positions[2:4], labels, patients, 8) == [2, 3]
    assert selection.take_turns(positions[:0], labels, patients, 8) == []


def test_a_run_is_shown_beside_its_start(run, capsys):
    args = ["--model", str(run), "--bootstrap", "200"]
    for n in ("2", "5"):  # the second time over earlier results
        attention.main(parse_options(attention.Options, [*args, "--n", n]))
    printed = capsys.readouterr().out
    for words in ("PHANTOMS: synthetic scans", "entropy / ln N", "% of patches for 60 % of mass", "% on CLS", "sha256",
                  "mean of heads", "test split · 5 scans of 4 patients", "4 patients are few"):  # fmt: skip
        assert words in printed, printed
    folder = run / "evaluation" / "attention"
    result = json.loads((folder / "attention.json").read_text())
    assert result["settings"]["size"] == 32  # the run's monitor.attention_size
    assert list(result["rows"]) == ["model", "start"]
    assert list(result["rows"]["model"]) == ["head 0", "head 1", "mean of heads"]
    assert result["weights"]["model"]["sha256"] != result["weights"]["start"]["sha256"]
    assert [scan["class"] for scan in result["scans"]] == ["CNV", "DME", "DRUSEN", "NORMAL", "CNV"]
    arrays = np.load(folder / "attention.npz")
    entropies = []
    for scan in result["scans"]:
        model, start = (arrays[f"{scan['key']}_{which}"] for which in ("model", "start"))
        assert model.shape == start.shape == (2, *scan["patches"])
        assert not np.allclose(model, start)
        assert np.array_equal(arrays[f"{scan['key']}_model_mask"][:2], mass_mask(model, 0.6))
        entropies.append(spread(model, 0.6)[0, 0])
        with Image.open(folder / scan["page"]) as page:
            assert min(page.size) > 700
    entropy = result["rows"]["model"]["head 0"]["entropy"]
    assert entropy["point"] == pytest.approx(np.mean(entropies))
    assert entropy["low"] <= entropy["point"] <= entropy["high"]
    assert len(list((folder / "tensorboard").glob("events.*"))) == 1


def test_one_file_without_labels_gives_what_cls_attention_gives(scan_file, tmp_path, capsys):
    """Also: a scan that is not square, a block that is not the last, and weights that have no start."""
    args = [scan_file, *TINY_FILE, "--size", 64, "--block", 0, "--out", tmp_path / "out"]
    attention.main(parse_options(attention.Options, list(map(str, args))))
    printed = capsys.readouterr().out
    for words in ("image files · 1 scan of 1 patient", "block 0 of 0…", "no interval", "no row for starting weights"):
        assert words in printed, printed
    assert "95 % interval" not in printed
    assert "PHANTOM" not in printed
    backbone = load_frozen(TINY_FILE[1], CPU, heads=3)
    with Image.open(scan_file) as image:
        grey = fit_short_side(np.asarray(image), 64, 8)
    expected = cls_attention(backbone, normalise(grey[None], backbone), 0)[0].numpy()
    arrays = np.load(tmp_path / "out" / "attention.npz")
    assert set(arrays) == {"scan0_image", "scan0_model", "scan0_model_mask"}
    np.testing.assert_allclose(arrays["scan0_model"], expected, atol=1e-6)
    assert arrays["scan0_model"].shape == (3, 8, 12)
    assert not np.allclose(expected, cls_attention(backbone, normalise(grey[None], backbone))[0].numpy())
    assert (tmp_path / "out" / "01_scan.png").is_file()


def test_white_borders_are_neutralised_as_in_the_cache(scan_file):
    with Image.open(scan_file) as image:
        scan = np.array(image)
    scan[:, :20] = 255
    Image.fromarray(scan).save(scan_file)
    data = selection.DatasetConfig()
    assert selection.read_scan(str(scan_file), data)[0].scan[:, :16].max() < 240
    data.neutralise_borders = False
    assert np.array_equal(selection.read_scan(str(scan_file), data)[0].scan, scan)


def test_a_real_scan(tmp_path, capsys):
    files = sorted(REAL_SCANS.glob("oct2017-sample/test/DME/*.jpeg"))
    if not files:
        pytest.skip("no ../shared/data/oct2017-sample: real scans are not part of the repository")
    args = [files[0], *TINY_FILE, "--size", "96", "--out", tmp_path]
    attention.main(parse_options(attention.Options, list(map(str, args))))
    row = json.loads((tmp_path / "attention.json").read_text())["rows"]["model"]["head 0"]
    assert 0.2 < row["entropy"]["point"] < 1
    assert "note: one patient only" in capsys.readouterr().out


def test_wrong_use_exits_with_status_2(call, scan_file):
    finished: subprocess.CompletedProcess = call("evaluation/attention.py", scan_file, *TINY_FILE, "--block", 99)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    assert finished.stderr.strip() == f"error: {TINY_FILE[1]}: block 99: the model has 3 blocks; give -3 to 2"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.png"], "nowhere.png: no such file"),
        (["--block", "-99"], "block -99: the model has"),
        (["--size", "8"], "attention-size 8: must hold two patches of 8 px"),
        (["--size", "0"], "--attention-size 0: must be from 1"),
        (["--mass", "0"], "--mass 0.0: must be above 0"),
        (["--mass", "1.5"], "--mass 1.5: must be above 0 and at most 1"),
        (["--mass", "nan"], "--mass nan: must be above 0"),
        (["--n", "0"], "--n 0: must be from 1"),
        (["--split", "all"], "split"),
        ([], "give --data DIR"),
    ],
)
def test_wrong_settings_are_one_line(args, message):
    assert message in refused([*args, *TINY_FILE])


def test_wrong_files_and_models_are_one_line(scan_file):
    assert "no CLS token" in refused([scan_file, "--model", "random:resnet18"])
    assert "--data" in refused([scan_file, *TINY_FILE, "--data", scan_file.parent])
    scan_file.write_bytes(b"no image")
    assert "scan.png: not an image" in refused([scan_file, *TINY_FILE])
