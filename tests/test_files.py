"""Files are written whole or not at all: full disks, killed writers, long names, other users, strange sources."""

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clean_process import in_a_process, start
from conftest import FEW_PHANTOMS, REPOSITORY, TINY_FIT, TINY_RUN, environment
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent / "campaigns"))
from corrupt_files import SEARCH_BASE

from dino_oct import config as pretraining
from dino_oct import files
from dino_oct.cli import one_line_errors, parse_options
from dino_oct.data.cache import open_cache
from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.errors import InputError
from dino_oct.models import official
from dino_oct.pretraining import train
from evaluation import compare, knn, linear
from evaluation.inputs.selection import Chosen, page_name
from evaluation.inputs.sources import open_source
from evaluation.report import comparison
from evaluation.report.models import check_names
from supervised import config as supervision
from supervised import tuning
from supervised.training import train as fit

ARRAY = np.random.default_rng(0).random(40_000)


def _torch(path):
    with path.open("wb") as stream:
        torch.save({"a": torch.from_numpy(ARRAY)}, stream)


def _npy(path):
    with path.open("wb") as stream:
        np.save(stream, ARRAY)


def _npz(path):
    with path.open("wb") as stream:
        np.savez_compressed(stream, a=ARRAY)


def _png(path):
    Image.fromarray((255 * ARRAY[:40_000].reshape(200, 200)).astype(np.uint8)).save(path, "PNG")


WRITERS = {
    "torch": _torch,
    "safetensors": lambda path: save_file({"a": torch.from_numpy(ARRAY)}, path),
    "npy": _npy,
    "npz": _npz,
    "PNG": _png,
    "text": lambda path: path.write_text("x" * 100_000),
}


def with_files_up_to(size: int):
    """No file of this process may grow beyond so many bytes: what a full disk does to its writers."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def said_by(work, status: int, limit: float = 60) -> str:
    """What a function in a process of its own says, which must end with this status."""
    ended = in_a_process(work, limit)
    assert ended.status == status, f"status {ended.status}, expected {status}: {ended.said}"
    return ended.said


def the_error(stderr: str) -> str:
    """The one line of an error."""
    (line,) = (line for line in stderr.splitlines() if line.startswith("error"))
    assert "Traceback" not in stderr
    return line


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_the_last_good_file_stays(writer, tmp_path):
    (tmp_path / "out").mkdir()
    file = tmp_path / "out/file"
    file.write_text("good")

    def write():
        with_files_up_to(20_000)
        with files.replacing(file) as partial:
            WRITERS[writer](partial)

    error = the_error(said_by(write, 2))
    assert error.startswith(f"error: disk full: {file} could not be written (File too large, ")
    assert error.endswith(" MB free); free space and run the same command again")
    assert os.listdir(tmp_path / "out") == ["file"]
    assert file.read_text() == "good"
    with files.replacing(file) as partial:
        WRITERS[writer](partial)
    assert file.stat().st_size > 20_000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
def test_every_refusal_of_the_system_is_one_line(number, tmp_path, capsys):
    for error in (OSError(number, os.strerror(number), str(tmp_path / "f")), OSError(number, os.strerror(number))):
        with pytest.raises(SystemExit, match="2"), one_line_errors(), files.naming(tmp_path / "f"):
            raise error
        line = capsys.readouterr().err
        assert str(tmp_path / "f") in line
        assert os.strerror(number) in line
        assert line.count("\n") == 1


def test_errors_that_are_no_refusal_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="mine"), files.replacing(tmp_path / "f"):
        raise ValueError("mine")
    with pytest.raises(RuntimeError, match="mine"), files.replacing(tmp_path / "f"):
        raise RuntimeError("mine")
    with pytest.raises(FileNotFoundError) as other, files.replacing(tmp_path / "f"):
        (tmp_path / "another").read_text()
    assert other.value.filename == str(tmp_path / "another")
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def cache(cache_root):
    before = os.environ.get("DINO_OCT_CACHE")
    os.environ["DINO_OCT_CACHE"] = str(cache_root)
    yield
    if before is None:
        del os.environ["DINO_OCT_CACHE"]
    else:
        os.environ["DINO_OCT_CACHE"] = before


def pretrain(run, *more):
    train(pretraining.load_config([*TINY_RUN, "--run.workers", "0", "--out", str(run), *more]))


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith((".partial", ".tmp", ".building"))]


@pytest.mark.parametrize("size", [100, 1_000, 5_000, 100_000, 400_000])
def test_a_training_on_a_full_disk_keeps_its_last_checkpoint_and_goes_on(size, trained, tmp_path):
    """Whatever file is refused: settings, table, log, pictures, TensorBoard, export or checkpoint."""
    run = tmp_path / "run"
    saved = ["--run.save-every", "1", "--run.log-every", "1"]

    def first_steps():
        pretrain(run, *saved, "--optim.epochs", "1")

    def on_a_full_disk():
        with_files_up_to(size)
        pretrain(run, *saved)

    said_by(first_steps, 0)
    good = (run / "checkpoints/last.pt").read_bytes()
    error = the_error(said_by(on_a_full_disk, 2))
    assert error.startswith("error: disk full: ")
    assert not partials(run)
    assert (run / "checkpoints/last.pt").read_bytes() == good
    assert list(official.read_checkpoint(run / "export/backbone.safetensors"))
    said_by(lambda: pretrain(run, *saved), 0)


def test_an_evaluation_on_a_full_disk_leaves_no_half_result(trained, tmp_path):
    out = tmp_path / "out"
    for command, wanted in ((knn, "knn_test.json"), (linear, "linear_frozen_test.json")):
        options = parse_options(command.Options, ["--model", str(trained), "--out", str(out), "--bootstrap", "0"])

        def evaluate(command=command, options=options):
            with_files_up_to(500)
            command.main(options)

        error = the_error(said_by(evaluate, 2))
        assert error.startswith(f"error: disk full: {out}/{wanted.split('_')[0]}")
        assert os.listdir(out) == []


def test_a_search_on_a_full_disk_ends_instead_of_failing_every_trial(tmp_path):
    (tmp_path / "space.yaml").write_text("optim.batch_size: [4, 8]\n")
    args = ["--models", "random:test_resnet", "--space", str(tmp_path / "space.yaml"), *SEARCH_BASE]
    args += ["--trials", "2", "--out", str(tmp_path / "search")]

    def work():
        with_files_up_to(100_000)
        tuning.search(supervision.load_options(args))

    stderr = said_by(work, 2)
    assert the_error(stderr).startswith("error: disk full: ")
    assert "trial 1" not in stderr
    assert not partials(tmp_path / "search")
    stderr = said_by(lambda: tuning.search(supervision.load_options(args))["rows"] and None, 0)
    assert "trial 0, random: " in stderr, "it goes on with the trial that met the full disk"
    assert "trial 1, random: " in stderr
    assert "failed" not in stderr


# ---- leftovers -------------------------------------------------------------------------------------------------------


def test_what_killed_writers_left_goes_away_and_what_living_ones_write_stays(tmp_path):
    file, started = tmp_path / "file", tmp_path / "started"

    def write():
        with files.replacing(file) as partial, files.scratch_folder(tmp_path / "folder") as building:
            partial.write_text("half")
            (building / "half").write_text("half")
            started.touch()
            time.sleep(60)

    process = start(write)
    while not started.exists():
        time.sleep(0.01)
    left = {path.name for path in tmp_path.iterdir()} - {"started"}
    assert len(left) == 2
    with files.replacing(file), files.scratch_folder(tmp_path / "other"):
        pass
    assert left <= {path.name for path in tmp_path.iterdir()}, "a living process writes these"
    process.kill()
    process.join()
    with files.replacing(file), files.scratch_folder(tmp_path / "other"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "started"}


# ---- strange sources -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """Things that are no weights, scans, settings or runs."""
    place = tmp_path_factory.mktemp("strange")
    (place / "text.pth").write_text("hello\n" * 50)
    (place / "empty.pt").touch()
    (place / "empty").mkdir()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(place / "picture.png")
    shutil.make_archive(str(place / "archive"), "zip", place / "empty")
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("loop")
    (place / "folder").mkdir()
    shutil.copy(place / "picture.png", place / "folder")
    paths = sorted(str(path) for path in place.iterdir())
    return [*paths, "/etc/passwd", "/dev/zero", "/dev/null", str(place / "missing"), "x" * 300, "/proc/self/mem"]


def test_no_strange_file_is_taken_or_waited_for(strange, tmp_path):
    def by_option(option, path):
        pretrain(tmp_path / "run", option, path)

    readers = {
        "--init": lambda path: by_option("--init", path),
        "--data": lambda path: by_option("--data", path),
        "--config": lambda path: by_option("--config", path),
        "--resume": lambda path: by_option("--resume", path),
        "--model": lambda path: knn.main(
            parse_options(knn.Options, ["--model", path, "--data", "phantom", *FEW_PHANTOMS])
        ),
        "--model of supervised": lambda path: fit(
            supervision.load_config([*TINY_FIT, "--out", str(tmp_path / "fit"), "--model", path])
        ),
    }
    for option, read in readers.items():
        for path in strange:
            if (option, Path(path).name) in (("--data", "folder"), ("--config", "empty.pt")):
                continue  # a folder of one scan is a folder of scans, and a file without settings leaves the defaults
            line = the_error(said_by(lambda read=read, path=path: read(path), 2, 20))
            assert Path(path).name[:20] in line, (option, line)


# ---- terminals -------------------------------------------------------------------------------------------------------


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = [ASCII, {"PYTHONIOENCODING": "latin-1"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_terminal_without_utf_8_loses_nothing(terminal, trained, cache_root, tmp_path):
    args = ["evaluation/knn.py", "--model", str(trained), "--k", "3", "--out", str(tmp_path), "--bootstrap", "0"]
    done = subprocess.run(
        [sys.executable, *args], cwd=REPOSITORY, env={**environment(cache_root), **terminal}, capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"k-NN of" in done.stdout
    assert json.loads((tmp_path / "knn_test.json").read_text(encoding="utf-8"))["rows"]


def test_a_closed_pipe_loses_nothing(trained, cache_root, tmp_path):
    args = f"evaluation/knn.py --model {trained} --k 3 --out {tmp_path} --bootstrap 0"
    done = subprocess.run(
        ["bash", "-c", f"{{ {sys.executable} {args}; echo status $? >&2; }} | head -1"],
        cwd=REPOSITORY, env=environment(cache_root), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == "status 0\n"
    assert json.loads((tmp_path / "knn_test.json").read_text())["rows"]


def test_characters_that_a_terminal_lacks_are_escaped(tmp_path):
    code = "from dino_oct.files import harden_terminal; harden_terminal(); print('a \\u00b7 b \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, **ASCII}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"a \\xb7 b \\udcff\n")


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_of_files_are_shortened_and_stay_different():
    long = ["é" * 125, "é" * 124 + "ab", "é" * 124 + "ac", "x" * 250, "x" * 249 + "y"]
    short = [files.short_name(name) for name in long]
    assert len(set(short)) == len(long)
    assert all(len(os.fsencode(name)) <= 120 for name in short)
    assert files.short_name("CNV-1-1") == "CNV-1-1"
    first, other = (page_name(0, Chosen(f"val/{name}.png", "p", None, ARRAY)) for name in long[-2:])
    assert first != other


def test_scans_with_names_of_250_bytes_are_trained_on_and_shown(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("CNV", "DME"):
        for patient in range(12):
            name = f"{label}-{'9' * (250 - len(label) - 9)}{patient:02d}-1.png"
            assert len(name) == 250
            folder = tmp_path / "scans" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 200, (48, 48), dtype=np.uint8)).save(folder / name)
    run = tmp_path / "run"
    data = ["--data", str(tmp_path / "scans"), "--dataset.val-fraction", "0.3", "--dataset.test-fraction", "0.2"]
    said_by(lambda: pretrain(run, *data, "--optim.epochs", "1"), 0)
    pictures = list((run / "attention").iterdir())
    assert pictures
    assert all(len(picture.name) < 200 for picture in pictures)


# ---- places ----------------------------------------------------------------------------------------------------------


def test_another_spelling_of_a_place_is_the_same_place(trained, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(trained)
    (tmp_path / "last.pt").symlink_to(trained / "checkpoints/last.pt")
    monkeypatch.chdir(trained.parent)
    for name in ("tiny", "./tiny/", "tiny/../tiny", str(trained), str(tmp_path / "link"), "tiny/export/"):
        source = open_source(name)
        assert source.is_final, name
        assert source.kind == "self-supervised"
    assert open_source(str(tmp_path / "last.pt")).run == trained
    assert open_source("tiny/./checkpoints/start").kind == "starting weights"
    monkeypatch.chdir(trained / "checkpoints")
    assert open_source("last.pt").run.samefile(trained)
    assert not open_source("last.pt").is_final


def test_another_spelling_of_the_data_is_no_other_setting(tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "link").symlink_to("scans")
    monkeypatch.chdir(tmp_path)

    def config(data, further):
        return pretraining.TrainConfig(data=data, dataset=DatasetConfig(unlabelled=[further]))

    before = config("scans", "more")
    for data in ("scans/", "./scans", "../" + tmp_path.name + "/scans", str(tmp_path / "scans"), "link"):
        assert pretraining.differences(before, config(data, str(tmp_path / "more"))) == []
    assert pretraining.differences(before, config("more", "more")) == ["data: scans → more"]


def test_a_model_under_two_names_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    with pytest.raises(InputError, match=r"the same model as"):
        check_names(["tiny", "./tiny/export"])
    with pytest.raises(InputError, match=r"tiny/checkpoints/last\.pt: the same weights as tiny .*model once"):
        comparison.compare(compare.Options(model=("tiny", "tiny/checkpoints/last.pt"), out=tmp_path), lambda line: None)


# ---- users -----------------------------------------------------------------------------------------------------------


def modes(folder: Path) -> set[int]:
    """Permissions of files below a folder, and 0o100 for the folders among them that only the owner enters."""
    return {path.stat().st_mode & 0o077 for path in folder.rglob("*")}


def write_scans(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 200, (48, 48), dtype=np.uint8)).save(folder / f"CNV-{i}-1.png")
    folder.chmod(0o755)
    return folder


def decode(scans: Path, root: Path) -> list[int]:
    _, cache = open_cache(index_scans(scans), DatasetConfig(cache_dir=str(root)), progress=False)
    return [int(scan.sum()) for scan in cache]


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_scans_of_patients_are_for_their_owner_unless_the_cache_was_opened(mask, tmp_path):
    scans = write_scans(tmp_path / "scans")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o750)

    def work():
        os.umask(mask)
        decode(scans, tmp_path / "new")
        decode(scans, shared)

    said_by(work, 0)
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert modes(tmp_path / "new") == {0}
    entry = next(shared.glob("scans-*"))
    assert entry.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in entry.iterdir()} == {0o640}


def test_pictures_of_patients_are_for_their_owner(trained, tmp_path):
    for name in ("attention", "views", "tensorboard"):
        assert (trained / name).stat().st_mode & 0o077 == 0
    options = ["--model", str(trained), "--k", "3", "--out", str(tmp_path / "out"), "--bootstrap", "0"]
    knn.main(parse_options(knn.Options, options))
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0
    (tmp_path / "out").chmod(0o755)
    knn.main(parse_options(knn.Options, options))
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0o055, "its owner opened it"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o755, 0o700])
def test_a_cache_of_another_user_is_used_or_left_alone(mask, mode, tmp_path_factory):
    """The first user's cache serves the second, sound or damaged, or a line says why not."""
    place = tmp_path_factory.mktemp("users")
    for folder in (place, *place.parents[: len(place.parents) - 1]):
        if folder.stat().st_mode & 0o5 != 0o5 and str(folder) != "/tmp":
            folder.chmod(folder.stat().st_mode | 0o055)
    scans, root = write_scans(place / "scans"), place / "cache"
    root.mkdir()
    os.chown(root, 1001, 1001)
    root.chmod(mode)

    def as_user(number):
        os.umask(mask)
        os.setgroups([])
        os.setgid(number)
        os.setuid(number)
        return decode(scans, root)

    expected = decode(scans, place / "mine")
    ended = in_a_process(lambda: as_user(1001), 30)
    assert (ended.status, ended.answer) == (0, expected), ended.said
    for damage in (False, True):
        if damage:
            (next(root.glob("scans-*")) / "scans.bin").write_bytes(b"damaged")
        ended = in_a_process(lambda: as_user(1002), 30)
        if mode == 0o700 or (damage and mode == 0o755):
            assert ended.status == 2, ended.said
            assert the_error(ended.said).startswith(f"error: cannot write the scan cache in {root}: ")
        else:
            assert (ended.status, ended.answer) == (0, expected), ended.said


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(InputError, match="not a regular file"):
        files.open_lock(tmp_path / "lock")
    with files.open_lock(tmp_path / "other") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
