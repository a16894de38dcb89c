"""The zoo: every architecture of the paper builds and learns, and its layers are what they are said to be."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from dino_oct.cli import parse_options
from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.models.layers import embed
from dino_oct.models.trainable import parameter_groups, set_trainable
from evaluation.config import ClassTargetOptions
from evaluation.inputs.model import as_classifier, open_model
from evaluation.inputs.sources import open_source
from supervised.architectures import build, find, overview
from supervised.config import ZooOptions
from supervised.paper import PAPER

# One small network of every family, hybrids and registers included.
VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
FAMILIES = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]},
    "tf_efficientnetv2_b0": {"channel_multiplier": 0.25, "depth_multiplier": 0.5},
    "convmixer_768_32": {},  # timm fixes its width and depth
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 32]},
    "vit_tiny_patch16_224": VIT,
    "vit_tiny_r_s16_p8_224": {**VIT, "patch_size": 2},
    "vit_small_patch14_reg4_dinov2": VIT,
    "vit_small_patch16_dinov3": {**VIT, "embed_dim": 96},
    "deit_tiny_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": {"depths": [1, 2], "embed_dim": 24, "num_heads": [2, 4]},
}
SIZE = {"vit_small_patch14_reg4_dinov2": (56, 84)}  # (64, 96) for the others
family = pytest.mark.parametrize("name", FAMILIES)


def small(name, scale=1, **options):
    rows, columns = SIZE.get(name, (64, 96))
    return build(f"random:{name}", 4, image_size=(scale * rows, scale * columns), model_args=FAMILIES[name], **options)


def scans(classifier, n=3, seed=0):
    grey = torch.randint(0, 256, (n, 1, *classifier.input_size), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return classifier.prepare(grey)


def step(classifier, lr=0.1):
    """One step of plain SGD; returns the loss."""
    images = scans(classifier)
    loss = F.cross_entropy(classifier.model(images), torch.arange(len(images)) % 2)
    loss.backward()
    torch.optim.SGD([p for p in classifier.model.parameters() if p.requires_grad], lr=lr).step()
    return loss.item()


@pytest.mark.parametrize("name", PAPER)
def test_every_architecture_of_the_paper_builds_and_steps(name):
    """At its real width and depth on 64 × 64 scans, without a download. Transformers that have
    the blocks of one before them (ViT-large/16's, or their 224 px twin's) with fewer."""
    args = {}
    if name.endswith("384") or name in ("ViT-large/32-224", "DeiT-III-large-224"):
        args = {"depths": (1, 1, 2, 1)} if name.startswith("Swin") else {"depth": 2}
    classifier = build(name, 4, image_size=(64, 64), pretrained=False, model_args=args)
    assert (classifier.name, classifier.timm_name, classifier.model.training) == (name, PAPER[name].split(".")[0], True)
    before = next(classifier.model.parameters()).detach().clone()
    assert np.isfinite(step(classifier, lr=1.0))
    assert not torch.equal(before, next(classifier.model.parameters()))
    assert classifier.model.get_submodule(classifier.embedding_layer).out_features == 4


def test_weights_of_every_name_exist_and_are_for_the_table():
    assert set(PAPER.values()) <= set(timm.list_pretrained())
    text, _, _ = overview(parse_options(ZooOptions, ["--filter", "resnet"]).names()).partition("\n\n")
    lines = {line.split()[0]: line.split() for line in text.splitlines()[2:]}
    assert set(lines) == {"ResNet18", "ResNet50", "ResNet101", "ResNet152"}
    assert lines["ResNet50"][1:] == ["resnet50.a1_in1k", "23.5", "224", "224", "2048", "fc", "layer4.2", "NCHW"]
    with pytest.raises(InputError, match="--filter lenet: no such name among ResNet18"):
        parse_options(ZooOptions, ["--filter", "lenet"])


@family
def test_the_embedding_is_the_vector_before_the_classifier(name):
    classifier = small(name)
    classifier.model.eval()
    seen = []
    linear = classifier.model.get_submodule(classifier.embedding_layer)
    linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = scans(classifier)
    with torch.no_grad():
        logits, vector = classifier.model(images), embed(classifier.model, images)
    assert vector.shape == (3, classifier.model.num_features) or vector.shape == (3, classifier.model.head_hidden_size)
    torch.testing.assert_close(vector, seen[0])
    torch.testing.assert_close(vector @ linear.weight.T + linear.bias, logits)


@family
def test_the_gradcam_layer_has_maps_that_matter_everywhere(name):
    """Every position of the layer reaches the logits, and maps lie as the image does: rows are rows."""
    classifier = small(name)
    classifier.model.eval()
    layer, outputs = classifier.gradcam_layer, []
    module = classifier.model.get_submodule(layer.name)
    module.register_forward_hook(lambda module, args, output: outputs.append(output))
    images = scans(classifier)
    (gradient,) = torch.autograd.grad(classifier.model(images)[:, 1].sum(), outputs[0])
    maps = layer.to_maps(gradient, classifier.input_size)
    rows, columns = maps.shape[-2:]
    assert maps.ndim == 4
    assert rows < columns
    assert (maps.abs().sum(dim=1) > 0).all()


@family
def test_maps_lie_as_the_image_does(name):
    """A change in the lower right of the scan changes the layer most in the lower right of its maps."""
    classifier = small(name, scale=2)
    classifier.model.eval().double()  # what a random ConvMixer passes on of the change is below float32's rounding
    layer, outputs = classifier.gradcam_layer, []
    module = classifier.model.get_submodule(layer.name)
    module.register_forward_hook(lambda module, args, output: outputs.append(output))
    images = scans(classifier, n=1).double()
    changed = images.clone()
    rows, columns = classifier.input_size
    changed[..., rows * 3 // 4 :, columns * 3 // 4 :] += 5
    with torch.no_grad():
        classifier.model(images), classifier.model(changed)
    before, after = (layer.to_maps(output, classifier.input_size) for output in outputs)
    moved = (after - before).abs().sum(dim=1)[0]
    # Means of the quadrants in reading order: where one maximum lies depends on the weights.
    quadrants = torch.stack([part.mean() for half in moved.tensor_split(2) for part in half.tensor_split(2, dim=1)])
    assert int(quadrants.argmax()) == 3


def test_other_families_fall_back_on_their_last_feature_map():
    classifier = build("random:mobilenetv3_small_050", 2, image_size=(64, 96))
    assert (classifier.gradcam_layer.name, classifier.gradcam_layer.layout) == ("blocks.5", "NCHW")
    classifier = build("random:mixer_s32_224", 2)  # its last layer has tokens without a place
    assert classifier.model(scans(classifier)).shape == (3, 2)
    with pytest.raises(InputError, match=r"names no feature map for Grad-CAM; choose one that dino-oct zoo lists"):
        _ = classifier.gradcam_layer


@family
@pytest.mark.parametrize("part", ["head", 1])
def test_what_is_frozen_does_not_move(name, part):
    """Parameters and BatchNorm statistics stay as they are after a step, and nothing is dropped there."""
    drop = {} if name.startswith("convmixer") else {"drop_path": 0.5}
    classifier = small(name, **drop)
    set_trainable(classifier.model, part)
    classifier.model.train()
    learning = {n for n, p in classifier.model.named_parameters() if p.requires_grad}
    before = {n: tensor.detach().clone() for n, tensor in classifier.model.state_dict().items()}
    step(classifier)
    moved = {n for n, tensor in classifier.model.state_dict().items() if not torch.equal(tensor, before[n])}
    parameters = dict(classifier.model.named_parameters())
    assert f"{classifier.embedding_layer}.weight" in moved & learning
    assert {n for n in moved if n in parameters} <= learning
    if part == "head":
        assert moved == learning == {f"{classifier.embedding_layer}.weight", f"{classifier.embedding_layer}.bias"}
        images = scans(classifier)
        features = classifier.model.forward_features
        torch.testing.assert_close(features(images), features(images))  # stochastic depth is off
    else:
        assert 2 < len(learning) < len(parameters) / 1.5
        statistics = {n for n in moved if n not in parameters}
        owners = {n.rpartition(".")[0] for n in learning}
        assert {n.rpartition(".")[0] for n in statistics} <= owners

    set_trainable(classifier.model, "full")
    classifier.model.train()
    assert all(module.training for module in classifier.model.modules())
    assert all(p.requires_grad for p in classifier.model.parameters())


def test_parts_that_a_model_does_not_have():
    model = small("vit_tiny_patch16_224").model
    for part, message in ((9, "9 last blocks: the model has 3"), (0, "0 last blocks"), ("tail", "'tail' is no part")):
        with pytest.raises(InputError, match=message):
            set_trainable(model, part)
    with pytest.raises(InputError, match="has no classifier to train"):
        set_trainable(load_backbone("random:vit_tiny_patch16_224", model_args=VIT), "head")
    with pytest.raises(InputError, match=r"layer_decay 1\.5"):
        parameter_groups(model, 0.1, layer_decay=1.5)


@family
@pytest.mark.parametrize("part", ["full", 1])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_groups_hold_every_learning_parameter_once(name, part, layer_decay):
    classifier = small(name)
    set_trainable(classifier.model, part)
    groups = parameter_groups(classifier.model, 0.05, layer_decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    learning = {id(p): n for n, p in classifier.model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(learning)
    scale = {learning[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert {group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 1} == {0}
    assert {group["weight_decay"] for group in groups for p in group["params"] if p.ndim > 1} == {0.05}
    assert scale[f"{classifier.embedding_layer}.weight"] == 1
    if layer_decay < 1 and part == "full":
        first, last = next(iter(scale.values())), scale[f"{classifier.embedding_layer}.weight"]
        assert first < last
        assert min(scale.values()) == first  # the stem
        assert sorted(set(scale.values())) == [0.5**i for i in reversed(range(len(set(scale.values()))))]
    if layer_decay == 1:
        assert set(scale.values()) == {1}


def test_a_pretraining_run_is_fine_tuned(trained):
    classifier = build(str(trained), 3, drop_path=0.1)
    tensors, pretrained = classifier.model.state_dict(), load_backbone(str(trained)).state_dict()
    assert all(torch.equal(tensor, tensors[n]) for n, tensor in pretrained.items())
    assert set(tensors) - set(pretrained) == {"head.weight", "head.bias"}
    assert "classifier new" in str(classifier.model.load_report)
    assert classifier.gradcam_layer.layout == "tokens"


@family
def test_an_exported_classifier_comes_back(name, tmp_path):
    """With its class names and image size, through the door of every evaluation and through plain timm."""
    native = {"vit_small_patch14_reg4_dinov2": (56, 56)}.get(name, (64, 64))
    args = FAMILIES[name]
    if "vit" in name or "deit" in name or "swin" in name:
        args = {**args, "img_size": native[0]}
    classifier = build(f"random:{name}", 2, image_size=native, model_args=args)
    step(classifier)
    save_export(classifier.model, tmp_path / "export", label_names=["CNV", "NORMAL"])
    again = as_classifier(open_model(open_source(str(tmp_path)), with_classifier=True), ClassTargetOptions())
    assert (again.class_names, again.input_size, again.model.training) == (("CNV", "NORMAL"), native, False)
    hub = json.loads((tmp_path / "export" / "config.json").read_text())
    plain = timm.create_model(
        hub["architecture"],
        num_classes=hub["num_classes"],
        checkpoint_path=str(tmp_path / "export" / "backbone.safetensors"),
        **hub["model_args"],
    ).eval()
    images = scans(classifier)
    with torch.no_grad():
        logits = classifier.model.eval()(images)
        torch.testing.assert_close(again.model(images), logits)
        torch.testing.assert_close(plain(images), logits)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ResNet50", "timm:resnet50.a1_in1k"),
        ("resnet50", "timm:resnet50.a1_in1k"),
        ("ViT-B/16 224", "timm:vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("vit_base_patch16_224", "timm:vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("vit_base_patch16_224.dino", "timm:vit_base_patch16_224.dino"),
        ("convnext-b", "timm:convnext_base.fb_in22k_ft_in1k"),
        ("DeiT-III-large-224", "timm:deit3_large_patch16_224.fb_in22k_ft_in1k"),
        ("resnet26", "timm:resnet26"),
        ("random:resnet26", "random:resnet26"),
    ],
)
def test_names_as_people_write_them(name, source):
    assert find(name)[1] == source
    assert find(name, pretrained=False)[1] == source.replace("timm:", "random:")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, r"resnet5O: neither a model nor a run.*nearest names: .*resnet50"),
        ("convnext_bas", {}, "nearest names: .*convnext_base"),
        ("random:vit_tiny_patch16_224", {"image_size": (100, 96)}, r"100 96 is not a multiple of the patch.*use 96 96"),
        ("random:mixer_s32_224", {"image_size": (64, 64)}, r"64 64 px do not fit .*use its own 224 224"),
        ("random:convmixer_768_32", {"drop_path": 0.1}, "drop_path_rate"),
        ("resnet18", {"num_classes": 0}, "needs at least 1"),
    ],
)
def test_wrong_wishes_are_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        build(name, **{"num_classes": 2, **options})
    assert "\n" not in str(error.value)
