"""``load_backbone``: every source, every refusal, and the export."""

import argparse
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import timm
import torch
from conftest import REFERENCE

from dino_oct.errors import InputError
from dino_oct.models import official
from dino_oct.models.attention import cls_attention, linear_probe_features
from dino_oct.models.backbone import check_size, classifier_tensors, load_backbone, save_export
from dino_oct.models.network import cls_feature, normalise

FINAL = str(REFERENCE / "backbone_final.pth")
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}


def test_counts_what_it_loads():
    report = load_backbone(FINAL, heads=3).load_report
    assert (report.matched, report.missing, report.unexpected) == (42, (), ())
    assert "42 tensors loaded, 0 missing, 0 unexpected" in str(report)


def test_full_file_gives_the_teacher():
    backbone = load_backbone(str(REFERENCE / "checkpoint_final.pth"), heads=3)
    teacher = official.network_tensors(official.read_checkpoint(REFERENCE / "checkpoint_final.pth"), "teacher")
    assert all(torch.equal(tensor, teacher[f"backbone.{name}"]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(("width", "depth", "patch", "name"), [(384, 12, 16, "vit_small"), (768, 12, 8, "vit_base")])
def test_full_size_official_files(width, depth, patch, name, tmp_path):
    """Random weights in the release's format and size load into the timm architecture of that name."""
    source = timm.create_model(f"{name}_patch{patch}_224", num_classes=0)
    torch.save({f"module.backbone.{k}": v for k, v in source.state_dict().items()}, tmp_path / "dino.pth")
    model = load_backbone(str(tmp_path / "dino.pth"))
    assert model.hub_config["architecture"] == f"{name}_patch{patch}_224"
    assert (model.num_features, len(model.blocks), model.blocks[0].attn.num_heads) == (width, depth, width // 64)
    assert model.pretrained_cfg["mean"] == pytest.approx((0.485, 0.456, 0.406))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), source.eval()(image))


@pytest.mark.parametrize(
    "args",
    [{"num_heads": 0}, {"num_heads": 5}, {"patch_size": 0}, {"img_size": 0}],
    ids=str,
)
def test_arguments_that_an_architecture_cannot_take_are_one_line(args):
    with pytest.raises(InputError, match=r"^vit_tiny_patch16_224 cannot be built with "):
        load_backbone("random:vit_tiny_patch16_224", model_args=args)


def test_a_partial_backbone_is_refused(tmp_path):
    tensors = torch.load(FINAL)
    del tensors["blocks.1.attn.qkv.weight"]
    torch.save(tensors, tmp_path / "partial.pth")
    with pytest.raises(InputError, match=r"only 41 of the model's 42 tensors .*blocks\.1\.attn\.qkv\.weight"):
        load_backbone(str(tmp_path / "partial.pth"), heads=3)


def test_a_file_that_matches_nothing_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="not a DINO vision transformer"):
        load_backbone(str(tmp_path / "resnet.pth"))


def test_a_size_that_does_not_fit_is_refused(tmp_path):
    tensors = torch.load(FINAL)
    tensors["norm.weight"] = torch.zeros(50)
    torch.save(tensors, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=r"norm\.weight is \(50,\) in the file and \(48,\) in the model"):
        load_backbone(str(tmp_path / "wrong.pth"), heads=3)


def test_unknown_heads_are_asked_for():
    with pytest.raises(InputError, match=r"width 48 .*--model\.heads"):
        load_backbone(FINAL)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pth", "no such file or folder"),
        ("random:vit_bse_patch8", "timm has no model"),
        ("timm:", "no model ''"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(InputError, match=message):
        load_backbone(source)


def test_a_truncated_file_is_one_line(tmp_path):
    content = (REFERENCE / "backbone_final.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable checkpoint") as error:
        load_backbone(str(tmp_path / "cut.pth"))
    assert "\n" not in str(error.value)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ran-code-from-a-checkpoint",)


def test_no_code_runs_from_a_file(tmp_path):
    torch.save({"student": {}, "teacher": {}, "args": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="refused, it holds more than tensors"):
        load_backbone(str(tmp_path / "evil.pth"))
    assert not os.path.exists("/tmp/ran-code-from-a-checkpoint")


def test_numpy_scalars_and_arguments_of_the_release_are_read(tmp_path):
    group = {"lr": np.float64(0.1), "weight_decay": np.float64(0.4)}
    torch.save({"optimizer": group, "args": argparse.Namespace(arch="vit_base")}, tmp_path / "full.pth")
    assert official.read_checkpoint(tmp_path / "full.pth")["optimizer"]["lr"] == 0.1
    # A file written under numpy 1 names the same function in numpy.core.
    with zipfile.ZipFile(tmp_path / "full.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    assert (tmp_path / "old.pth").read_bytes() != (tmp_path / "full.pth").read_bytes()
    assert official.read_checkpoint(tmp_path / "old.pth")["optimizer"]["weight_decay"] == 0.4


def test_random_is_drawn_by_seed():
    def weight(seed):
        return load_backbone("random:vit_tiny_patch16_224", model_args=TINY, seed=seed).blocks[0].attn.qkv.weight

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


def test_export_loads_in_plain_timm_with_equal_features(tmp_path):
    backbone = load_backbone(FINAL, heads=3).eval()
    save_export(backbone, tmp_path)
    hub = json.loads((tmp_path / "config.json").read_text())
    plain = timm.create_model(
        hub["architecture"], num_classes=0, checkpoint_path=str(tmp_path / "backbone.safetensors"), **hub["model_args"]
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), backbone(images))
    again = load_backbone(str(tmp_path)).eval()
    assert again.pretrained_cfg["mean"] == pytest.approx(backbone.pretrained_cfg["mean"])
    wide = torch.randn(2, 3, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.forward_features(wide), backbone.forward_features(wide))


def test_an_export_without_weights_or_description(tmp_path):
    save_export(load_backbone(FINAL, heads=3), tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_backbone(str(tmp_path))
    shutil.rmtree(tmp_path / "export")
    with pytest.raises(InputError, match="neither a run folder nor an export"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "args", "prefix"),
    [
        ("vit_small_patch14_reg4_dinov2", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 70}, 5),
        ("vit_small_patch16_dinov3", {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": 64}, 5),
        ("vit_tiny_patch16_224", TINY, 1),
    ],
)
def test_prefix_tokens_are_handled(name, args, prefix):
    """Registers are no patches; attention equals the model's own, computed in full."""
    model = load_backbone(f"random:{name}", model_args=args).eval()
    patch = model.patch_embed.patch_size[0]
    images = torch.randn(2, 3, 4 * patch, 6 * patch)
    attention = cls_attention(model, images)
    assert attention.shape == (2, 3, 4, 6)
    assert model.num_prefix_tokens == prefix
    full = full_attention(model, images)[:, :, 0, prefix:].unflatten(-1, (4, 6))
    torch.testing.assert_close(attention, full, rtol=1e-4, atol=1e-6)
    assert cls_feature(model, images).shape == (2, model.num_features)
    assert linear_probe_features(model, images, 2).shape == (2, 2 * model.num_features)


def full_attention(model, images):
    """The last block's whole attention matrix, by switching the fused kernel off and catching the dropout's input."""
    attn, seen = model.blocks[-1].attn, {}
    attn.fused_attn = False
    handle = attn.attn_drop.register_forward_hook(lambda module, args, output: seen.update(matrix=output))
    with torch.no_grad():
        model.forward_features(images)
    handle.remove()
    return seen["matrix"]


def test_convolutional_backbones_give_the_vector_before_the_classifier():
    model = load_backbone("random:resnet18").eval()
    assert cls_feature(model, torch.randn(2, 3, 64, 96)).shape == (2, 512)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_scans_become_the_models_channels(channels):
    model = load_backbone("random:vit_tiny_patch16_224", model_args={**TINY, "in_chans": channels})
    grey = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    out = normalise(grey, model)
    assert out.shape == (1, channels, 4, 4)
    mean, std = np.mean(model.pretrained_cfg["mean"]), np.mean(model.pretrained_cfg["std"])
    assert out.mean().item() == pytest.approx((1 - mean) / std, rel=1e-4)
    torch.testing.assert_close(normalise(grey.float() / 255, model), out)


# Tiny networks whose classifiers have different names, two layers (distilled), or a backbone's norm beside them.
CLASSIFIERS = {
    "vit_tiny_patch16_224": TINY,
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1], "embed_dim": 24, "num_heads": [2, 4], "img_size": 56},
    "deit_tiny_distilled_patch16_224": TINY,
}


@pytest.mark.parametrize(("name", "args"), CLASSIFIERS.items())
def test_a_classifier_is_loaded_renewed_or_left_out_and_said_to_be(name, args, tmp_path):
    model = load_backbone(f"random:{name}", num_classes=3, model_args=args, seed=5).eval()
    save_export(model, tmp_path, label_names=["CNV", "DME", "NORMAL"])
    same = load_backbone(str(tmp_path), num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(same(images), model(images))
    assert "classifier loaded" in str(same.load_report)
    assert same.hub_config["label_names"] == ["CNV", "DME", "NORMAL"]
    assert load_backbone(str(tmp_path), num_classes=None).num_classes == 3

    renewed = [load_backbone(str(tmp_path), num_classes=4, seed=seed) for seed in (0, 0, 1)]
    without = load_backbone(str(tmp_path))
    assert "classifier new" in str(renewed[0].load_report)
    assert "classifier left out" in str(without.load_report)
    weights = {key: tensor for key, tensor in model.state_dict().items() if key not in classifier_tensors(model)}
    for other in (renewed[0], without):
        tensors = other.state_dict()
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in weights.items())
        assert other.load_report.matched == len(weights)
        assert (other.load_report.unexpected, "label_names" in other.hub_config) == ((), False)
    new = [model.get_parameter(classifier_tensors(model)[0]) for model in renewed]
    assert new[0].shape[0] == 4
    assert torch.equal(new[0], new[1])
    assert not torch.equal(new[0], new[2])


def test_a_backbone_is_not_excused_by_a_new_classifier(tmp_path):
    tensors = torch.load(FINAL)
    del tensors["norm.weight"]
    torch.save(tensors, tmp_path / "partial.pth")
    with pytest.raises(InputError, match=r"only 41 of the model's 42 tensors .*norm\.weight"):
        load_backbone(str(tmp_path / "partial.pth"), num_classes=4, heads=3)
    report = load_backbone(FINAL, num_classes=4, heads=3).load_report
    assert (report.matched, report.classifier) == (42, "new")


def test_an_exported_classifier_loads_in_plain_timm(tmp_path):
    model = load_backbone("random:vit_tiny_patch16_224", num_classes=4, model_args=TINY).eval()
    save_export(model, tmp_path, label_names=list("abcd"))
    hub = json.loads((tmp_path / "config.json").read_text())
    assert (hub["num_classes"], hub["pretrained_cfg"]["num_classes"], hub["label_names"]) == (4, 4, list("abcd"))
    plain = timm.create_model(
        hub["architecture"],
        num_classes=hub["num_classes"],
        checkpoint_path=str(tmp_path / "backbone.safetensors"),
        **hub["model_args"],
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), model(images))


def test_a_trainers_checkpoint_of_a_classifier_says_how_to_rebuild_it(tmp_path):
    model = load_backbone("random:convnext_atto", num_classes=3, model_args=CLASSIFIERS["convnext_atto"]).eval()
    torch.save({"model": model.state_dict(), "hub_config": model.hub_config, "step": 1}, tmp_path / "last.pt")
    again = load_backbone(str(tmp_path / "last.pt"), num_classes=None).eval()
    images = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images))


def test_stochastic_depth_is_off_unless_asked_for():
    """timm's Swin has a rate of 0.1 of its own accord."""
    args = CLASSIFIERS["swin_tiny_patch4_window7_224"]
    rates = [
        max(getattr(module, "drop_prob", 0) for module in model.modules())
        for model in (
            load_backbone("random:swin_tiny_patch4_window7_224", model_args=args, drop_path=p) for p in (0, 0.3)
        )
    ]
    assert rates == pytest.approx([0, 0.3])


def test_sizes_that_are_no_multiple_of_the_patch_name_the_nearest():
    model = load_backbone("random:vit_tiny_patch16_224", model_args=TINY)
    with pytest.raises(InputError, match=r"96 100 is not a multiple of the patch \(16 px\); use 96 96"):
        check_size((96, 100), model, "monitor.image_size")
