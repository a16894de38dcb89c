"""Features come back from disk as they were computed, or are computed again; never others."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone
from dino_oct.models.frozen import load_frozen
from dino_oct.models.network import normalise
from evaluation.config import Kind
from evaluation.inputs.feature_cache import RAW_PIXELS, Extraction, FeatureCache, of_network
from evaluation.inputs.features import protocol_kind
from evaluation.inputs.preprocessing import Preprocessing

CPU = torch.device("cpu")
TINY = {"patch_size": 8, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}


class Scans(list):
    """Scans with digests, as ``ScanCache`` has."""

    def __init__(self, scans):
        super().__init__(scans)
        self.digests = np.array([str(hash(scan.tobytes())) for scan in scans], dtype="S32")


@pytest.fixture
def scans():
    rng = np.random.default_rng(0)
    return Scans([rng.integers(0, 255, (40, 48), dtype=np.uint8) for _ in range(6)])


@pytest.fixture
def counted():
    """An extraction that counts the images it was given."""
    calls = SimpleNamespace(images=0)

    def extract(images):
        calls.images += len(images)
        return images.float().mean(dim=(1, 2)).numpy()

    return Extraction(extract, {"weights": "a"}), calls


ALL = np.arange(6)


def test_a_hit_returns_the_same_features_without_running_the_model(tmp_path, scans, counted):
    extraction, calls = counted
    first = FeatureCache(tmp_path).get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})["model"]
    again = FeatureCache(tmp_path).get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})["model"]
    assert calls.images == 6
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("change", ["size", "weights", "positions", "order", "pixels"])
def test_whatever_changes_features_is_another_entry(change, tmp_path, scans, counted):
    extraction, calls = counted
    cache = FeatureCache(tmp_path)
    cache.get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})
    size, positions = (32, 32), ALL
    if change == "size":
        size = (32, 24)
    elif change == "weights":
        extraction = dataclasses.replace(extraction, identity={"weights": "b"})
    elif change == "positions":
        positions = ALL[:5]
    elif change == "order":
        positions = ALL[::-1]
    else:
        scans = Scans([scans[0] // 2, *scans[1:]])
    features = cache.get(scans, positions, Preprocessing(size), {"model": extraction})["model"]
    assert calls.images == 6 + len(positions)
    direct = FeatureCache(tmp_path / "other").get(scans, positions, Preprocessing(size), {"model": extraction})["model"]
    np.testing.assert_array_equal(features, direct)


@pytest.mark.parametrize("damage", ["flipped byte", "cut off", "empty", "no description", "of another entry"])
def test_a_damaged_entry_is_noticed_and_made_again(damage, tmp_path, scans, counted, capsys):
    extraction, calls = counted
    cache = FeatureCache(tmp_path)
    expected = cache.get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})["model"]
    (entry,) = [folder for folder in cache.folder.iterdir() if not folder.name.startswith(".")]
    file = entry / "features.npy"
    content = bytearray(file.read_bytes())
    if damage == "flipped byte":
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "cut off":
        file.write_bytes(content[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "no description":
        (entry / "about.json").write_text("{")
    else:
        about = entry / "about.json"
        about.write_text(about.read_text().replace('"weights": "a"', '"weights": "b"'))
    features = cache.get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})["model"]
    np.testing.assert_array_equal(features, expected)
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1
    assert "feature cache damaged, extracting again" in warnings[0]
    assert calls.images == 12
    cache.get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})  # mended
    assert calls.images == 12


def test_only_what_is_missing_is_extracted(tmp_path, scans, counted):
    extraction, calls = counted
    cache = FeatureCache(tmp_path)
    cache.get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})
    features = cache.get(scans, ALL, Preprocessing((32, 32)), {"model": extraction, "pixels": RAW_PIXELS})
    assert calls.images == 6
    assert features["pixels"].shape == (6, 48 * 48)


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path, scans, counted, capsys):
    extraction, _ = counted
    (tmp_path / "features").write_text("a file where the folder should be")
    features = FeatureCache(tmp_path).get(scans, ALL, Preprocessing((32, 32)), {"model": extraction})["model"]
    assert features.shape == (6, 32)
    assert "features not kept" in capsys.readouterr().err


def test_kinds_of_features_and_ways_to_open_a_file_are_kept_apart(tmp_path, scans):
    model = load_frozen("random:vit_tiny_patch16_224", CPU, model_args=TINY, seed=0)
    other_heads = load_frozen("random:vit_tiny_patch16_224", CPU, model_args={**TINY, "num_heads": 4}, seed=0)
    other_heads.weights = model.weights  # the same file, opened with other heads
    features = FeatureCache(tmp_path).get(
        scans,
        ALL,
        Preprocessing((32, 32)),
        {
            "cls": of_network(model, CPU),
            "blocks": of_network(model, CPU, kind=Kind(2)),
            "mean": of_network(model, CPU, kind=Kind(1, mean_patch=True)),
            "bf16": of_network(model, CPU, precision="bf16"),
            "heads": of_network(other_heads, CPU),
        },
    )
    assert len(list((tmp_path / "features").iterdir())) == 5
    assert {name: rows.shape[1] for name, rows in features.items()} == {
        "cls": 32, "blocks": 64, "mean": 64, "bf16": 32, "heads": 32,
    }  # fmt: skip
    np.testing.assert_allclose(features["blocks"][:, 32:], features["cls"], atol=1e-5)
    np.testing.assert_allclose(features["mean"][:, ::2], features["cls"], atol=1e-5)
    assert not np.array_equal(features["heads"], features["cls"])
    assert not np.array_equal(features["bf16"], features["cls"])
    np.testing.assert_allclose(features["bf16"], features["cls"], atol=0.05)


def test_the_protocol_takes_as_many_blocks_as_there_are():
    def kind(name, **args):
        return protocol_kind(load_backbone(f"random:{name}", model_args=args))

    assert kind("vit_tiny_patch16_224", **TINY) == Kind(2)
    assert kind("vit_tiny_patch16_224", depth=6) == Kind(4)
    assert kind("vit_tiny_patch16_224", depth=1, embed_dim=768, num_heads=12) == Kind(1, mean_patch=True)
    assert kind("resnet18") == Kind()


def test_the_dino_protocol_keeps_the_middle_and_the_aspect_and_squash_keeps_everything():
    scan = np.zeros((100, 300), dtype=np.uint8)
    scan[40:60, 140:160] = 255  # a square in the middle
    scan[:, :20] = 128  # the left end
    resized = Preprocessing((224, 224))([scan])[0, 0]
    cropped = Preprocessing((224, 224), "dino")([scan])[0, 0]
    assert resized.shape == cropped.shape == (224, 224)
    assert resized[0, 0] == 128
    assert cropped[0, 0] == 0
    rows, columns = (cropped > 127).any(dim=1).sum(), (cropped > 127).any(dim=0).sum()
    assert abs(int(rows) - 51) <= 1  # 20 px · 256 / 100
    assert abs(int(columns) - 51) <= 1
    with pytest.raises(InputError, match="crops a square"):
        Preprocessing((224, 256), "dino")


def test_the_dino_protocol_is_that_of_pil():
    from PIL import Image

    scan = np.random.default_rng(0).integers(0, 255, (496, 768), dtype=np.uint8)
    resized = Image.fromarray(scan).resize((396, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((86, 16, 310, 240)), dtype=int)
    image = Preprocessing((224, 224), "dino")([scan])[0, 0].numpy().astype(int)
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize(
    ("kind", "width"), [(Kind(0, True), 32), (Kind(1, True), 64), (Kind(2), 64), (Kind(2, True), 96)]
)
def test_tokens_of_a_kind_have_its_width_and_mean(kind, width):
    network = load_frozen("random:vit_tiny_patch16_224", CPU, model_args=TINY)
    images = torch.randint(0, 255, (3, 1, 32, 32), dtype=torch.uint8)
    features = of_network(network, CPU, kind=kind).extract(images)
    assert features.shape == (3, width)
    tokens = network.forward_features(normalise(images, network))
    if kind == Kind(0, True):
        np.testing.assert_allclose(features, tokens[:, 1:].mean(dim=1), atol=1e-5)
    if kind == Kind(1, True):
        np.testing.assert_allclose(features[:, ::2], tokens[:, 0], atol=1e-5)


def test_features_that_a_network_does_not_have_are_refused():
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    cnn = load_frozen("random:resnet18", CPU)
    with pytest.raises(InputError, match="vision transformer"):
        of_network(cnn, CPU, kind=Kind(0, True)).extract(images)
    vit = load_frozen("random:vit_tiny_patch16_224", CPU, model_args=TINY)
    with pytest.raises(InputError, match="3 blocks: give 1 to 2"):
        of_network(vit, CPU, kind=Kind(3)).extract(images)
