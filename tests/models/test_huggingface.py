"""Folders of Hugging Face give the features that transformers computes from them, or are refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.models.network import cls_feature

transformers = pytest.importorskip("transformers", minversion="4.56")

VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
V14 = {**VIT, "image_size": 70, "patch_size": 14}
CONV = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 2, 1, 1]}
# Class, its configuration, and what its settings are.
MODELS = {
    "ViTModel": ("ViTConfig", {**VIT, "intermediate_size": 128}),
    "ViTModel without bias": ("ViTConfig", {**VIT, "intermediate_size": 100, "qkv_bias": False}),
    "ViTMAEModel": ("ViTMAEConfig", {**VIT, "intermediate_size": 128, "mask_ratio": 0.0}),
    "Dinov2Model": ("Dinov2Config", V14),
    "Dinov2Model with SwiGLU": ("Dinov2Config", {**V14, "use_swiglu_ffn": True}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {**V14, "num_register_tokens": 3}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**VIT, "intermediate_size": 128, "num_register_tokens": 4}),
    "DINOv3ViTModel without registers": ("DINOv3ViTConfig", {**VIT, "intermediate_size": 128, "query_bias": False}),
    "DINOv3ViTModel gated": (
        "DINOv3ViTConfig",
        {**VIT, "intermediate_size": 96, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "DINOv3ConvNextModel": ("DINOv3ConvNextConfig", CONV),
    "ConvNextModel": ("ConvNextConfig", CONV),
    "ResNetModel": ("ResNetConfig", {"embedding_size": 64, "hidden_sizes": [32, 64, 64, 128], "depths": [1, 2, 1, 1]}),
    "ResNetModel of basic layers": (
        "ResNetConfig",
        {"embedding_size": 64, "hidden_sizes": [64, 16, 16, 32], "depths": [2, 1, 1, 1], "layer_type": "basic"},
    ),
}
CLASSIFIERS = {
    "ViTForImageClassification": MODELS["ViTModel"],
    "ConvNextForImageClassification": MODELS["ConvNextModel"],
    "ResNetForImageClassification": MODELS["ResNetModel"],
}


def save(folder, name, config, values, **more):
    """A model of transformers with every parameter drawn, saved to a folder."""
    torch.manual_seed(0)
    model = getattr(transformers, name.split()[0])(getattr(transformers, config)(**{**values, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2).add_(0.3 if parameter.ndim == 1 else 0.0)
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


def feature(model, images):
    """What transformers gives for an image: CLS, or the pooled output of networks without."""
    output = model(images)
    return output.last_hidden_state[:, 0] if output.last_hidden_state.ndim == 3 else output.pooler_output.flatten(1)


def images_of(model):
    size = getattr(model.config, "image_size", 64)
    return torch.randn(2, 3, *[size if isinstance(size, int) and size < 100 else 64] * 2)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_those_of_transformers(name, tmp_path):
    theirs = save(tmp_path / "hub", name, *MODELS[name])
    loaded = load_backbone(str(tmp_path / "hub")).eval()
    images = images_of(theirs)
    expected = feature(theirs, images)
    ours = cls_feature(loaded, images)
    assert (ours - expected).abs().max() < 1e-4
    assert expected.std() > 0.05
    assert f"Hugging Face {name.split()[0]}'s format, " in str(loaded.load_report)
    assert loaded.load_report.matched == len(loaded.state_dict())
    # An export carries all of it.
    save_export(loaded, tmp_path / "export")
    again = load_backbone(str(tmp_path / "export")).eval()
    assert torch.equal(cls_feature(again, images), ours)
    assert again.pretrained_cfg == loaded.pretrained_cfg


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_more_or_less_is_refused(name, tmp_path):
    save(tmp_path, name, *MODELS[name])
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    beside = ("mask_token", "pooler", "num_batches_tracked")
    optional = ("q_proj.bias", "v_proj.bias")  # DINOv3's biases may be missing one by one
    required = [k for k, t in tensors.items() if t.numel() and not any(part in k for part in (*beside, *optional))]
    for key in required:
        save_file({other: tensor for other, tensor in tensors.items() if other != key}, file)
        with pytest.raises(InputError):
            load_backbone(str(tmp_path))
    for key in ("encoder.layer.0.gate.weight", "stages.0.gate"):
        save_file({**tensors, key: torch.ones(3)}, file)
        with pytest.raises(InputError, match="gate"):
            load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_a_classifier_comes_with_its_classes(name, tmp_path):
    names = dict(enumerate(["CNV", "DME", "NORMAL"]))
    theirs = save(tmp_path, name, *CLASSIFIERS[name], id2label=names)
    loaded = load_backbone(str(tmp_path), num_classes=None).eval()
    images = images_of(theirs)
    assert (loaded(images) - theirs(images).logits).abs().max() < 1e-4
    assert loaded.hub_config["label_names"] == ["CNV", "DME", "NORMAL"]
    without = load_backbone(str(tmp_path))
    assert (without.load_report.classifier, "label_names" in without.hub_config) == ("left out", False)


@torch.no_grad()
def test_what_timm_has_no_place_for_is_left_out_by_name(tmp_path):
    save(tmp_path / "pooler", "ViTModel", *MODELS["ViTModel"])
    assert "left out: pooler" in str(load_backbone(str(tmp_path / "pooler")).load_report)
    theirs = save(tmp_path / "dinov2", "Dinov2ForImageClassification", *MODELS["Dinov2Model"])
    loaded = load_backbone(str(tmp_path / "dinov2"), num_classes=None).eval()
    assert "left out: mask_token, classifier" in str(loaded.load_report)
    images = images_of(theirs)
    assert (cls_feature(loaded, images) - feature(theirs.dinov2, images)).abs().max() < 1e-4
    save(tmp_path / "mae", "ViTMAEForPreTraining", *MODELS["ViTMAEModel"], decoder_num_hidden_layers=1)
    assert "left out: decoder" in str(load_backbone(str(tmp_path / "mae")).load_report)


@torch.no_grad()
def test_weights_of_torch_and_of_several_files_are_read(tmp_path):
    theirs = save(tmp_path, "Dinov2Model", *MODELS["Dinov2Model"])
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    images = images_of(theirs)
    expected = feature(theirs, images)
    assert (cls_feature(load_backbone(str(tmp_path)).eval(), images) - expected).abs().max() < 1e-4
    (tmp_path / "pytorch_model.bin").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert (cls_feature(load_backbone(str(tmp_path)).eval(), images) - expected).abs().max() < 1e-4
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(InputError, match="no such file"):
        load_backbone(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"norm.weight": "../other.safetensors"}}))
    with pytest.raises(InputError, match="does not name files of this folder"):
        load_backbone(str(tmp_path))


def test_a_file_alone_needs_its_configuration(tmp_path):
    save(tmp_path, "ViTModel", *MODELS["ViTModel"])
    assert "Hugging Face ViTModel's" in str(load_backbone(str(tmp_path / "model.safetensors")).load_report)
    (tmp_path / "config.json").unlink()
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(InputError):
            load_backbone(str(source))
    with pytest.raises(InputError, match=r"Hugging Face's format, of which config\.json tells"):
        load_backbone(str(tmp_path / "model.safetensors"))


REFUSED = {
    "another kind": ({"model_type": "swin"}, r"model_type 'swin' is not known; known are vit, vit_mae, dinov2, "),
    "activation": ({"hidden_act": "relu"}, r"hidden_act 'relu' is not what timm's network has \('gelu'\)"),
    "heads": ({"num_attention_heads": "x"}, "num_attention_heads 'x' is not a number above 0"),
    "depth": ({"num_hidden_layers": 3}, "num_hidden_layers 3, but its weights have 2"),
    "eps": ({"layer_norm_eps": 0.1}, "eps of its norms is 0.1, of timm's 1e-06; it changes features by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_changes_the_network_is_refused(name, tmp_path):
    change, message = REFUSED[name]
    save(tmp_path, "ViTModel", *MODELS["ViTModel"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        load_backbone(str(tmp_path))
    assert "\n" not in str(error.value)


def test_other_rotations_and_biases_of_dinov3_are_refused(tmp_path):
    save(tmp_path, "DINOv3ViTModel", *MODELS["DINOv3ViTModel"], rope_theta=10.0)
    with pytest.raises(InputError, match=r"rope_embed\.periods are not those of timm's"):
        load_backbone(str(tmp_path))
    save(tmp_path, "DINOv3ViTModel", *MODELS["DINOv3ViTModel"], key_bias=True)
    with pytest.raises(InputError, match="no bias of keys"):
        load_backbone(str(tmp_path))
    save(tmp_path, "ResNetModel", *MODELS["ResNetModel"], downsample_in_bottleneck=True)
    with pytest.raises(InputError, match="downsample_in_bottleneck True"):
        load_backbone(str(tmp_path))


def test_what_eps_changes_is_said(tmp_path):
    """ViTModel has 1e-12 where timm has 1e-6; the norm of tokens that hardly vary shows it."""
    save(tmp_path, "ViTModel", *MODELS["ViTModel"])
    report = load_backbone(str(tmp_path)).load_report
    assert "eps of the norms: 1e-12; plain timm has 1e-06, which changes the features by" in str(report)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    parts = ("embeddings.", "attention.output.", "layer.0.output.")
    save_file({n: t * 1e-4 if any(part in n for part in parts) else t for n, t in tensors.items()}, file)
    with pytest.raises(InputError, match="eps of its norms is 1e-12, of timm's 1e-06; it changes features by"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["ViTModel", "ConvNextModel", "DINOv3ConvNextModel"])
@torch.no_grad()
def test_eps_is_the_folders_also_after_an_export(name, tmp_path):
    """Large enough for its place to show: all norms of a transformer, the last one of ConvNextModel."""
    theirs = save(tmp_path / "hub", name, *MODELS[name], layer_norm_eps=3e-4)
    loaded = load_backbone(str(tmp_path / "hub")).eval()
    images = images_of(theirs)
    expected = feature(theirs, images)
    assert (cls_feature(loaded, images) - expected).abs().max() < 1e-5 * expected.abs().max()
    save_export(loaded, tmp_path / "export")
    again = load_backbone(str(tmp_path / "export")).eval()
    assert torch.equal(cls_feature(again, images), cls_feature(loaded, images))
    assert again.hub_config == loaded.hub_config
    file = tmp_path / "export" / "config.json"
    if name != "DINOv3ConvNextModel":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"norm_eps": "x"}))
        with pytest.raises(InputError, match="norm_eps 'x' is not between 0 and 1"):
            load_backbone(str(tmp_path / "export"))


@torch.no_grad()
def test_an_untrained_model_as_transformers_draws_it(tmp_path):
    theirs = transformers.ViTModel(
        transformers.ViTConfig(**{**VIT, "hidden_size": 96, "intermediate_size": 128})
    ).eval()
    theirs.save_pretrained(tmp_path)
    images = images_of(theirs)
    ours = cls_feature(load_backbone(str(tmp_path)).eval(), images)
    assert (ours - feature(theirs, images)).abs().max() < 1e-4


PREPROCESSING = {
    "crop": (
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_center_crop": True,
         "size": {"shortest_edge": 256}, "crop_size": {"height": 56, "width": 42}},
        ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [3, 56, 42]),
    ),
    "size": ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 84, "width": 84}},
             ([0.5] * 3, [0.5] * 3, [3, 84, 84])),
    "number": ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 28}, ([0.5] * 3, [0.5] * 3, [3, 28, 28])),
    "no multiple of the patch": ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 100},
                                 ([0.5] * 3, [0.5] * 3, [3, 70, 70])),
    "not normalised": ({"do_normalize": False, "size": 28}, ([0.0] * 3, [1.0] * 3, [3, 28, 28])),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_follows_the_folder(name, tmp_path):
    written, (mean, std, size) = PREPROCESSING[name]
    save(tmp_path, "Dinov2Model", *MODELS["Dinov2Model"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    loaded = load_backbone(str(tmp_path))
    config = loaded.hub_config["pretrained_cfg"]
    np.testing.assert_allclose(config["mean"], mean)
    np.testing.assert_allclose(config["std"], std)
    assert config["input_size"] == size
    assert "assumed: no preprocessor" not in str(loaded.load_report)


def test_preprocessing_that_is_not_there_is_assumed_and_said(tmp_path):
    for name, mean in (("Dinov2Model", 0.485), ("ViTModel", 0.5)):
        save(tmp_path / name, name, *MODELS[name])
        loaded = load_backbone(str(tmp_path / name))
        assert loaded.pretrained_cfg["mean"][0] == pytest.approx(mean)
        assert f"mean and std {mean:g}/" in str(loaded.load_report)
    (tmp_path / "ViTModel" / "preprocessor_config.json").write_text(json.dumps({"do_rescale": False}))
    with pytest.raises(InputError, match="not scaled to 0 to 1"):
        load_backbone(str(tmp_path / "ViTModel"))


@torch.no_grad()
def test_positions_at_other_sizes(tmp_path):
    """DINOv2 with registers is resampled as its authors and transformers do; without, as DINO does, which differs."""
    largest = {}
    for name in ("Dinov2WithRegistersModel", "Dinov2Model"):
        theirs = save(tmp_path / name, name, *MODELS[name])
        loaded = load_backbone(str(tmp_path / name)).eval()
        images = torch.randn(2, 3, 98, 42)
        largest[name] = (cls_feature(loaded, images) - feature(theirs, images)).abs().max().item()
    assert largest["Dinov2WithRegistersModel"] < 1e-4
    assert 1e-4 < largest["Dinov2Model"] < 0.5
