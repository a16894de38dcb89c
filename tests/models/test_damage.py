"""Weights that were damaged after they were written are refused, wherever they are read and whatever byte it was."""

import random
import shutil

import pytest
import torch

from dino_oct.errors import InputError
from dino_oct.models import official
from dino_oct.models.backbone import load_backbone, save_export

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 1, "img_size": 32}


def flip(file, position, bits=0x10):
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    file.write_bytes(content)


@pytest.fixture(scope="module")
def model():
    return load_backbone("random:vit_tiny_patch16_224", model_args=TINY)


@pytest.mark.parametrize("name", ["backbone.safetensors", "last.pt"])
def test_no_byte_changes_a_number(model, name, tmp_path):
    """A flipped byte is refused in one line, or lies where nothing is read from: the tensors are then the same."""
    save_export(model, tmp_path)
    torch.save({"model": model.state_dict(), "hub_config": model.hub_config, "step": 1}, tmp_path / "last.pt")
    whole, damaged = tmp_path / name, tmp_path / f"damaged{(tmp_path / name).suffix}"
    size, draw, messages = whole.stat().st_size, random.Random(0), []
    header = range(0, 2400, 3)  # names, shapes, offsets and the digest, or the zip's first records
    for position in [*header, *(draw.randrange(size) for _ in range(300)), *range(size - 200, size)]:
        shutil.copy(whole, damaged)
        flip(damaged, position, 1 << draw.randrange(8))
        try:
            tensors = official.read_checkpoint(damaged)
        except InputError as error:
            messages.append(str(error))
            continue
        tensors = tensors.get("model", tensors)
        assert tensors.keys() == model.state_dict().keys(), position
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items()), position
    assert len(messages) > 300
    assert not any("\n" in message for message in messages)


def test_three_flipped_bytes_of_a_weight_are_named_and_the_way_out(model, tmp_path):
    save_export(model, tmp_path)
    for position in (-1000, -2000, -3001):
        flip(tmp_path / "backbone.safetensors", position)
    with pytest.raises(InputError, match=r"backbone\.safetensors: damaged: .*; give an earlier checkpoint"):
        load_backbone(str(tmp_path))


def test_tensors_under_exchanged_names_or_shapes_are_damage():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2, 3)}
    digests = {
        official.digest(changed)
        for changed in (
            tensors,
            {"a": tensors["b"], "b": tensors["a"]},
            {**tensors, "a": torch.zeros(3, 2)},
            {**tensors, "a": torch.zeros(2, 3, dtype=torch.int32)},
            {"a": tensors["a"]},
        )
    }
    assert len(digests) == 5
    assert official.digest(dict(reversed(tensors.items()))) == official.digest(tensors)


def test_a_damaged_run_is_neither_resumed_nor_started_from_nor_evaluated(trained, call, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in ("checkpoints/last.pt", "export/backbone.safetensors"):
        for position in (-5000, -6000, -7000):
            flip(run / name, position)
    resume = ["dino_oct/train.py", "--config", run / "config.yaml", "--out", run, "--optim.epochs", 5]
    start = ["dino_oct/train.py", "--config", run / "config.yaml", "--out", tmp_path / "new", "--init", run]
    for args in (resume, start, ["evaluation/knn.py", "--model", run, "--k", 1]):
        finished = call(*args)
        assert finished.returncode == 2, finished.stderr
        lines = finished.stderr.strip().splitlines()
        assert len(lines) == 1
        assert "damaged: " in lines[0]
        assert "give an earlier checkpoint" in lines[0]


def test_weights_that_are_not_finite_start_nothing(model, tmp_path):
    tensors = {**model.state_dict(), "norm.bias": torch.full((16,), torch.nan)}
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="weights that are not finite"):
        load_backbone(str(tmp_path / "nan.pth"), heads=1)
