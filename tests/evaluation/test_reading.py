"""How evaluations read other scans than a run's own: tables, patterns, pixel sizes, one volume."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_oct.config import TrainConfig
from dino_oct.data.index import DatasetConfig, Reading
from dino_oct.errors import InputError
from evaluation.config import ComparisonOptions, DataOptions, DatasetOptions, ExternalOptions
from evaluation.inputs.scans import open_data, open_external
from evaluation.inputs.selection import from_files, from_split
from evaluation.inputs.sources import Source, open_source
from evaluation.report.methods import single_commands

PATTERN = r"(?P<label>[A-Z]+) (?P<patient>\d+).*"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scans of 20 patients and two classes in one folder, and a table of them with columns of other names."""
    folder, rng = tmp_path_factory.mktemp("reading") / "scans", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for i in range(40):
        name = f"{'AB'[i % 2]} {i // 2:02d} {i}.png"
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(folder / name)
        known = {"picture": name, "grade": "XY"[i % 2], "who": i // 4, "axial_um": 4, "lateral_um": 12}
        rows.append({**known, "split": ("train", "val", "test")[i // 4 % 3]})
    with (folder.parent / "told.csv").open("w") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open data as an evaluation does; what was said comes beside them."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(tmp_path / "cache"))

    def run(data, source=None, **dataset):
        told = []
        options = DataOptions(data=data and str(data), dataset=DatasetOptions(**dataset))
        return open_data(source, options, told.append), told

    return run


def run_with(**dataset) -> Source:
    """A source of a run on other scans with such settings."""
    config = TrainConfig(data="elsewhere", dataset=DatasetConfig(**dataset))
    return Source("random:test_vit", Path("elsewhere"), config)


def test_trainers_and_evaluations_share_the_settings():
    assert issubclass(DatasetOptions, Reading)
    assert issubclass(DatasetConfig, Reading)


def test_a_pattern_reads_names(folder, opened):
    data, told = opened(folder, pattern=PATTERN)
    assert data.index.class_names == ("A", "B")
    assert len(set(data.index.patients.tolist())) == 20
    assert told[0] == f"read with: --dataset.pattern {PATTERN}"
    assert opened(folder)[0].index.class_names == ()
    assert opened(folder)[1][0] == "read with: the defaults of --dataset"


def test_a_table_with_columns_of_other_names(folder, opened):
    table = folder.parent / "told.csv"
    columns = ["file=picture", "label=grade", "patient=who"]
    data, told = opened(folder, table=str(table), columns=columns, pixel_um=[5.0, 12.0])
    assert data.index.class_names == ("X", "Y")
    assert len(set(data.index.patients.tolist())) == 10
    assert (data.index.splits == "test").sum() == 12
    assert data.scans[0].shape == (32, 48)  # 160 µm high
    assert told[0] == (
        f"read with: --dataset.table {table}, --dataset.columns file=picture label=grade patient=who, "
        "--dataset.pixel-um 5.0 12.0"
    )


def test_what_a_run_says_of_its_folder_does_not_hold_for_another(folder, opened):
    source = run_with(pattern="nothing like it", layout="folders", table="gone.csv", pixel_um=[4.0, 24.0])
    data, told = opened(folder, source, pattern=PATTERN)
    assert data.index.class_names == ("A", "B")
    assert data.dataset.table == ""
    assert told[0] == f"read with: --dataset.pattern {PATTERN}, --dataset.pixel-um 4.0 24.0 (the run's)"
    data, told = opened(folder, source, pattern=PATTERN, pixel_um=[])
    assert data.dataset.pixel_um == []
    assert told[0].endswith(f"{PATTERN}, --dataset.pixel-um ")


def test_names_can_be_hidden_from_an_evaluation(folder, opened):
    data, told = opened(folder, anonymise=True)
    assert not {path.name for path in folder.iterdir()} & {Path(file).name for file in data.index.files}
    assert told[0] == "read with: --dataset.anonymise True"


def test_options_of_other_scans_need_other_scans(folder, opened, trained):
    with pytest.raises(InputError, match=r"--dataset\.pattern says how the scans of --data are read: give --data"):
        opened(None, open_source(str(trained)), pattern=PATTERN)
    with pytest.raises(InputError, match=r"--dataset\.layout"):
        from_files([str(folder / "A 00 0.png")], Source("random:test_vit"), DatasetOptions(layout="folders"))
    with pytest.raises(InputError, match=r"--dataset\.pixel-um 3\.0: give two numbers"):
        opened(folder, pixel_um=[3.0])


def test_one_folder_can_be_read_in_another_way_than_in_training(folder, opened, tmp_path):
    """Then the run's table of scans says nothing about it."""
    config = TrainConfig(data=str(folder), dataset=DatasetConfig())
    source = Source("random:test_vit", tmp_path, config)
    data, told = opened(folder, source, pattern=PATTERN)
    assert data.index.class_names == ("A", "B")
    assert told[0].startswith("read with: --dataset.pattern")
    _, told = opened(folder, source)
    assert not any(line.startswith("read with") for line in told)


def test_one_volume_is_all_test(opened, tmp_path):
    np.save(tmp_path / "eye.npy", np.random.default_rng(0).integers(0, 255, (4, 40, 48), dtype=np.uint8))
    data, told = opened(tmp_path / "eye.npy")
    assert [file.rsplit("#", 1)[1] for file in data.index.files] == ["0000", "0001", "0002", "0003"]
    assert set(data.index.splits.tolist()) == {"test"}
    assert "split: one volume alone: all of it is test" in told
    assert len(from_split(data, "test", 8)[0]) == 4


def test_scans_from_elsewhere_may_be_a_table(folder, opened, tmp_path):
    own, _ = opened(folder, pattern=PATTERN)
    with (tmp_path / "theirs.csv").open("w") as stream:
        stream.write("file,label,patient\n")
        stream.writelines(f"{folder}/{'AB'[i % 2]} {i // 2:02d} {i}.png,{'AC'[i % 2]},{i}\n" for i in range(6))
    options = dataclasses.replace(ExternalOptions(), external=str(tmp_path / "theirs.csv"))
    external = open_external(None, options, own, lambda text: None)
    assert (external.classes, len(external.positions)) == ({"A": "A"}, 3)


def test_the_commands_of_a_report_read_alike(monkeypatch):
    options = ComparisonOptions(data="scans", dataset=DatasetOptions(pattern=PATTERN, pixel_um=[4.0, 12.0]))
    model = dataclasses.make_dataclass("Model", ["source"])(Source("runs/a"))
    command = single_commands({"a": model}, options)[0]
    assert f"--data scans --dataset.pattern '{PATTERN}' --dataset.pixel-um 4.0 12.0 --bootstrap" in command
    assert "--dataset.table" not in command
    assert "--dataset.layout" not in command
