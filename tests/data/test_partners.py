"""A partner is another scan of the same place, eye or patient, and a function of (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from conftest import TINY_RUN

from dino_oct.augment import MultiCrop
from dino_oct.config import AugmentConfig
from dino_oct.data.index import index_scans
from dino_oct.data.partners import Partners
from dino_oct.errors import InputError


@pytest.fixture
def index(tmp_path):
    """Two patients, two eyes, two visits, five slices."""
    rows = ["file,patient,eye,visit,volume,slice"]
    for patient in "12":
        for eye in "RL":
            for visit in "12":
                for number in range(5):
                    file = f"{patient}{eye}{visit}{number}.png"
                    (tmp_path / file).touch()
                    rows.append(f"{file},{patient},{eye},{visit},{patient}{eye}{visit},{number}")
    (tmp_path / "scans.csv").write_text("\n".join(rows))
    return index_scans(tmp_path / "scans.csv")


@pytest.mark.parametrize(
    ("pair", "distance", "expected"),
    [
        ("slice", 1, {"1R11", "1R13"}),
        ("slice", 2, {"1R10", "1R11", "1R13", "1R14"}),
        ("visit", 0, {"1R22"}),
        ("visit", 1, {"1R21", "1R22", "1R23"}),
        ("eye", 0, {f"1R{v}{s}" for v in "12" for s in range(5)} - {"1R12"}),
        ("patient", 0, {f"1{e}{v}{s}" for e in "RL" for v in "12" for s in range(5)} - {"1R12"}),
    ],
)
def test_partners_are_those_of_the_place(index, pair, distance, expected):
    everyone = np.arange(len(index))
    partners = Partners(index, everyone, pair, distance, seed=0)
    assert partners.count == len(index)
    sample = index.files.index("1R12.png")
    found = [partners.partner(sample, epoch) for epoch in range(300)]
    assert {index.files[i].removesuffix(".png") for i in found} == expected
    assert found == [Partners(index, everyone, pair, distance, seed=0).partner(sample, epoch) for epoch in range(300)]


def test_partners_are_training_scans(index):
    few = np.array([index.files.index(f"1R1{s}.png") for s in (0, 1, 4)])
    partners = Partners(index, few, "slice", 1, seed=0)
    assert partners.count == 2
    assert [partners.partner(sample, 3) for sample in range(3)] == [1, 0, 2]  # the last one has none


def test_without_partners_it_is_one_line(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").touch()
    index = index_scans(tmp_path)
    for pair in ("slice", "visit", "eye", "patient"):
        with pytest.raises(InputError, match=rf"--augment\.pair {pair}: no training scan has a partner"):
            Partners(index, np.arange(3), pair, 1, seed=0)


def test_only_the_second_global_view_is_the_partners():
    config = AugmentConfig(global_size=32, local_size=16, n_local=2, min_tissue=0)
    augment = MultiCrop(config, 0)
    rng = np.random.default_rng(0)
    scans, others = (rng.integers(0, 255, (2, 50, 60), dtype=np.uint8) for _ in range(2))
    plain, paired = augment(scans, None, [3, 4], 1), augment(scans, None, [3, 4], 1, (others, None))
    swapped = augment(others, None, [3, 4], 1)
    torch.testing.assert_close(paired.locals, plain.locals, rtol=0, atol=0)
    torch.testing.assert_close(paired.globals[0], plain.globals[0], rtol=0, atol=0)
    torch.testing.assert_close(paired.globals[1], swapped.globals[1], rtol=0, atol=0)


def test_a_run_with_pairs(call, tmp_path):
    volumes = ("--phantom.slices", "5", "--phantom.visits", "2")
    args = ("dino_oct/train.py", *TINY_RUN, *volumes, "--optim.epochs", "1", "--out", tmp_path / "run")
    done = call(*args, "--augment.pair", "slice")
    assert done.returncode == 0, done.stderr
    assert "training scans have a partner (slice)" in done.stdout
    wrong = call("dino_oct/train.py", *TINY_RUN, "--augment.pair", "visit", "--out", tmp_path / "other")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
