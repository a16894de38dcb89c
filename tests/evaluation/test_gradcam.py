"""Grad-CAM: the library's values on a CNN, every family of the zoo pointing at the evidence, and the command."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FEW_PHANTOMS
from PIL import Image
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.convmixer import ConvMixer

from dino_oct.cli import parse_options
from dino_oct.errors import InputError
from dino_oct.models.classifier import Classifier
from evaluation import gradcam as command_line
from evaluation.maps.cam import gradcam
from supervised.architectures import build

METHODS = ("gradcam", "gradcam++", "hirescam", "eigencam")
SIDE, SQUARE = 64, 14
VIT = {"patch_size": 8, "img_size": SIDE, "embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES = {
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)},
    "vit_tiny_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    # Windows of 2 tokens stay in their quadrant, so evidence cannot wander off.
    "swin_tiny_patch4_window7_224": {
        "img_size": SIDE, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1), "num_heads": (1, 2, 4)
    },
    # At the usual stride its receptive field holds the whole image.
    "tf_efficientnetv2_b0": {"channel_multiplier": 0.25, "depth_multiplier": 0.1, "output_stride": 8},
    "convmixer": {},
}  # fmt: skip


def network(name: str) -> Classifier:
    """A small classifier of two classes."""
    torch.manual_seed(0)
    if name == "convmixer":  # timm's variants are large and take no other sizes
        model = ConvMixer(dim=32, depth=2, kernel_size=5, patch_size=4, num_classes=2)
        model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        return Classifier(model, name, name, (SIDE, SIDE), "head")
    classifier = build(name, 2, image_size=(SIDE, SIDE), pretrained=False, model_args=FAMILIES[name])
    if getattr(classifier.model, "cls_token", None) is not None:
        # A CLS token that is small beside what it reads is scaled up by the final norm, which leaves its direction
        # only: the gradient at a sure answer is then about anything but the evidence, and the map's sign is chance.
        torch.nn.init.normal_(classifier.model.cls_token, std=3)
    return classifier


def squares(generator: torch.Generator, quadrants: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Noise, with a bright square somewhere in a quadrant (0 to 3 in reading order) where ``present``."""
    grey = 0.4 + 0.06 * torch.randn(len(present), 1, SIDE, SIDE, generator=generator)
    for image, quadrant, there in zip(grey, quadrants.tolist(), present.tolist(), strict=True):
        top, left = torch.randint(2, SIDE // 2 - SQUARE - 2, (2,), generator=generator).tolist()
        top, left = top + quadrant // 2 * SIDE // 2, left + quadrant % 2 * SIDE // 2
        image[:, top : top + SQUARE, left : left + SQUARE] += 0.4 * there
    return grey.clamp(0, 1)


def train_on_squares(classifier: Classifier, generator: torch.Generator) -> None:
    """Until the network tells images with a square from those without."""
    optimizer = torch.optim.AdamW(classifier.model.parameters(), lr=2e-3, weight_decay=0.01)
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # few steps: the running statistics must keep up
    classifier.model.train()
    good = 0
    for _ in range(200):
        present, quadrants = torch.arange(32) % 2, torch.randint(4, (32,), generator=generator)
        logits = classifier.model(classifier.prepare(squares(generator, quadrants, present)))
        loss = F.cross_entropy(logits, present, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        good = good + 1 if loss < 0.23 else 0  # the smoothed labels' entropy is 0.2
        if good == 6:
            return


def quadrant_mass(maps: np.ndarray) -> np.ndarray:
    """Share of each map's positive part in each quadrant, (B, 4)."""
    positive = torch.from_numpy(maps)[:, None].clamp_min(0)
    large = F.interpolate(positive, size=(SIDE, SIDE), mode="bilinear")[:, 0]
    mass = F.avg_pool2d(large[:, None], SIDE // 2).flatten(1)
    return (mass / mass.sum(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_points_at_the_only_evidence(family):
    """Wherever the square is: a map that is constant, mirrored, transposed or inverted fails."""
    # One training of Swin in five (seeds 0 to 4) leaves HiResCAM, which averages nothing, beside the square: that of 0.
    generator = torch.Generator().manual_seed(int(family.startswith("swin")))
    classifier = network(family)
    train_on_squares(classifier, generator)
    quadrants = torch.arange(16) % 4
    images = classifier.prepare(squares(generator, quadrants, torch.ones(16)))
    for method in METHODS[:3]:
        maps, logits = gradcam(classifier, images, torch.ones(16, dtype=torch.long), method)
        assert (logits.argmax(axis=1) == 1).all(), "the network has not learned the task"
        assert np.isfinite(maps).all()
        mass = quadrant_mass(maps)  # a map without positive values points nowhere
        right = np.isfinite(mass).all(axis=1) & (mass.argmax(axis=1) == quadrants.numpy())
        assert right.mean() >= 0.8, f"{method}: {right.mean():.2f} of the maps point at the square"


@pytest.mark.parametrize(
    ("method", "library"),
    list(zip(METHODS, (GradCAM, GradCAMPlusPlus, HiResCAM, EigenCAM), strict=True)),
)
def test_maps_of_a_cnn_are_the_librarys_before_it_normalises_them(method, library):
    classifier = build("resnet10t", 3, image_size=(96, 128), pretrained=False)
    classifier.model.eval()
    images = classifier.prepare(torch.rand(3, 1, 96, 128, generator=torch.Generator().manual_seed(0)))
    targets = torch.tensor([0, 2, 1])
    maps, logits = gradcam(classifier, images, targets, method)
    with library(classifier.model, [classifier.model.layer4[-1]]) as theirs:
        expected = theirs(images, [ClassifierOutputTarget(int(target)) for target in targets])
    assert maps.shape == (3, 3, 4)
    np.testing.assert_allclose(logits, classifier.model(images).detach(), atol=1e-5)
    for ours, theirs in zip(maps, expected, strict=True):
        # The library's eigencam leaves the sign to chance.
        signs = (1, -1) if method == "eigencam" else (1,)
        scaled = [scale_cam_image(scale_cam_image(np.maximum(sign * ours, 0)[None], (128, 96)))[0] for sign in signs]
        assert min(np.abs(ours - theirs).max() for ours in scaled) < 1e-4


def test_an_image_alone_has_the_map_it_has_in_a_batch_and_nothing_is_left_behind():
    classifier = build(
        "vit_tiny_patch16_224", 3, image_size=(64, 96), pretrained=False, model_args={**VIT, "img_size": 32}
    )
    images = classifier.prepare(torch.rand(4, 1, 64, 96, generator=torch.Generator().manual_seed(0)))
    maps, logits = gradcam(classifier, images)
    assert maps.shape == (4, 8, 12)  # not square, and not the size of the weights
    alone, _ = gradcam(classifier, images[2:3], torch.tensor([int(logits[2].argmax())]))
    np.testing.assert_allclose(maps[2], alone[0], atol=1e-6 * np.abs(maps).max())
    assert classifier.model.training
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    assert not any(module._forward_hooks for module in classifier.model.modules())
    assert torch.is_grad_enabled()


def test_no_classifier_and_wrong_classes_are_one_line():
    classifier = build("resnet10t", 2, image_size=(64, 64), pretrained=False)
    images = classifier.prepare(torch.rand(1, 1, 64, 64))
    with pytest.raises(InputError, match=r"class \[5\]: resnet10t has 2 classes"):
        gradcam(classifier, images, torch.tensor([5]))
    classifier.model.reset_classifier(0)
    with pytest.raises(InputError, match="resnet10t has no classifier"):
        gradcam(classifier, images)


def test_several_models_side_by_side(fitted, trained, cache_root, tmp_path, monkeypatch, capsys):
    """One without a classifier among them: it gets a probe."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    args = ["--model", str(fitted), "--beside", str(trained), "--n", "3", "--methods", "gradcam", "hirescam",
            "--target", "true", "--out", str(tmp_path)]  # fmt: skip
    command_line.main(parse_options(command_line.Options, args))
    printed = capsys.readouterr().out
    for words in ("PHANTOMS: synthetic scans", "own classifier", "linear probe (C ", "validation balanced accuracy"):
        assert words in printed, printed
    result = json.loads((tmp_path / "gradcam.json").read_text())
    arrays = np.load(tmp_path / "gradcam.npz")
    assert list(result["models"]) == [fitted.name, trained.name]
    for scan in result["scans"]:
        assert {facts["explained"] for facts in scan["models"].values()} == {scan["class"]}
        for name in result["models"]:
            for method in ("gradcam", "hirescam"):
                assert np.isfinite(arrays[f"{scan['key']}_{name}_{method}"]).all()
        with Image.open(tmp_path / scan["page"]) as page:
            assert min(page.size) > 500


def test_wrong_use_exits_with_status_2(call, fitted):
    finished = call("evaluation/gradcam.py", "--model", fitted, "--target", "AMD", *FEW_PHANTOMS)
    assert finished.returncode == 2
    assert finished.stderr.strip().splitlines() == [f"error: class AMD: {fitted.name} has CNV, DME, DRUSEN, NORMAL"]


def test_files_without_a_class_have_no_true_one(fitted, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 90, (64, 96), dtype=np.uint8)).save(tmp_path / "scan.png")
    args = [str(tmp_path / "scan.png"), "--model", str(fitted), "--out", str(tmp_path / "out")]
    command_line.main(parse_options(command_line.Options, args))
    assert (tmp_path / "out" / "01_scan.png").is_file()
    for more, message in (
        (["--target", "true"], "scan.png: its class is not known"),
        (["--methods", "gradcam", "gradcam"], "must name each once"),
        (["--beside", str(fitted)], "given twice"),
        (["--n", "0"], "--n 0: must be from 1"),
    ):
        with pytest.raises(InputError, match=message):
            command_line.main(parse_options(command_line.Options, [*args, *more]))
