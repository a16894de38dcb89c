"""Damage every file that a command reads back, in every way, and run what reads it: recovered, or one line.

    python tests/campaigns/corrupt_files.py                       everything; prints one line a file, then totals
    python tests/campaigns/corrupt_files.py --files last.pt --sample 50 --seed 1

Each damage is done to a copy of a sound folder, and the reader runs in a process of its own with a time limit. It must
end with status 0 (and, where the file has a checksum or is made again, with the result of the sound folder), or with
status 2 and one line that names the file. Anything else is a failure: a traceback, a hang, another status.
"""

import copy
import csv
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clean_process import Ended, in_a_process
from conftest import FEW_PHANTOMS, REPOSITORY, TINY_FIT, TINY_RUN, with_signal

from dino_oct import config as pretraining
from dino_oct.cli import parse_options, run_command
from dino_oct.data import segment
from dino_oct.learner import Learner
from dino_oct.limits import Range, Seed
from dino_oct.models import official
from dino_oct.pretraining import train
from evaluation import knn, localization
from evaluation.inputs import steps as comparison_cache
from supervised import config as supervision
from supervised import tuning
from supervised.learner import ClassifierLearner
from supervised.training import train as fit

LIMIT = 90  # seconds of one reader
Answer = Any  # what a reader finds, to be compared with the sound folder's


# ---- what reads the files; each returns plain values -----------------------------------------------------------------


def resume(place: Path, *more: str) -> Answer:
    """Go on with the stopped pretraining: its last weights."""
    train(pretraining.load_config([*TINY_RUN, "--run.workers", "0", "--out", str(place / "run"), *more]))
    return official.digest(torch.load(place / "run/checkpoints/last.pt", weights_only=True)["teacher"])


def start_from(source: str) -> Callable[[Path], Answer]:
    """Start a pretraining from a SOURCE below the folder."""

    def read(place: Path) -> Answer:
        args = [*TINY_RUN, "--run.workers", "0", "--out", str(place / "new"), "--init", str(place / source)]
        train(pretraining.load_config([*args, "--optim.epochs", "1"]))
        return official.digest(torch.load(place / "new/checkpoints/last.pt", weights_only=True)["teacher"])

    return read


def resume_fit(place: Path) -> Answer:
    """Go on with the stopped supervised run."""
    fit(supervision.load_config([*TINY_FIT, "--out", str(place / "fit")]))
    return official.digest(torch.load(place / "fit/checkpoints/last.pt", weights_only=True)["model"])


def judge(source: str) -> Callable[[Path], Answer]:
    """k-NN of a SOURCE below the folder, with its controls: accuracies, counts of scans and notes."""

    def read(place: Path) -> Answer:
        args = ["--model", str(place / source), "--k", "3", "--out", str(place / "result"), "--bootstrap", "0"]
        knn.main(parse_options(knn.Options, args))
        result = json.loads((place / "result/knn_test.json").read_text())
        rows = {name: row["3"]["accuracy"]["point"] for name, row in result["rows"].items()}
        return [rows, result["data"]["sets"]]

    return read


def judge_after_decoding(place: Path) -> Answer:
    """As ``judge``, without the feature cache, which would hide the scans."""
    shutil.rmtree(place / "cache/features")
    return judge("run")(place)


def judge_without_caches(place: Path) -> Answer:
    """As ``judge``, with everything decoded again."""
    for folder in (place / "cache").glob("scans-*"):
        shutil.rmtree(folder)
    return judge_after_decoding(place)


def score_maps(place: Path) -> Answer:
    """Maps against lesion masks and layers of phantoms."""
    args = ["--model", str(place / "fit"), "--methods", "gradcam", "--n", "2", "--out", str(place / "result")]
    localization.main(parse_options(localization.Options, [*args, "--bootstrap", "0", "--sanity", "0"]))
    return None


def go_on_searching(place: Path, *more: str) -> Answer:
    """Go on with the search: two trials more than there are."""
    args = ["--models", "random:test_resnet", "--space", str(place / "space.yaml"), "--method", "random"]
    args += ["--trials", "2", "--finish", "True", "--out", str(place / "search"), *SEARCH_BASE, *more]
    winners = tuning.search(supervision.load_options(args))
    return [(row["trial"], row["state"], row["val_balanced"]) for row in winners["rows"]]


def search_in_database(place: Path) -> Answer:
    return go_on_searching(place, "--out", str(place / "dbsearch"), "--storage", f"sqlite:///{place}/study.db")


def read_step(place: Path) -> Answer:
    """A finished step of a comparison."""
    cache = comparison_cache.StepCache(place / "steps")
    arrays = cache.arrays("a step", lambda: {"x": np.arange(300.0), "names": np.array(["a", "b"])}, number=1)
    return [arrays["x"].tolist(), arrays["names"].tolist(), cache.json("another", lambda: {"a": [1, None]})]


def use_preset(place: Path) -> Answer:
    """A pretraining by a settings file."""
    args = [*TINY_RUN, "--config", str(place / "preset.yaml"), "--optim.epochs", "1", "--run.workers", "0"]
    args += ["--init", "random:vit_tiny_r_s16_p8_224"]  # what an empty file leaves would be fetched
    train(pretraining.load_config([*args, "--out", str(place / "new")]))
    return None


SEARCH_BASE = [
    *(word.replace("--", "--base.") for word in FEW_PHANTOMS),
    *("--base.run.workers", "0", "--base.network.image-size", "32", "--base.optim.epochs", "1"),
]


@dataclass(frozen=True)
class File:
    """A file that is damaged.

    Attributes:
        name: path below the sound folder, a pattern where its name holds a digest.
        readers: what reads it.
        kind: its format.
        is_exact: whether an answer after damage must be the sound one: its content has a checksum, or is made again.
            Of checkpoints, after damage to their bytes: another one, well written, is another checkpoint.
        goes_by: folders that the readers need.
    """

    name: str
    readers: tuple[Callable[[Path], Answer], ...]
    kind: str
    goes_by: tuple[str, ...]
    is_exact: bool = False

    @property
    def is_phantom(self) -> bool:
        """Whether it belongs to drawn phantoms."""
        return self.name.startswith("cache/phantom-")


RUN, FIT, CACHE = "run", "fit", "cache"
FILES = [
    File("run/config.yaml", (judge("run"), resume), "yaml", (RUN,)),
    File("run/metrics.jsonl", (resume, judge("run")), "jsonl", (RUN,), True),
    File("run/scans.csv", (judge("run"), resume), "csv", (RUN,)),
    File("run/checkpoints/last.pt", (resume, judge("run/checkpoints/last.pt"), start_from("run/checkpoints/last.pt")),
         "pt", (RUN,), True),
    File("run/export/config.json", (judge("run"), start_from("run/export")), "json", (RUN,)),
    File("run/export/backbone.safetensors", (judge("run/export"),), "safetensors", (RUN,), True),
    File("run/export/trained_on.csv", (judge("run"), start_from("run/export")), "csv", (RUN,)),
    File("run/checkpoints/start/config.json", (judge("run"),), "json", (RUN,)),
    File("run/checkpoints/start/backbone.safetensors", (judge("run"),), "safetensors", (RUN,)),
    File("run/checkpoints/start/trained_on.csv", (resume,), "csv", (RUN,)),
    File("run/.lock", (resume,), "text", (RUN,), True),
    File("fit/config.yaml", (judge("fit"), resume_fit), "yaml", (FIT,)),
    File("fit/metrics.jsonl", (resume_fit,), "jsonl", (FIT,), True),
    File("fit/checkpoints/last.pt", (resume_fit, judge("fit/checkpoints/last.pt")), "pt", (FIT,), True),
    File("fit/export/config.json", (judge("fit"),), "json", (FIT,)),
    File("fit/evaluation/supervised/supervised_test.json", (resume_fit,), "json", (FIT,), True),
    File("search/study.journal", (go_on_searching,), "jsonl", ("search", "space.yaml")),
    File("study.db", (search_in_database,), "database", ("dbsearch", "study.db", "space.yaml")),
    File("search/base.yaml", (go_on_searching,), "yaml", ("search", "space.yaml")),
    File("search/space.yaml", (go_on_searching,), "yaml", ("search", "space.yaml")),
    File("search/search.lock", (go_on_searching,), "text", ("search", "space.yaml")),
    File("search/workers/gone.json", (go_on_searching,), "json", ("search", "space.yaml")),
    File("search/trials/0000/metrics.jsonl", (go_on_searching,), "jsonl", ("search", "space.yaml")),
    File("search/trials/0000/config.yaml", (go_on_searching,), "yaml", ("search", "space.yaml")),
    File("search/trials/*/evaluation/supervised/supervised_test.json", (go_on_searching,), "json",
         ("search", "space.yaml")),
    File("space.yaml", (go_on_searching,), "yaml", ("search", "space.yaml")),
    File("preset.yaml", (use_preset,), "yaml", ("preset.yaml",)),
    *(File(f"cache/scans-*/{name}.npy", (judge_after_decoding,), "npy", (RUN,), True)
      for name in segment.TABLES),
    File("cache/scans-*/cache.json", (judge_after_decoding, resume), "json", (RUN,), True),
    File("cache/scans-*/scans.bin", (judge_after_decoding, resume), "bytes", (RUN,), True),
    File("cache/.scans-*.lock", (judge_without_caches,), "text", (RUN,), True),
    File("cache/features/*/about.json", (judge("run"),), "json", (RUN,), True),
    File("cache/features/*/features.npy", (judge("run"),), "npy", (RUN,), True),
    File("cache/phantom-*/phantom.json", (judge("run"), score_maps), "json", (RUN, FIT)),
    File("cache/phantom-*/digests.json", (judge("run"),), "json", (RUN,), True),
    File("cache/phantom-*/layers.npz", (score_maps,), "npz", (FIT,)),
    File("cache/phantom-*/masks/test/CNV/*.png", (score_maps,), "bytes", (FIT,)),
    File("cache/phantom-*/train/CNV/*.jpeg", (resume, judge_after_decoding), "bytes", (RUN,), True),
    File("steps/a_step-*.npz", (read_step,), "npz", ("steps",), True),
    File("steps/another-*.npz", (read_step,), "npz", ("steps",), True),
]  # fmt: skip


# ---- sound folders ---------------------------------------------------------------------------------------------------


def build(place: Path) -> None:
    """Write everything that the readers need into a folder, in a process of its own."""
    os.environ["DINO_OCT_CACHE"] = str(place / "cache")
    Learner.step = with_signal(5, Learner.step)
    resume_args = [*TINY_RUN, "--run.workers", "0", "--run.keep-every", "2", "--out", str(place / "run")]
    train(pretraining.load_config(resume_args))
    ClassifierLearner.step = with_signal(4, ClassifierLearner.step)
    fit(supervision.load_config([*TINY_FIT, "--out", str(place / "fit")]))
    judge("run")(place)
    judge("fit")(place)
    (place / "fit/evaluation/supervised").mkdir(parents=True, exist_ok=True)
    space = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "optim.batch_size": [4, 8]}
    (place / "space.yaml").write_text(yaml.safe_dump(space))
    shutil.copy(REPOSITORY / "configs/quickstart.yaml", place / "preset.yaml")
    go_on_searching(place)
    (place / "search/workers/gone.json").write_text(json.dumps({"machine": "m", "host": "h", "pid": 1}))
    search_in_database(place)
    tested = next((place / "search/trials").glob("*/evaluation/supervised/supervised_test.json"))
    shutil.copy(tested, place / "fit/evaluation/supervised/supervised_test.json")
    read_step(place)
    (place / "run/.lock").write_text("process 1\n")
    shutil.rmtree(place / "result")


# ---- damage ----------------------------------------------------------------------------------------------------------

Damage = tuple[str, Callable[[Path], None]]


def damages(file: Path, kind: str, rng: random.Random) -> Iterator[Damage]:
    """Every damage of a file: its name, and what does it."""
    content = file.read_bytes()

    def put(new: bytes) -> Callable[[Path], None]:
        return lambda path: _write(path, new)

    n = len(content)
    yield "empty", put(b"")
    for share in (0.1, 0.5, 0.9):
        yield f"cut at {share:.0%}", put(content[: int(share * n)])
    yield "last byte cut", put(content[:-1])
    yield "zeros", put(bytes(n))
    yield "second half zeros", put(content[: n // 2] + bytes(n - n // 2))
    yield "a block of zeros", put(content[: n // 3] + bytes(min(512, n // 3)) + content[n // 3 + min(512, n // 3) :])
    yield "random bytes", put(rng.randbytes(max(n, 1)))
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.999):
        yield f"a bit flipped at {share:.1%}", put(_flipped(content, int(share * n), rng))
    yield "garbage appended", put(content + rng.randbytes(64))
    yield "garbage before", put(rng.randbytes(64) + content)
    yield "twice", put(content + content)
    yield "byte order mark", put(b"\xef\xbb\xbf" + content)
    yield "CRLF", put(content.replace(b"\n", b"\r\n"))
    yield "UTF-16", put(content.decode("latin-1").encode("utf-16"))
    yield "a byte of no encoding", put(content[: n // 2] + b"\xff\xfe" + content[n // 2 :])
    yield "another kind of file", put(b"%PDF-1.4\n" + rng.randbytes(200))
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    yield "a full folder", lambda path: (path.unlink(), path.mkdir(), (path / "x").write_text("x"))
    yield "a dangling link", lambda path: (path.unlink(), path.symlink_to(path.with_name("gone")))
    yield "a link to itself", lambda path: (path.unlink(), path.symlink_to(path.name))
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path))
    yield "a device", lambda path: (path.unlink(), path.symlink_to("/dev/zero"))
    yield "removed", lambda path: path.unlink()
    if kind in ("yaml", "json", "jsonl", "csv", "text"):
        lines = content.splitlines(keepends=True)
        for i in sorted({0, len(lines) // 2, len(lines) - 1} & set(range(len(lines)))):
            yield f"line {i + 1} twice", put(b"".join([*lines[: i + 1], *lines[i:]]))
            yield f"line {i + 1} missing", put(b"".join([*lines[:i], *lines[i + 1 :]]))
            yield f"line {i + 1} cut", put(b"".join([*lines[:i], lines[i][: len(lines[i]) // 2], *lines[i + 1 :]]))
    yield from ((f"content: {name}", do) for name, do in _semantic(file, kind, rng))


def _semantic(file: Path, kind: str, rng: random.Random) -> Iterator[Damage]:
    """Files that are well formed and hold what they should not."""
    read, write = _FORMATS.get(kind, (None, None))
    if read is None:
        return
    content = read(file)
    yield "another type", lambda path: write(path, ["x"] if isinstance(content, dict) else {"x": 1})
    yield "nothing in it", lambda path: write(path, type(content)())
    strange = ["damaged", -1, 0, 10**30, float("nan"), float("inf"), None, [], {}, [1, 2, 3], {"a": 1}, True, ""]
    for path_in in _places(content):
        where = ".".join(map(str, path_in))
        yield f"{where} missing", lambda path, at=path_in: write(path, _changed(content, at, _MISSING))
        for value in rng.sample(strange, 2):
            yield f"{where} = {value!r}", lambda path, at=path_in, v=value: write(path, _changed(content, at, v))
    yield (
        "a key too many",
        lambda path: write(path, {**content, "unknown": 1} if isinstance(content, dict) else content),
    )


_MISSING = object()


def _places(value: Any, deep: int = 3, most: int = 120) -> list[tuple]:
    """Keys of nested values, and their first and last entries where they are lists."""
    places: list[tuple] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(i, value[i]) for i in sorted({0, len(value) - 1} & set(range(len(value))))]
    else:
        return places
    for key, item in items:
        places.append((key,))
        if deep > 1:
            places += [(key, *rest) for rest in _places(item, deep - 1)]
    return places[:most]


def _changed(value: Any, at: tuple, new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if new is _MISSING:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return value


def _read_pt(file: Path) -> dict:
    return torch.load(file, weights_only=True)


def _read_tensors(file: Path) -> dict:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _write_tensors(path: Path, tensors: Any) -> None:
    from safetensors.torch import save_file

    kept = tensors.items() if isinstance(tensors, dict) else ()
    save_file({str(name): torch.as_tensor(t) for name, t in kept if _is_numeric(t)}, path)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, (int, float)) and abs(value) < 1e18)


def _read_npz(file: Path) -> dict:
    with np.load(file) as arrays:
        return dict(arrays)


def _write_npz(path: Path, arrays: Any) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        np.savez(
            stream, **{k: np.asarray(v, dtype=None if v is not None else float) for k, v in dict_of(arrays).items()}
        )


def dict_of(value: Any) -> dict:
    return value if isinstance(value, dict) else {"x": np.array(0)}


def _read_csv(file: Path) -> list:
    return list(csv.reader(io.StringIO(file.read_text(), newline="")))


def _write_csv(path: Path, rows: Any) -> None:
    with io.StringIO(newline="") as stream:
        csv.writer(stream).writerows(row if isinstance(row, list) else [row] for row in rows)
        _write(path, stream.getvalue().encode())


def _dump_pt(path: Path, value: Any) -> None:
    path.unlink(missing_ok=True)
    torch.save(value, path)


def _read_jsonl(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()]


_FORMATS: dict[str, tuple[Callable, Callable]] = {
    "yaml": (lambda f: yaml.safe_load(f.read_text()), lambda f, v: _write(f, yaml.safe_dump(v).encode())),
    "json": (lambda f: json.loads(f.read_text()), lambda f, v: _write(f, json.dumps(v, indent=1).encode())),
    "jsonl": (_read_jsonl, lambda f, v: _write(f, "".join(json.dumps(one) + "\n" for one in v).encode())),
    "csv": (_read_csv, _write_csv),
    "pt": (_read_pt, _dump_pt),
    "safetensors": (_read_tensors, _write_tensors),
    "npz": (_read_npz, _write_npz),
}


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a copy may share its content with the sound one
    path.write_bytes(content)


def _flipped(content: bytes, at: int, rng: random.Random) -> bytes:
    if not content:
        return b"\1"
    at = min(at, len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


# ---- one trial -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How one reader took one damage: "recovered", "one line", or why that was wrong."""

    file: str
    damage: str
    reader: str
    verdict: str
    said: str = ""

    @property
    def is_right(self) -> bool:
        return self.verdict in ("recovered", "one line")


class Campaign:
    """Sound folders, their answers, and trials on copies of them.

    Args:
        place: an empty folder.
    """

    def __init__(self, place: Path):
        self.sound, self.work = place / "sound", place / "work"
        self.kept = place / "kept"  # caches as they were built
        self.sound.mkdir()
        self.kept.mkdir()
        built = in_a_process(lambda: build(self.sound), 300)
        assert built.status == 0, built.said
        self.answers: dict[tuple[str, int], Answer] = {}
        for path in (self.sound / CACHE).iterdir():
            if not path.name.startswith("phantom-"):
                _copy(path, self.kept / path.name)

    def trials(self, rng: random.Random, wanted: str = "") -> list[tuple[File, int, str, Callable]]:
        """Every file × reader × damage."""
        self.restore()
        trials = []
        for file in FILES:
            if wanted in file.name:
                for name, do in damages(self._find(self.sound, file), file.kind, rng):
                    trials += [(file, i, name, do) for i in range(len(file.readers))]
        return trials

    def run(self, file: File, reader: int, name: str, damage: Callable[[Path], None]) -> Outcome:
        """Damage a copy and read it."""
        read = file.readers[reader]
        title = getattr(read, "__qualname__", "").split(".")[0]
        if file.is_exact and (file.name, reader) not in self.answers:
            ended = self._read(file, read)
            assert ended.status == 0, f"{file.name}: {title} fails on the sound folder: {ended.said}"
            self.answers[file.name, reader] = ended.answer
        self._copy(file)
        path = self._find(self.work, file)
        damage(path)
        ended = self._read(file, read, is_copied=True)
        verdict = self._verdict(file, reader, path, ended, name)
        return Outcome(file.name, name, title, verdict, ended.said[-600:])

    def _verdict(self, file: File, reader: int, path: Path, ended: Ended, name: str = "") -> str:
        errors = [line for line in ended.said.splitlines() if line.startswith("error")]
        if ended.status is None:
            return "hang"
        if "Traceback" in ended.said:
            return "traceback"
        if ended.status == 0:
            is_exact = file.is_exact and not (file.kind == "pt" and name.startswith("content: "))
            is_same = not is_exact or ended.answer == self.answers[file.name, reader]
            expected = self.answers.get((file.name, reader))
            return "recovered" if is_same else f"another result: {ended.answer}, expected {expected}"
        if ended.status != 2 or len(errors) != 1:
            return f"status {ended.status}, {len(errors)} lines of error"
        names = [str(path), path.name, str(path.parent), str(path.parent.parent / "export")]
        if file.name == "preset.yaml":  # what a person wrote is as well told by the value
            names += [value.strip("'") for value in name.split(" = ")[1:] if value != "''"]
        return "one line" if any(name in errors[0] for name in names) else "a line that does not name the file"

    def restore(self) -> None:
        """Put back caches that a trial damaged in their place."""
        for name in os.listdir(self.kept):
            _remove(self.sound / CACHE / name)
            _copy(self.kept / name, self.sound / CACHE / name)

    def _copy(self, file: File) -> None:
        """A copy of what the readers need. The caches are used in their place: they are known by paths and times. Only
        damaged phantoms, which are drawn anew, come with a copy of their own."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.restore()
        for name in {*file.goes_by, *([CACHE] if file.is_phantom else [])}:
            if (self.sound / name).is_dir():
                shutil.copytree(self.sound / name, self.work / name, symlinks=True)
            else:
                shutil.copy(self.sound / name, self.work / name)
        if not file.is_phantom:
            (self.work / CACHE).symlink_to(self.sound / CACHE)

    def _read(self, file: File, read: Callable[[Path], Answer], is_copied: bool = False) -> Ended:
        if not is_copied:
            self._copy(file)

        def work() -> Answer:
            os.chdir(self.work)
            os.environ["DINO_OCT_CACHE"] = str((self.work if file.is_phantom else self.sound) / CACHE)
            return read(self.work)

        return in_a_process(work, LIMIT)

    def _find(self, place: Path, file: File) -> Path:
        return sorted(place.glob(file.name))[0]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(path: Path, target: Path) -> None:
    (shutil.copytree if path.is_dir() else shutil.copy)(path, target)


@dataclass
class Options:
    """Damage every file that a command reads back; exit status 1 if one was not recovered and not told in one line."""

    files: str = ""
    """Only files whose name holds this."""
    sample: Annotated[int, Range(0, 1_000_000)] = 0
    """Only so many trials, drawn at random; 0: all."""
    seed: Seed = 0
    """Of the damages and of the sample."""


def main(options: Options) -> None:
    """Run the campaign, print failures as they come, then one line a file and the totals."""
    torch.set_num_threads(1)
    rng, failures, counts = random.Random(options.seed), [], Counter()
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(Path(place))
        trials = campaign.trials(rng, options.files)
        trials = rng.sample(trials, min(options.sample, len(trials))) if options.sample else trials
        of_file: dict[str, Counter] = {}
        for trial in trials:
            outcome = campaign.run(*trial)
            of_file.setdefault(outcome.file, Counter())[outcome.verdict.split(":")[0]] += 1
            counts[outcome.verdict.split(":")[0]] += 1
            if not outcome.is_right:
                failures.append(outcome)
                print(f"FAILED {outcome.file} · {outcome.damage} · {outcome.reader}: {outcome.verdict}\n{outcome.said}",
                      flush=True)  # fmt: skip
    for name, verdicts in of_file.items():
        print(f"{name}: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}")
    kinds = len({trial[2] for trial in trials})
    print(f"{len(of_file)} files, {kinds} kinds of damage, {len(trials)} trials: {dict(counts)}")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    import corrupt_files  # under a name by which its processes find the readers

    run_command(corrupt_files.main, corrupt_files.Options)
