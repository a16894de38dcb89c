"""Networks that are no vision transformers of timm's names: ResNet, ConvNeXt, MIRAGE, and folders of timm."""

import hashlib
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.models.frozen import load_frozen
from dino_oct.models.network import cls_feature, normalise

RESNET = {"layers": [1, 2, 1, 1], "channels": [8, 8, 16, 16]}
CONVNEXT = {"depths": [1, 2, 1, 1], "dims": [8, 16, 16, 24]}
VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 64}


def randomised(name, num_classes=0, **args):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes, **args).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2).add_(0.3 if parameter.ndim == 1 else 0.0)
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return model


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def authors_names(state):
    """timm's names of a ConvNeXt to those of its authors."""
    named = {}
    for name, tensor in state.items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.").replace("head.fc.", "head.")
        if ".downsample." in name:
            name = name.replace("stages.", "downsample_layers.").replace(".downsample.", ".")
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        named[name] = tensor.reshape(1, 1, 1, -1) if "grn." in name else tensor
    return named


def dinov3_names(state):
    state = authors_names(state)
    return {**state, **{f"norms.3.{part}": state[f"norm.{part}"].clone() for part in ("weight", "bias")}}


def without_counts(state):
    """As files from before PyTorch counted batches."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


HEAD = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_v": torch.ones(2, 2)}
# Name of the format, timm's model, and the file made of it.
CNNS = {
    "DINO, backbone": ("torchvision or timm", "resnet50", RESNET, without_counts),
    "DINO, full": (
        "DINO", "resnet50", RESNET,
        lambda s: {
            "student": prefixed({f"backbone.{n}": t + 1 for n, t in s.items()} | HEAD, "module."),
            "teacher": prefixed(s, "backbone.") | HEAD,
        },
    ),
    "MoCo v1": (
        "MoCo", "resnet50", RESNET,
        lambda s: {
            "state_dict": prefixed({**s, "fc.weight": torch.ones(9, 64), "fc.bias": torch.ones(9)}, "module.encoder_q.")
            | {f"module.encoder_k.{n}": t + 1 for n, t in s.items()} | {"module.queue": torch.ones(9, 9)}
        },
    ),
    "MoCo v2": (
        "MoCo", "resnet50", RESNET,
        lambda s: {"state_dict": prefixed({**s, "fc.0.weight": torch.ones(9, 64), "fc.2.weight": torch.ones(9, 9)},
                                          "module.encoder_q.")},
    ),
    "MoCo-v3": (
        "MoCo-v3", "resnet50", RESNET,
        lambda s: {"state_dict": prefixed({**s, "fc.0.weight": torch.ones(9, 64)}, "module.base_encoder.")
                   | {f"module.momentum_encoder.{n}": t + 1 for n, t in s.items()}},
    ),
    "basic layers": ("torchvision or timm", "resnet18", {**RESNET, "in_chans": 1}, dict),
    "ResNeXt": ("torchvision or timm", "resnet50", {**RESNET, "cardinality": 2, "base_width": 32}, dict),
    "wide ResNet": ("torchvision or timm", "resnet50", {**RESNET, "base_width": 128}, dict),
    "DINOv3": ("DINOv3", "convnext_tiny", CONVNEXT, dinov3_names),
    "ConvNeXt": ("ConvNeXt", "convnext_tiny", CONVNEXT, lambda s: {"model": authors_names(s)}),
    "ConvNeXt V2": ("ConvNeXt", "convnextv2_tiny", CONVNEXT, authors_names),
    "ConvNeXt of timm": ("timm", "convnext_tiny", CONVNEXT, dict),
    "small ConvNeXt of timm": ("timm", "convnext_atto", {**CONVNEXT, "patch_size": 2}, dict),
    "norm first": ("timm", "convnext_tiny_hnf", CONVNEXT, dict),
}  # fmt: skip


@pytest.mark.parametrize("name", CNNS)
@torch.no_grad()
def test_a_convolutional_file_gives_timms_features(name, tmp_path):
    format_name, architecture, args, file_of = CNNS[name]
    model = randomised(architecture, **args)
    torch.save(file_of(model.state_dict()), tmp_path / "weights.pth")
    loaded = load_backbone(str(tmp_path / "weights.pth")).eval()
    images = torch.randn(2, args.get("in_chans", 3), 64, 64)
    torch.testing.assert_close(cls_feature(loaded, images), model(images), rtol=1e-5, atol=1e-5)
    assert loaded.load_report.format == format_name
    assert "0 missing, 0 unexpected" in str(loaded.load_report)
    assert loaded.load_report.matched == len(loaded.state_dict())
    mean = (0.485, 0.456, 0.406) if images.shape[1] == 3 else (0.449,)
    assert loaded.pretrained_cfg["mean"] == pytest.approx(mean)
    save_export(loaded, tmp_path / "export")
    again = load_backbone(str(tmp_path / "export")).eval()
    assert torch.equal(cls_feature(again, images), cls_feature(loaded, images))
    assert again.hub_config == loaded.hub_config


@pytest.mark.parametrize("name", ["DINO, backbone", "ResNeXt", "DINOv3", "ConvNeXt V2", "ConvNeXt of timm"])
def test_every_tensor_of_a_convolutional_file_counts(name, tmp_path):
    _, architecture, args, file_of = CNNS[name]
    tensors = file_of(randomised(architecture, **args).state_dict())
    for key in tensors:
        if key.startswith("norms.") or key.endswith("num_batches_tracked"):
            continue
        torch.save({n: t for n, t in tensors.items() if n != key}, tmp_path / "less.pth")
        with pytest.raises(InputError):
            load_backbone(str(tmp_path / "less.pth"))
    for key in ("layer1.0.gate", "stages.0.blocks.0.gate", "norms.2.weight"):
        torch.save({**tensors, key: torch.ones(3)}, tmp_path / "more.pth")
        with pytest.raises(InputError, match=key.replace(".", r"\.")):
            load_backbone(str(tmp_path / "more.pth"))


@pytest.mark.parametrize(("name", "width"), [("tiny", 96), ("small", 96), ("base", 128), ("large", 192)])
def test_sizes_of_dinov3s_convnexts_are_told(name, width, tmp_path):
    with torch.device("meta"):
        state = timm.create_model(f"convnext_{name}", num_classes=0).state_dict()
    state = dinov3_names({n: torch.ones(1).expand(t.shape) for n, t in state.items()})
    torch.save(state, tmp_path / "dinov3.pth")
    loaded = load_backbone(str(tmp_path / "dinov3.pth"))
    assert loaded.hub_config["architecture"] == f"convnext_{name}"
    assert loaded.num_features == 8 * width


def test_resnet50_keeps_its_name(tmp_path):
    state = without_counts(timm.create_model("resnet50", num_classes=0).state_dict())
    torch.save(state, tmp_path / "dino_resnet50_pretrain.pth")
    loaded = load_backbone(str(tmp_path / "dino_resnet50_pretrain.pth"))
    assert (loaded.hub_config["architecture"], loaded.hub_config["model_args"]) == ("resnet50", {})
    assert loaded.hub_config["pretrained_cfg"]["input_size"] == [3, 224, 224]
    assert "plain ResNet assumed" in str(loaded.load_report)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
@torch.no_grad()
def test_a_classifier_of_a_convolutional_file_comes_when_asked(name, tmp_path):
    model = randomised(name, 4, **(RESNET if name == "resnet18" else CONVNEXT))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 64, 64)
    loaded = load_backbone(str(tmp_path / "model.safetensors"), num_classes=None).eval()
    torch.testing.assert_close(loaded(images), model(images))
    assert load_backbone(str(tmp_path / "model.safetensors")).load_report.classifier == "left out"
    if name == "convnext_tiny":
        torch.save(authors_names(model.state_dict()), tmp_path / "authors.pth")
        loaded = load_backbone(str(tmp_path / "authors.pth"), num_classes=None).eval()
        torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet18d", "not torchvision's"), ("efficientnet_b0", "do not tell how it pads"), ("seresnet50", "timm:NAME@")],
)
def test_a_convolutional_file_that_does_not_tell_is_refused(name, message, tmp_path):
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        load_backbone(str(tmp_path / "model.safetensors"))
    assert "timm:NAME@" in str(error.value)
    assert load_backbone(f"timm:{name}@{tmp_path / 'model.safetensors'}").load_report.format == "timm"


# MIRAGE


def mirage_file(global_tokens=1, rows=4, columns=4):
    """A random file with all the kinds of keys that MIRAGE has."""
    torch.manual_seed(2)
    width = 64
    tensors = {
        "global_tokens": torch.randn(1, global_tokens, width),
        "input_adapters.bscan.pos_emb": torch.randn(1, width, rows, columns),
        "input_adapters.bscan.proj.weight": torch.randn(width, 1, 16, 16) * 0.1,
        "input_adapters.bscan.proj.bias": torch.randn(width),
        "input_adapters.slo.pos_emb": torch.randn(1, width, rows, columns),
        "input_adapters.slo.proj.weight": torch.randn(width, 1, 16, 16),
        "input_adapters.slo.proj.bias": torch.randn(width),
        "input_adapters.bscanlayermap.class_emb.weight": torch.randn(13, 8),
        "output_adapters.bscan.decoder.0.norm1.weight": torch.randn(32),
        "output_adapters.bscan.mask_token": torch.randn(1, 1, 32),
    }
    shapes = {"norm1": width, "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": width,
              "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}  # fmt: skip
    for block in range(2):
        for name, shape in shapes.items():
            rows_out = shape if isinstance(shape, int) else shape[0]
            tensors[f"encoder.{block}.{name}.weight"] = torch.randn(shape) * (0.1 if "norm" not in name else 1)
            tensors[f"encoder.{block}.{name}.bias"] = torch.randn(rows_out)
    return {"model": tensors, "epoch": 3}


def mirage_features(file, images):
    """The mean of the encoder's patch tokens, written from the paper's description: patches first, then globals."""
    state = file["model"]

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    adapter = "input_adapters.bscan."
    patches = F.conv2d(images, state[f"{adapter}proj.weight"], state[f"{adapter}proj.bias"], stride=16)
    patches = (patches + state[f"{adapter}pos_emb"]).flatten(2).mT
    x = torch.cat([patches, state["global_tokens"].expand(len(images), -1, -1)], dim=1)
    for block in ("encoder.0", "encoder.1"):
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, dim=-1)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(f"{block}.attn.proj", weights @ v)
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    return x[:, : patches.shape[1]].mean(1)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (1, 2, 5)])
@torch.no_grad()
def test_mirages_encoder_of_bscans(shape, tmp_path):
    file = mirage_file(*shape)
    torch.save(file, tmp_path / "mirage.pth")
    loaded = load_backbone(str(tmp_path / "mirage.pth")).eval()
    images = torch.rand(2, 1, 16 * shape[1], 16 * shape[2])
    torch.testing.assert_close(cls_feature(loaded, images), mirage_features(file, images), rtol=1e-4, atol=1e-4)
    report = str(loaded.load_report)
    assert "MIRAGE's format, " in report
    assert "left out: input_adapters, output_adapters" in report
    # Grey values go in as they are.
    assert loaded.hub_config["pretrained_cfg"]["mean"] == [0.0]
    assert loaded.hub_config["pretrained_cfg"]["input_size"] == [1, 16 * shape[1], 16 * shape[2]]
    assert torch.equal(normalise(images, loaded), images)
    save_export(loaded, tmp_path / "export")
    again = load_backbone(str(tmp_path / "export")).eval()
    assert torch.equal(cls_feature(again, images), cls_feature(loaded, images))


def test_every_tensor_of_mirage_counts(tmp_path):
    tensors = mirage_file()["model"]
    for key in tensors:
        if key.startswith(("input_adapters.slo", "input_adapters.bscanl", "output_adapters")):
            continue
        torch.save({"model": {n: t for n, t in tensors.items() if n != key}}, tmp_path / "less.pth")
        with pytest.raises(InputError):
            load_backbone(str(tmp_path / "less.pth"))
    torch.save({"model": {**tensors, "encoder.1.gate": torch.ones(3)}}, tmp_path / "more.pth")
    with pytest.raises(InputError, match=r"no place for 1 of its tensors \(blocks\.1\.gate\)"):
        load_backbone(str(tmp_path / "more.pth"))
    torch.save({n: t for n, t in tensors.items() if ".bscan." not in n}, tmp_path / "slo.pth")
    with pytest.raises(InputError, match=r"encoder of B-scans is not in it \(it reads bscanlayermap, slo\)"):
        load_backbone(str(tmp_path / "slo.pth"))


# Folders of timm


def hub_folder(folder, model, config, weights="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if weights.endswith("safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / weights)
    else:
        torch.save(model.state_dict(), folder / weights)


IMAGES = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96], "classifier": "head"}


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_a_folder_in_timms_hub_layout(weights, tmp_path):
    model = randomised("vit_tiny_patch16_224", 3, **VIT)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "num_features": 64, "model_args": VIT,
              "label_names": ["CNV", "DME", "NORMAL"], "pretrained_cfg": {**IMAGES, "num_classes": 3}}  # fmt: skip
    hub_folder(tmp_path / "hub", model, config, weights)
    loaded = load_backbone(str(tmp_path / "hub"), num_classes=None).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images), model(images))
    assert "timm's format, " in str(loaded.load_report)
    assert loaded.hub_config["label_names"] == ["CNV", "DME", "NORMAL"]
    assert {key: loaded.hub_config["pretrained_cfg"][key] for key in ("mean", "std", "input_size")} == {
        key: IMAGES[key] for key in ("mean", "std", "input_size")
    }
    assert load_backbone(str(tmp_path / "hub")).load_report.classifier == "left out"

    tensors = model.state_dict()
    del tensors["norm.weight"]
    torch.save(tensors, tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"norm\.weight"):
        load_backbone(str(tmp_path / "hub"))
    torch.save({**model.state_dict(), "gate.weight": torch.ones(2)}, tmp_path / "hub" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"gate\.weight"):
        load_backbone(str(tmp_path / "hub"))


@torch.no_grad()
def test_timms_first_layout_has_all_in_one(tmp_path):
    model = randomised("resnet18", 3)
    hub_folder(tmp_path, model, {"architecture": "resnet18", "num_classes": 3, **IMAGES, "classifier": "fc"})
    loaded = load_backbone(str(tmp_path), num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images), model(images))
    assert loaded.pretrained_cfg["std"] == [0.4, 0.5, 0.6]


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path):
    model = randomised("vit_tiny_patch16_224", **VIT)
    config = {"architecture": "hf-hub:x/y", "num_classes": 0, "model_args": VIT, "pretrained_cfg": IMAGES}
    hub_folder(tmp_path, model, config)
    with pytest.raises(InputError, match="is not the name of a timm model"):
        load_backbone(str(tmp_path))


def test_the_weights_of_a_folder_are_identified_by_their_file(tmp_path):
    model = randomised("vit_tiny_patch16_224", **VIT)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": VIT, "pretrained_cfg": IMAGES}
    hub_folder(tmp_path, model, config)
    weights = load_frozen(str(tmp_path), torch.device("cpu")).weights
    assert weights.file == str(tmp_path / "model.safetensors")
    assert weights.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()[:16]


def test_a_folder_of_weights_alone_is_read_by_their_keys(tmp_path):
    torch.save(mirage_file(), tmp_path / "pytorch_model.bin")
    assert "MIRAGE's format" in str(load_backbone(str(tmp_path)).load_report)
    (tmp_path / "config.json").write_text("{}")
    assert "MIRAGE's format" in str(load_backbone(str(tmp_path)).load_report)
