"""Trackers get what metrics.jsonl gets, go on where a run goes on, and never end a training."""

import contextlib
import importlib.util
import json
import struct
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from conftest import TINY_FIT, TINY_RUN
from PIL import Image
from tensorboard import program

from dino_oct import trackers
from dino_oct.config import PretrainingRunConfig, TrainConfig, flat
from dino_oct.errors import InputError
from dino_oct.trackers import Trackers, check_trackers

PANEL = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


class Run:
    """What a stand-in of comet_ml.start or trackio.init returns: it keeps every call."""

    def __init__(self, **arguments):
        self.arguments, self.calls, self.ended = arguments, [], False
        self.url = "https://example.org/run"

    def __getattr__(self, name):
        return lambda *args, **named: self.calls.append((name, args, named))


@pytest.fixture
def standins(monkeypatch):
    """Stand-ins of comet_ml and trackio, as far as accelerate speaks to them; the runs that were begun."""
    runs = []

    def begin(**arguments):
        runs.append(Run(**arguments))
        return runs[-1]

    for name, parts in {
        "comet_ml": {"__version__": "3.58.8", "start": begin},
        "trackio": {"init": begin, "Image": lambda path: ("image", path), "config": {}},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(parts, __spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    return runs


@pytest.fixture(autouse=True)
def state_of_processes():
    """Trainers have it, and accelerate's trackers ask it who is the main process."""
    PartialState()


def config_of(*names: str, images: bool = True) -> TrainConfig:
    return TrainConfig(run=PretrainingRunConfig(trackers=list(names), tracker_images=images))


def log_some(run: Path, *names: str, goes_on: bool = False, first: int = 0, images: bool = True) -> None:
    run.mkdir(exist_ok=True)
    Image.fromarray(PANEL).save(run / "panel.png")
    started = Trackers(names)
    started.start(run, config_of(*names, images=images), goes_on)
    for step in range(first, first + 2):
        started.log({"epoch": step / 2, "loss": 1.0 / (step + 1), "recall_knn_5_A|B": np.float32(25)}, step)
        if step == first:
            started.image("attention", "CNV-1.png", run / "panel.png", PANEL, step)
    started.close()


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---- through accelerate's interface ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["comet", "trackio"])
def test_what_is_logged_arrives_and_a_resumed_run_goes_on(name, standins, tmp_path, capsys):
    log_some(tmp_path / "run", name)
    log_some(tmp_path / "run", name, goes_on=True, first=2)
    log_some(tmp_path / "run", name)
    assert capsys.readouterr().err == ""
    first, second, anew = standins
    key = "experiment_key" if name == "comet" else "name"
    assert first.arguments[key] == second.arguments[key] != anew.arguments[key]
    settings = flat(config_of(name))
    if name == "comet":
        assert ("set_name", ("run",), {}) in first.calls
        assert ("log_parameters", (settings,), {}) in first.calls
        numbers = [(args[0], args[1], named["step"]) for call, args, named in second.calls if call == "log_metric"]
        assert ("loss", 1 / 3, 2) in numbers
        assert ("recall_knn_5_A|B", 25.0, 3) in numbers
        (image,) = [named for call, _, named in first.calls if call == "log_image"]
        assert image == {"name": "attention/CNV-1.png", "step": 0}
        assert first.calls[-1][0] == "end"
    else:
        assert first.arguments["name"].startswith("run-")
        assert first.arguments["config"] == settings
        logged = [(args[0], named["step"]) for call, args, named in second.calls if call == "log"]
        assert ({"epoch": 1.0, "loss": 1 / 3, "recall_knn_5_A|B": 25.0}, 2) in logged
        assert ({"attention/CNV-1.png": ("image", str(tmp_path / "run" / "panel.png"))}, 2) in logged
        assert first.calls[-1][0] == "finish"


def test_images_are_sent_only_if_asked_for(standins, tmp_path):
    log_some(tmp_path / "run", "comet", images=False)
    assert not [call for call, *_ in standins[0].calls if call == "log_image"]


def test_a_tracker_that_fails_is_left_with_one_line(standins, tmp_path, capsys, monkeypatch):
    def fail(*args, **named):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(sys.modules["trackio"], "init", fail)
    log_some(tmp_path / "run", "trackio", "comet")
    line = "warning: tracker trackio: ConnectionError: no route; the training goes on without it\n"
    assert capsys.readouterr().err == line
    assert standins[0].calls[-1][0] == "end"
    monkeypatch.setattr(Run, "log_metric", fail, raising=False)
    log_some(tmp_path / "run", "comet")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("where", ["begin", "log", "end"])
def test_a_tracker_that_hangs_is_left_with_one_line(where, standins, tmp_path, capsys, monkeypatch):
    ends = threading.Event()

    def hang(*args, **named):
        ends.wait()

    if where == "begin":
        monkeypatch.setattr(sys.modules["comet_ml"], "start", hang)
    else:
        monkeypatch.setattr(Run, {"log": "log_metric", "end": "end"}[where], hang, raising=False)
    hung = Trackers(["comet"], patience=0.2)
    (tmp_path / "run").mkdir()
    hung.start(tmp_path / "run", config_of("comet"), goes_on=False)
    hung.log({"loss": 1.0}, 0)
    hung.close()
    assert capsys.readouterr().err.count("warning: tracker comet: did not") == 1
    ends.set()


def test_a_tracker_that_does_not_take_its_entries_is_left(standins, tmp_path, capsys, monkeypatch):
    ends = threading.Event()
    monkeypatch.setattr(Run, "log_metric", lambda *args, **named: ends.wait(), raising=False)
    monkeypatch.setattr(trackers, "_MOST_WAITING", 5)
    hung = Trackers(["comet"], patience=0.2)
    (tmp_path / "run").mkdir()
    hung.start(tmp_path / "run", config_of("comet"), goes_on=False)
    for step in range(50):
        hung.log({"loss": 1.0}, step)
    assert hung._lines[0].waiting.qsize() <= 7
    hung.close()
    assert "does not answer" in capsys.readouterr().err
    ends.set()


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: blocks of 32 KiB in LevelDB's log format, behind a header of 7 bytes."""
    at, parts = 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


# ---- real ones, offline ----------------------------------------------------------------------------------------------


def test_wandb_offline_has_every_number_under_its_name(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    log_some(tmp_path / "run", "wandb")
    log_some(tmp_path / "run", "wandb", goes_on=True, first=2)
    assert "warning" not in capsys.readouterr().err
    assert wandb.run is None
    history, ids = {}, set()
    for file in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            ids |= {(record.run.run_id, record.run.display_name)} if record.HasField("run") else set()
            values = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
            }
            if record.HasField("history"):
                history[values["_step"]] = values
    assert len(ids) == 1
    assert next(iter(ids))[1] == "run"
    assert [history[step]["loss"] for step in range(4)] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert history[3]["recall_knn_5_A|B"] == 25
    assert any(name.startswith("attention/CNV-1.png") for name in history[0])


def test_mlflow_in_a_file_has_every_number_under_its_name(tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow's file needs sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # artifacts lie in mlruns/ there
    log_some(tmp_path / "run", "mlflow")
    log_some(tmp_path / "run", "mlflow", goes_on=True, first=2)
    assert "warning: tracker" not in capsys.readouterr().err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("dino-oct").experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in losses] == [(i, 1 / (i + 1)) for i in range(4)]
    assert run.data.metrics["recall_knn_5_A_B"] == 25
    assert run.data.params["optim.batch_size"] == str(TrainConfig().optim.batch_size)
    assert client.list_artifacts(run.info.run_id, "attention")


# ---- trainings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "tiny", "more"),
    [
        ("dino_oct/train.py", TINY_RUN, ["--optim.epochs", "2"]),
        ("supervised/train.py", TINY_FIT, ["--optim.epochs", "1", "--test", "False"]),
    ],
)
def test_a_training_tells_its_trackers_what_it_writes(script, tiny, more, standins, call, tmp_path):
    run = tmp_path / "a run"
    finished = call(script, *tiny, *more, "--out", run, "--run.trackers", "comet", "--run.log-every", "1")
    assert finished.returncode == 0, finished.stderr
    (tracked,) = standins
    assert ("set_name", ("a run",), {}) in tracked.calls
    sent: dict[int, dict] = {}
    for name, args, named in tracked.calls:
        if name == "log_metric":
            sent.setdefault(named["step"], {})[args[0]] = args[1]
    lines = lines_of(run)
    written = {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}
    assert {(step, name) for step, values in sent.items() for name in values} == written.keys()
    differing = {
        key: value for key, value in written.items() if sent[key[0]][key[1]] != pytest.approx(float(value), abs=1e-4)
    }
    assert not differing
    assert tracked.calls[-1][0] == "end"
    assert "warning: tracker" not in finished.stderr


def test_a_tracker_that_fails_does_not_end_a_training(standins, call, tmp_path, monkeypatch):
    def fail(*args, **named):
        raise SystemExit("log in first")

    monkeypatch.setattr(sys.modules["comet_ml"], "start", fail)
    args = [*TINY_RUN, "--optim.epochs", "2", "--run.trackers", "comet", "--out", tmp_path / "run"]
    finished = call("dino_oct/train.py", *args)
    assert finished.returncode == 0
    assert finished.stderr.count("warning: tracker comet: SystemExit: log in first") == 1
    assert (tmp_path / "run" / "export" / "backbone.safetensors").is_file()


@pytest.mark.parametrize("script", ["dino_oct/train.py", "supervised/train.py"])
def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read(script, call, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "comet_ml" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    finished = call(script, "--data", tmp_path, "--run.trackers", "comet", "--out", tmp_path / "run")
    message = "error: --run.trackers comet: not installed: pip install comet-ml\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", message)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="not installed"):
        check_trackers(["comet"])


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def board(logdir: Path):
    """Ask a TensorBoard on loopback, in this process: ``ask(PATH, body)``."""
    server = program.TensorBoard()
    server.configure(argv=[None, "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"])
    address = server.launch()

    def ask(path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        return text if "metadata?" in path else json.loads(text)

    yield ask


@pytest.mark.parametrize("folder", ["", "tensorboard"])
def test_tensorboard_shows_curves_images_settings_and_projector(folder, trained, call):
    options = ["--seeds", "1", "--k", "2", "--neighbours", "3", "--bootstrap", "20", "--controls", "False"]
    finished = call("evaluation/embedding_map.py", "--model", trained, *options)
    assert finished.returncode == 0, finished.stderr
    with board(trained / folder) as ask:
        prefix = "" if folder else "tensorboard/"
        own, projector = f"{prefix}{trained.name}", f"{prefix}projector"
        assert {own, projector} <= set(ask("data/runs"))
        assert "." not in ask("data/runs")
        plugins = {"scalars", "images", "text", "hparams", "projector"}
        while not all(ask("data/plugins_listing")[name]["enabled"] for name in plugins):  # found by a thread
            time.sleep(0.1)
        assert {"training/loss", "evaluation/knn_3"} <= ask("data/plugin/scalars/tags")[own].keys()
        images = {name.partition("/")[0] for name in ask("data/plugin/images/tags")[own]}
        assert images == {"attention", "views"}
        (text,) = ask(f"data/plugin/text/text?run={own}&tag=settings/text_summary")
        assert "optim.epochs: 4" in text["text"]
        ask_for = {"experimentName": "", "startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"]}
        (session,) = ask("data/plugin/hparams/session_groups", ask_for)["sessionGroups"]
        assert session["hparams"]["optim.epochs"] == 4
        assert ask("data/plugin/projector/runs") == [projector]
        (embedding,) = ask(f"data/plugin/projector/info?run={projector}")["embeddings"]
        metadata = ask(f"data/plugin/projector/metadata?run={projector}&name={embedding['tensorName']}").splitlines()
        assert metadata[0].split("\t")[0] == "class"
        assert {line.split("\t")[0] for line in metadata[1:]} == {"CNV", "DME", "DRUSEN", "NORMAL"}
