"""Tables with several labels a scan, and with numbers to predict: two spellings of one set, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from test_index import touch
from test_table import write

from dino_oct.data.audit import Options as AuditOptions
from dino_oct.data.audit import main as audit_main
from dino_oct.data.audit_text import render
from dino_oct.data.cache import open_cache
from dino_oct.data.checks import audit
from dino_oct.data.fix import fixed_table
from dino_oct.data.index import UNKNOWN, UNLABELLED, DatasetConfig, index_scans
from dino_oct.data.phantom import PhantomConfig, write_phantoms
from dino_oct.data.run_table import by_table, read_rows, rows_of, without_copies_of_held_out, write_rows
from dino_oct.data.table import Options as TableOptions
from dino_oct.data.table import main
from dino_oct.errors import InputError

RAGGED = "file,label,patient\na.png,DRUSEN;CNV,1\nb.png,cnv | edema,2\nc.png,NORMAL,3\nd.png,,4\ne.png,CNV,5\n"
WIDE = (
    "file,patient,CNV,DRUSEN,NORMAL,edema\n"
    "a.png,1,1,true,0,no\nb.png,2,yes,0,0.0,TRUE\nc.png,3,0,0,1,0\nd.png,4,,,,\ne.png,5,1.0,0,0,False\n"
)
PREFIXED = WIDE.replace("CNV,DRUSEN,NORMAL,edema", "label:CNV,Label:DRUSEN,label:NORMAL,label:edema")
FILES = [f"{name}.png" for name in "abcde"]
LABELS = DatasetConfig(columns=["labels=edema,CNV,DRUSEN,NORMAL"])


def several(index):
    return {name: values.tolist() for name, values in index.multilabels.items()}


def test_labels_in_one_cell_or_in_a_column_each_are_one_set(tmp_path):
    touch(tmp_path, *FILES)
    ragged = index_scans(write(tmp_path, RAGGED, "ragged.csv"))
    wide = index_scans(write(tmp_path, WIDE, "wide.csv"), LABELS)
    prefixed = index_scans(write(tmp_path, PREFIXED, "prefixed.csv"))
    assert several(ragged) == {
        "CNV": [1, 1, 0, UNKNOWN, 1],
        "DRUSEN": [1, 0, 0, UNKNOWN, 0],
        "NORMAL": [0, 0, 1, UNKNOWN, 0],
        "edema": [0, 1, 0, UNKNOWN, 0],
    }
    assert several(wide) == several(prefixed) == several(ragged)
    assert list(wide.multilabels) == list(ragged.multilabels)  # in one order
    for index in (ragged, wide, prefixed):
        assert index.class_names == ()
        assert (index.labels == UNLABELLED).all()
        assert index.is_labelled.tolist() == [True, True, True, False, True]
        assert index.patients.tolist() == list("12345")
    assert "4 labels (CNV, DRUSEN, NORMAL, edema)" in ragged.how


def test_one_class_a_scan_stays_one(tmp_path):
    touch(tmp_path, *FILES)
    index = index_scans(write(tmp_path, "file,label\na.png,CNV\nb.png,NORMAL\n"))
    assert index.class_names == ("CNV", "NORMAL")
    assert not index.multilabels
    assert not index.targets
    assert index.labels.tolist() == [0, 1]
    assert index.is_labelled.all()
    given = DatasetConfig(columns=["label=CNV"])  # asked for, though there are columns of one label each
    assert index_scans(write(tmp_path, PREFIXED, "p.csv"), DatasetConfig(columns=["label=patient"])).class_names
    assert not index_scans(write(tmp_path, WIDE, "w.csv"), given).multilabels


def test_an_unknown_value_is_neither_yes_nor_no(tmp_path):
    touch(tmp_path, *FILES)
    table = write(tmp_path, "file,CNV,edema\na.png,1,\nb.png,,0\nc.png,,\n")
    index = index_scans(table, DatasetConfig(columns=["labels=CNV,edema"]))
    assert several(index) == {"CNV": [1, UNKNOWN, UNKNOWN], "edema": [UNKNOWN, 0, UNKNOWN]}
    assert index.is_labelled.tolist() == [True, True, False]
    assert index.multilabel_matrix().tolist() == [[1, -1], [-1, 0], [-1, -1]]


def test_targets_are_numbers_beside_any_kind_of_labels(tmp_path):
    touch(tmp_path, *FILES)
    table = write(tmp_path, "file,label,severity,target:va\na.png,CNV,1,0.5\nb.png,NORMAL,0,\nc.png,CNV,2.5,-1e-2\n")
    index = index_scans(table, DatasetConfig(columns=["targets=severity"]))
    assert list(index.targets) == ["severity"]
    assert index.targets["severity"].tolist() == [1, 0, 2.5]
    assert index.fact("severity").tolist() == ["1", "0", "2.5"]  # what the report's section reads
    assert index.class_names == ("CNV", "NORMAL")
    (name, values), *more = index_scans(table).targets.items()
    assert name == "va"
    assert not more
    assert values[[0, 2]].tolist() == [0.5, -0.01]
    assert np.isnan(values[1])
    assert index_scans(table).target_matrix().shape == (3, 1)


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (
            ["labels=CNV"],
            "file,CNV\na.png,1\nb.png,2\n",
            "row 3, column CNV: '2' is none of 1, 0, true, false",
        ),
        (
            ["labels=x"],
            "file,x\na.png,CNV;edema\n",
            "row 2, column x: .* read with label=COLUMN",
        ),
        (["targets=va"], "file,va\na.png,0.5\nb.png,20/40\n", "row 3, column va: '20/40' is no number"),
        (["targets=va"], "file,va\na.png,1e999\n", "row 2, column va: '1e999' is no number"),
        (["labels=CNV,DME"], "file,CNV\na.png,1\n", "has no column 'DME'; it has file, CNV"),
        (["labels=CNV,CNV"], "file,CNV\na.png,1\n", "column CNV: another column has this name"),
        (["labels=CNV", "label=CNV"], "file,CNV\na.png,1\n", "give one of them"),
        (["lables=CNV"], "file,CNV\na.png,1\n", "'lables' is none of file, .*labels, targets"),
        (["slice=s"], "file,s\na.png,1\nb.png,x\n", "row 3, column s: 'x' is no number of a slice"),
    ],
)
def test_what_a_table_cannot_say_is_one_line(tmp_path, columns, text, message):
    touch(tmp_path, *FILES)
    with pytest.raises(InputError, match=message) as error:
        index_scans(write(tmp_path, text), DatasetConfig(columns=columns))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_written_table_comes_back(tmp_path, suffix):
    touch(tmp_path, *FILES)
    config = DatasetConfig(columns=["labels=CNV,edema", "targets=va"])
    table = write(tmp_path, "file,CNV,edema,va,label\na.png,1,,0.1,X\nb.png,0,0,,Y\nc.png,,,12,Z\n")
    index, out = index_scans(table, config), tmp_path / f"out{suffix}"
    main(TableOptions(str(table), out, dataset=config))
    again = index_scans(out)
    assert several(again) == several(index) == {"CNV": [1, 0, UNKNOWN], "edema": [UNKNOWN, 0, UNKNOWN]}
    assert np.array_equal(again.targets["va"], index.targets["va"], equal_nan=True)
    assert not any("not read" in note for note in again.notes)


def test_a_runs_table_holds_labels_and_targets(tmp_path):
    touch(tmp_path, *FILES)
    index = index_scans(write(tmp_path, WIDE.replace("patient", "target:x")), LABELS)
    digests = np.array([f"{i:040x}".encode() for i in range(len(index))])
    rows = rows_of(index, digests)
    assert rows[1].further == {
        "label:CNV": "1", "label:DRUSEN": "0", "label:NORMAL": "0", "label:edema": "1", "target:x": "2",
    }  # fmt: skip
    write_rows(tmp_path / "run.csv", rows)
    assert read_rows(tmp_path / "run.csv") == rows
    assert by_table(index, digests, rows)[1] == []
    flipped = {**index.multilabels, "edema": 1 - index.multilabels["edema"]}
    assert "4 scans with other labels or targets" in by_table(replace(index, multilabels=flipped), digests, rows)[1][0]
    old = [replace(row, further={}) for row in rows]  # of a run that had none
    write_rows(tmp_path / "old.csv", old)
    assert read_rows(tmp_path / "old.csv") == old
    (tmp_path / "run.csv").write_text((tmp_path / "run.csv").read_text().replace("target:x", "x"))
    with pytest.raises(InputError, match="damaged"):
        read_rows(tmp_path / "run.csv")


def test_labels_stay_with_their_scans(tmp_path):
    """Through subset, further folders, pseudonyms, and files that come twice."""
    touch(tmp_path / "own", *FILES)
    touch(tmp_path / "more", "0.png", "z.png")
    table = write(tmp_path / "own", RAGGED + "e.png,CNV,5\na.png,DRUSEN,1\n")
    index = index_scans(table, DatasetConfig(unlabelled=[str(tmp_path / "more")], cache_dir=str(tmp_path / "cache")))
    assert ("a.png", "given twice, with different labels") in index.left_out
    own = dict(zip(index.files, index.multilabels["CNV"].tolist(), strict=True))
    assert [own[file] for file in FILES[1:]] == [1, 0, UNKNOWN, 1]
    assert [value for file, value in own.items() if "more" in file] == [UNKNOWN, UNKNOWN]
    assert len(index.targets) == 0
    assert index.target_matrix().shape == (len(index), 0)
    assert several(index.subset([2, 0]))["NORMAL"] == [UNKNOWN, 0]
    hidden = index_scans(table, DatasetConfig(anonymise=True, cache_dir=str(tmp_path / "cache")))
    of_file = zip(hidden.files, hidden.multilabels["CNV"].tolist(), strict=True)
    stored = {hidden.stored[file].name: value for file, value in of_file}
    assert stored == {"b.png": 1, "c.png": 0, "d.png": UNKNOWN, "e.png": 1}


def test_volumes_hand_their_labels_to_every_slice(tmp_path):
    np.save(tmp_path / "eye.npy", np.random.default_rng(0).integers(0, 90, (3, 32, 32)).astype(np.uint8))
    table = write(tmp_path, "file,label,target:va\neye.npy,CNV;edema,0.5\n")
    index = index_scans(table, DatasetConfig(cache_dir=str(tmp_path / "cache")))
    assert several(index) == {"CNV": [1, 1, 1], "edema": [1, 1, 1]}
    assert index.targets["va"].tolist() == [0.5] * 3


def test_copies_of_held_out_scans_count_as_unlabelled_without_any_label(tmp_path):
    touch(tmp_path, *FILES)
    table = write(tmp_path, "file,label,split\na.png,CNV;edema,test\nb.png,,train\nc.png,CNV,train\n")
    index = without_copies_of_held_out(index_scans(table), np.array([b"1", b"1", b"1"]))
    assert index.splits.tolist() == ["test", "", "train"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Phantoms and a table of their findings: fluid of CNV and DME, drusen of DRUSEN; one patient each is unknown."""
    folder = tmp_path_factory.mktemp("several") / "phantoms"
    write_phantoms(folder, PhantomConfig(patients=24, scans_per_patient=2, size=(32, 40)))
    index = index_scans(folder)
    lines = ["file,patient,split,fluid,drusen,target:size"]
    for file, label, patient, split in zip(
        index.files, index.labels.tolist(), index.patients.tolist(), index.splits.tolist(), strict=True
    ):
        name = index.class_names[label]
        fluid = "" if patient == "1" else int(name in ("CNV", "DME"))
        lines.append(f"{file},{patient},{split},{fluid},{int(name == 'DRUSEN')},{label}")
    return write(folder, "\n".join(lines) + "\n")


def test_the_audit_counts_each_label(phantoms, tmp_path):
    config = DatasetConfig(columns=["labels=fluid,drusen"], cache_dir=str(tmp_path / "cache"))
    report = audit(phantoms, config, progress=False)
    assert report["multilabels"]["fluid"] == {
        "with": {"scans": 22, "patients": 11},
        "without": {"scans": 24, "patients": 12},
        "unknown": {"scans": 2, "patients": 1},
    }
    assert report["splits"]["used"]["drusen"]["all"] == {"scans": 12, "patients": 6}
    assert report["targets"]["size"] == {"scans": 48, "patients": 24, "least": 0, "median": 1.5, "most": 3}
    text = render(report)
    assert "fewer than 10 patients with it: drusen" in text
    assert {row["label"] for row in report["shortcut"]["results"]} == {"fluid", "drusen"}
    assert "in more than one class" not in text


def test_exact_copies_that_contradict_each_other_are_found_and_left_out(phantoms, tmp_path):
    """Unknown contradicts nothing."""
    copy = phantoms.parent / "copy.jpeg"
    lines = phantoms.read_text().splitlines()
    told = next(line for line in lines if line.split(",")[3] == "1")
    copy.write_bytes((phantoms.parent / told.split(",")[0]).read_bytes())
    try:
        config = DatasetConfig(columns=["labels=fluid,drusen"], cache_dir=str(tmp_path / "cache"))
        for drusen, fluid, expected in (("0", "0", 2), ("", "1", 0)):
            table = write(phantoms.parent, "\n".join([*lines, f"copy.jpeg,99,train,{fluid},{drusen},"]), "more.csv")
            index, cache = open_cache(index_scans(table, config), config, progress=False)
            left_out = fixed_table(index, cache, phantoms.parent).left_out
            assert len(left_out) == expected
            pairs = audit(table, config, progress=False)["duplicates"]["exact"]["across_classes"]
            assert len(pairs) == expected / 2
        index = index_scans(write(phantoms.parent, "\n".join([*lines, "copy.jpeg,99,train,0,0,"]), "more.csv"), config)
        reason = dict(fixed_table(*open_cache(index, config, progress=False), phantoms.parent).left_out)["copy.jpeg"]
        assert "not fluid, but equal to" in reason
        assert "which is fluid" in reason
    finally:
        copy.unlink()


def test_a_fixed_table_keeps_labels(phantoms, tmp_path, capsys):
    config = DatasetConfig(columns=["labels=fluid,drusen"], cache_dir=str(tmp_path / "cache"))
    audit_main(AuditOptions(str(phantoms), fix=phantoms.parent / "fixed.csv", dataset=config))
    again = index_scans(phantoms.parent / "fixed.csv")
    assert several(again) == several(index_scans(phantoms, config))
    assert np.array_equal(again.targets["size"], index_scans(phantoms).targets["size"])
