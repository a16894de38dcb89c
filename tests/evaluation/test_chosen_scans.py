"""Single image files are read as the run read its scans, or what is assumed is said."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dino_oct.config import RunSettings
from dino_oct.data.cache import open_cache
from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.errors import InputError
from evaluation.config import DatasetOptions
from evaluation.inputs.selection import from_files
from evaluation.inputs.sources import Source


@pytest.fixture
def folder(tmp_path):
    """Scans of 12 bits; that of patient 1 is dark."""
    for i in range(8):
        values = np.linspace(0, 300 if i == 1 else 4000, 50)[:, None] * np.random.default_rng(i).uniform(
            0.9, 1, (50, 70)
        )
        (tmp_path / "scans").mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "scans" / f"CNV-{i}-1.png")
    return tmp_path


def source_of(folder, **dataset):
    settings = RunSettings(
        data=str(folder / "scans"), dataset=DatasetConfig(cache_dir=str(folder / "cache"), **dataset)
    )
    return Source(str(folder / "run"), folder / "run", settings)


def read(folder, source, **options):
    (scan,), about = from_files([str(folder / "scans" / "CNV-1-1.png")], source, DatasetOptions(**options))
    return scan.scan, about


def test_a_file_alone_takes_the_range_of_the_runs_folder(folder):
    source = source_of(folder)
    config = source.config.dataset
    index, cache = open_cache(index_scans(folder / "scans", config), config, progress=False)
    dark = index.files.index("CNV-1-1.png")
    scan, about = read(folder, source)
    np.testing.assert_array_equal(scan, cache[dark])
    assert scan.max() < 25
    assert "grey range of deep images: as in the run's folder, integers 0 to 4095" in about["notes"]
    shutil.rmtree(folder / "cache")  # nothing tells any more
    scan, about = read(folder, source)
    assert scan.max() > 70
    assert any(
        "integers 0 to 1023, decided over these files; what the run's scans had is not" in n for n in about["notes"]
    )


def test_a_range_of_the_settings_or_of_the_command_line_comes_first(folder):
    scan, about = read(folder, source_of(folder, grey_range=511))
    assert abs(int(scan.max()) - round(300 / 511 * 255)) <= 1
    assert "grey range of deep images: 0 to 511, as the run's settings say" in about["notes"]
    scan, about = read(folder, source_of(folder, grey_range=511), grey_range=1022)
    assert abs(int(scan.max()) - round(300 / 1022 * 255)) <= 1
    assert "grey range of deep images: 0 to 1022, as given" in about["notes"]
    assert about["dataset"]["grey_range"] == {"integers": 1022, "floats": 1022}


def test_without_a_run_the_given_files_decide_together(folder):
    files = sorted(str(file) for file in (folder / "scans").iterdir())
    scans, about = from_files(files, Source("timm:vit"), DatasetOptions())
    assert scans[1].scan.max() < 25
    assert any("integers 0 to 4095, decided over these files; --dataset.grey-range" in note for note in about["notes"])


@pytest.mark.timeout(30)
def test_what_is_no_file_is_one_line(folder):
    os.mkfifo(folder / "x.jpg")
    for name, reason in (("x.jpg", "not a regular file"), ("y.jpg", "no such file")):
        with pytest.raises(InputError, match=reason):
            from_files([str(folder / name)], Source("timm:vit"), DatasetOptions())
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.eye(60, 40, dtype=np.uint8) * 200).save(folder / "z.jpg", exif=turned)
    (scan,), about = from_files([str(folder / "z.jpg")], Source("timm:vit"), DatasetOptions())
    assert scan.scan.shape == (40, 60)
    assert any("turned as their EXIF orientation says" in note for note in about["notes"])
