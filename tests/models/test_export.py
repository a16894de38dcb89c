"""An export carries its preprocessing: plain timm, used as docs/pretraining.md says, gives the same features."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from dino_oct.data.decode import decode
from dino_oct.errors import InputError
from dino_oct.features import extract, resize_all
from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.models.frozen import load_frozen
from supervised.architectures import build

CPU = torch.device("cpu")
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}


def documented_snippet(export, scan):
    """What docs/pretraining.md's lines for plain timm call ``features``; only their two paths are replaced."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "pretraining.md").read_text(), re.DOTALL)
    snippet = next(block for block in blocks if "local-dir:" in block)
    assert snippet.count("runs/vitb8/export") == snippet.count("scan.jpeg") == 1
    names = {}
    exec(snippet.replace("runs/vitb8/export", str(export)).replace("scan.jpeg", str(scan)), names)
    return names["features"]


def our_features(export, scan):
    network = load_frozen(str(export), CPU)
    size = network.pretrained_cfg["input_size"][-2:]
    return extract(network, resize_all([decode(scan).scan], size), CPU)


@pytest.fixture
def scan(tmp_path):
    """A file with speckle and an aspect of its own, so that every way to resize it gives another image."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 255, (60, 90), dtype=np.uint8)).resize((384, 248), Image.Resampling.BICUBIC)
    grey.save(tmp_path / "scan.jpeg", quality=90)
    return tmp_path / "scan.jpeg"


@pytest.mark.parametrize("run", ["trained", "fitted"])
def test_plain_timm_gives_the_features_of_a_run(run, request, scan):
    export = request.getfixturevalue(run) / "export"
    ours = our_features(export, scan)
    np.testing.assert_allclose(documented_snippet(export, scan).numpy(), ours, rtol=1e-5, atol=1e-5)
    config = json.loads((export / "config.json").read_text())
    assert config["scans"] == {"neutralise_borders": True, "max_side": 2048, "grey_range": "auto"}
    assert config["pretrained_cfg"]["crop_mode"] == "squash"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_small_patch14_dinov2", {**TINY, "img_size": 70}),
        ("vit_small_patch14_reg4_dinov2", {**TINY, "img_size": 70}),
        ("vit_small_patch16_dinov3", {**TINY, "embed_dim": 96}),
        ("vit_tiny_patch16_224", {**TINY, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {**TINY, "img_size": [48, 96]}),
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
    ],
)
@pytest.mark.parametrize("classes", [0, 3])
def test_plain_timm_gives_the_features_of_any_architecture(name, args, classes, scan, tmp_path):
    model = load_backbone(f"random:{name}", num_classes=classes, model_args=args)
    model.pretrained_cfg["mean"] = model.hub_config["pretrained_cfg"]["mean"] = [0.2, 0.3, 0.4]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    save_export(model, tmp_path / "export", [*"abc"][:classes] or None)
    ours = our_features(tmp_path / "export", scan)
    np.testing.assert_allclose(documented_snippet(tmp_path / "export", scan).numpy(), ours, rtol=1e-5, atol=1e-5)


def test_images_of_timms_transform_are_ours(scan, tmp_path):
    """Also of one channel, with the grey image that it needs."""
    import timm

    for channels, mode in ((3, "RGB"), (1, "L")):
        model = load_backbone("random:vit_tiny_patch16_224", model_args={**TINY, "in_chans": channels})
        save_export(model, tmp_path / "export")
        plain = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True, num_classes=0).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(plain))
        with torch.no_grad():
            theirs = plain(transform(Image.open(scan).convert("L").convert(mode))[None]).numpy()
        np.testing.assert_allclose(theirs, our_features(tmp_path / "export", scan), rtol=1e-5, atol=1e-5)


BAD_IMAGES = {
    "mean": [
        [float("nan")] * 3,
        [0, 0, 0],
        [0.5, 0.5],
        [-0.1, 0.5, 0.5],
        [123.7, 116.3, 103.5],
        None,
        "0.5",
        [[0.5]] * 3,
    ],
    "std": [[float("nan")] * 3, [0, 0, 0], [0.2, 0.2], [-0.1, 0.2, 0.2], [58.4, 57.1, 57.4], None, [True] * 3],
    "input_size": [[3, 0, 64], [3, 64], [3, 64, 1e9], "3"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_IMAGES.items() for value in values])
def test_a_normalisation_that_cannot_be_is_refused(key, value, tmp_path):
    save_export(load_backbone("random:vit_tiny_patch16_224", model_args=TINY), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert load_backbone(str(tmp_path)).pretrained_cfg["mean"] == [0.5] * 3
    config["pretrained_cfg"][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=key):
        load_backbone(str(tmp_path))
    del config["pretrained_cfg"][key]
    file.write_text(json.dumps(config))
    if key != "input_size":
        with pytest.raises(InputError, match=key):
            load_backbone(str(tmp_path))


ELSEWHERE = [
    {"architecture": "hf-hub:timm/vit_tiny_patch16_224"},
    {"architecture": "local-dir:/etc"},
    {"architecture": "timm/vit_tiny_patch16_224"},
    {"architecture": ["vit_tiny_patch16_224"]},
    *(
        {"model_args": {**TINY, key: value}}
        for key, value in (
            ("checkpoint_path", "other.pth"),
            ("pretrained", True),
            ("pretrained_cfg", {"file": "other.pth"}),
            ("pretrained_cfg_overlay", {"url": "https://example.org/x.pth"}),
            ("cache_dir", "elsewhere"),
            ("features_only", True),
            ("norm_layer", "../x"),
            ("mlp_ratio", {"a": 1}),
            ("mlp_ratio", float("inf")),
        )
    ),
    {"model_args": "depth=3"},
    {"num_classes": -1},
    {"label_names": ["a", "b"]},
]


@pytest.mark.parametrize("change", ELSEWHERE, ids=lambda change: json.dumps(change)[:60])
def test_a_description_leads_nowhere_else(change, tmp_path, monkeypatch):
    model = load_backbone("random:vit_tiny_patch16_224", model_args=TINY)
    save_export(model, tmp_path / "export")
    file = tmp_path / "export" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    torch.save({"model": model.state_dict(), "hub_config": model.hub_config | change}, tmp_path / "last.pt")
    monkeypatch.setattr("timm.create_model", lambda *args, **kwargs: pytest.fail("the description was followed"))
    for source in (tmp_path, tmp_path / "last.pt"):
        with pytest.raises(InputError):
            load_backbone(str(source))


def test_the_users_arguments_are_held_to_the_same_list():
    with pytest.raises(InputError, match="'checkpoint_path' is no argument of vit_tiny_patch16_224"):
        load_backbone("random:vit_tiny_patch16_224", model_args={"checkpoint_path": "x.pth"})
    with pytest.raises(InputError, match="'depht' is no argument of vit_tiny_patch16_224; it has"):
        load_backbone("random:vit_tiny_patch16_224", model_args={"depht": 3})


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vit_small_patch16_224"])
def test_a_classifier_trained_at_another_size_is_native_there(name, scan, tmp_path):
    args = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    args |= {"patch_size": 1} if "_r_" in name else {"reg_tokens": 2} if "small" in name else {}
    before = load_backbone(f"random:{name}", model_args=args, num_classes=2).eval()
    zoo = build(f"random:{name}", 2, image_size=(80, 112), model_args=args)
    images = torch.randn(2, 3, 80, 112)
    with torch.no_grad():
        torch.testing.assert_close(zoo.model.eval()(images), before(images))
    save_export(zoo.model, tmp_path / "export", ["a", "b"])
    ours = our_features(tmp_path / "export", scan)
    np.testing.assert_allclose(documented_snippet(tmp_path / "export", scan).numpy(), ours, rtol=1e-5, atol=1e-5)
    assert list(load_backbone(str(tmp_path / "export")).patch_embed.img_size) == [80, 112]
