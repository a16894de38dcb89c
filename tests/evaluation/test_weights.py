"""What evaluations say of the weights that they judge, and of controls that cannot differ."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import FEW_PHANTOMS

from dino_oct.features import unit
from dino_oct.models.backbone import load_backbone, open_layer_scales, save_export
from dino_oct.models.frozen import load_frozen
from evaluation.inputs.feature_cache import of_network
from evaluation.inputs.features import same_for_all
from evaluation.inputs.model import open_model, random_control
from evaluation.inputs.sources import open_source
from evaluation.maps.randomisation import fresh_weights

CPU = torch.device("cpu")
SCALED = {
    "vit_small_patch14_dinov2": {"img_size": 56, "embed_dim": 48, "depth": 4, "num_heads": 3},
    "vit_small_patch16_dinov3": {"img_size": 64, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "cait_xxs24_224": {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
}


def scans(side):
    """Images as different as scans are, (12, 1, side, side) uint8."""
    blobs = torch.rand(12, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return (255 * torch.nn.functional.interpolate(blobs, size=(side, side), mode="bilinear")).byte()


@pytest.mark.parametrize("name", SCALED)
def test_the_random_control_tells_scans_apart(name, tmp_path):
    torch.manual_seed(0)
    trained = load_backbone(f"random:{name}", model_args=SCALED[name], seed=3)
    with torch.no_grad():
        for parameter in trained.parameters():  # as if trained: scales of 1e-5 would be gone
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_export(trained, tmp_path)
    model = open_model(open_source(str(tmp_path)))
    control = random_control(model, 0)
    side = SCALED[name].get("img_size", 64)
    features = of_network(control.model, CPU).extract(scans(side))
    assert same_for_all("random weights", [features]) == ""
    assert np.ptp(unit(features), axis=0).max() > 0.01
    untouched = of_network(load_frozen(f"random:{name}", CPU, model_args=SCALED[name]), CPU).extract(scans(side))
    if name != "convnext_atto":  # whose scales leave the rest of the network to differ
        assert "all scans have the same features, so this row says nothing" in same_for_all("x", [untouched])

    fresh = fresh_weights(model.model, 0)
    scales = [t for key, t in fresh.items() if "gamma" in key]
    assert scales
    assert all((tensor == 1).all() for tensor in scales)


def test_only_scales_of_branches_are_opened():
    for name in ("resnet18", "swinv2_tiny_window8_256", "vit_tiny_patch16_224", "xcit_nano_12_p16_224"):
        model = timm.create_model(name, num_classes=2)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        open_layer_scales(model)
        changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
        assert all(key.rsplit(".", 1)[-1].startswith("gamma") for key in changed), changed


def test_a_row_that_says_nothing_is_said_to(call, tmp_path):
    """Random DINOv2 weights as timm starts them, judged beside their random control."""
    args = SCALED["vit_small_patch14_dinov2"]
    state = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **args).state_dict()
    torch.save(state, tmp_path / "new.pth")
    shared = ["--model", tmp_path / "new.pth", "--heads", 3, "--data", "phantom", *FEW_PHANTOMS, "--bootstrap", 0,
              "--out", tmp_path / "out"]  # fmt: skip
    note = "note: model: all scans have the same features, so this row says nothing"
    for script, more in (("knn", ["--k", 1]), ("embedding_map", ["--seeds", 1])):
        finished = call(f"evaluation/{script}.py", *shared, *more)
        assert finished.returncode == 0, finished.stderr
        assert note in finished.stdout
        assert "random weights: all scans" not in finished.stdout
        assert f"{len(state)} tensors loaded, 0 missing, 0 unexpected" in finished.stdout


def test_what_was_loaded_is_said_and_written(call, tmp_path):
    model = timm.create_model("resnet18", num_classes=5, layers=[1, 1, 1, 1])
    file = tmp_path / "net.pth"
    torch.save({"state_dict_ema": {f"module.{key}": t for key, t in model.state_dict().items()}}, file)
    finished = call(
        "evaluation/knn.py", "--model", f"timm:resnet10t@{file}", "--data", "phantom", *FEW_PHANTOMS, "--k", 1,
        "--bootstrap", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert finished.returncode == 2
    assert "in the file and" in finished.stderr
    model = timm.create_model("resnet10t", num_classes=5)
    torch.save({"state_dict_ema": {f"module.{key}": t for key, t in model.state_dict().items()}}, file)
    source = f"timm:resnet10t@{file}"
    finished = call(
        "evaluation/knn.py", "--model", source, "--data", "phantom", *FEW_PHANTOMS, "--k", 1, "--bootstrap", 0,
        "--image-size", 64, 64, "--out", tmp_path / "out",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    reports = [line for line in finished.stdout.splitlines() if "tensors loaded, 0 missing, 0 unexpected" in line]
    assert len(reports) == 1
    assert "taken: state_dict_ema.module" in finished.stdout
    assert all(len(line) <= 80 for line in reports)
    weights = json.loads((tmp_path / "out" / "knn_test.json").read_text())["weights"]["model"]
    assert weights["file"] == str(file)
    assert weights["loaded"].endswith("classifier left out; taken: state_dict_ema.module")
