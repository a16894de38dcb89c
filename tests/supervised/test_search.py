"""The search as its users rely on it: nothing lost or run twice, nothing read too early, and readable results."""

import csv
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import optuna
import pytest
from browser import check_page, needs_chromium
from conftest import FEW_PHANTOMS, TINY_FIT
from optuna.trial import TrialState

from dino_oct.cli import write_settings
from dino_oct.errors import InputError
from dino_oct.scores.bootstrap import Interval
from supervised import leaderboard, tuning
from supervised.config import SearchOptions, SupervisedConfig, load_options
from supervised.leaderboard import Board, Row
from supervised.space import read_space, settings_of
from supervised.study import FINISHED, open_study

FORK = multiprocessing.get_context("fork")  # workers that need not import everything again
PAPER = "configs/search/paper.yaml"
PHANTOMS = [word.replace("--", "--base.") for word in FEW_PHANTOMS]
MODELS = ["resnet18", "resnet50"]


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch, cache_root):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))


@pytest.fixture
def stub(monkeypatch):
    """Train and test that take no time; change its attributes to change what they do."""
    trainer = Stub()
    monkeypatch.setattr(tuning, "train", trainer.train)
    monkeypatch.setattr(tuning, "test", trainer.test)
    return trainer


class Stub:
    """A trainer that leaves a run folder as the real one does, and whose accuracy is a function of the settings."""

    def __init__(self):
        self.value = lambda config, epoch: 90 - 3e4 * abs(config.optim.lr - 5e-4) + epoch
        self.before_epoch = lambda run, epoch: None
        self.tested = []

    def train(self, config, on_epoch):
        run = Path(config.out)
        run.mkdir(parents=True, exist_ok=True)
        (run / "stopped").unlink(missing_ok=True)
        write_settings(config, run / "config.yaml")
        for folder in ("export", "checkpoints"):
            (run / folder).mkdir(exist_ok=True)
        for epoch in range(len(epochs_of(run)) + 1, config.optim.epochs + 1):
            self.before_epoch(run, epoch)
            value = self.value(config, epoch)
            metrics = {
                "val_balanced_accuracy": value,
                "val_accuracy": value,
                "val_loss": 1.0,
                "trainable_parameters": 9,
            }
            with (run / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": epoch, "epoch": epoch, **metrics}) + "\n")
            on_epoch(epoch, metrics)
        best = max(lines_of(run), key=lambda line: line["val_balanced_accuracy"])
        return {name: value for name, value in best.items() if name not in ("step", "epoch")}

    def test(self, config, data, run, device):
        self.tested.append(run.name)
        row = {name: Interval(80.0, 70.0, 90.0) for name in ("accuracy", "balanced_accuracy")}
        return {"rows": {"classifier": row}}


def lines_of(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def epochs_of(run: Path) -> list[int]:
    return [line["epoch"] for line in lines_of(run)]


def options(out: Path, *more: object, models: list[str] = MODELS) -> SearchOptions:
    args = ["--models", *models, *PHANTOMS, "--base.optim.epochs", "3", "--out", out, *more]
    return load_options([str(arg) for arg in args])


def quiet(*_):
    pass


def run(out: Path, *more: object, **also) -> dict:
    return tuning.search(options(out, *more, **also), quiet)


def study_of(out: Path) -> optuna.Study:
    return open_study("", out.name, out, optuna.pruners.NopPruner())


def in_a_process(*args) -> multiprocessing.Process:
    process = FORK.Process(target=run, args=args)
    process.start()
    return process


def wait_for(file: Path) -> None:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end, f"{file} was never made"
        time.sleep(0.02)


# ---- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_killed_search_goes_on_and_no_trial_is_lost_or_run_twice(tmp_path, stub, storage):
    out, hung = tmp_path / "search", tmp_path / "hung"
    more = ["--trials", 4, *(["--storage", f"sqlite:///{tmp_path}/study.db"] if storage == "sqlite" else [])]

    def hang(folder, epoch):
        if (folder.name, epoch) == ("0002", 2) and not hung.exists():
            hung.touch()
            time.sleep(60)

    stub.before_epoch = hang
    worker = in_a_process(out, *more)
    wait_for(hung)
    worker.kill()
    worker.join()
    begun = (out / "trials" / "0002" / "config.yaml").read_text()
    rows = sorted(run(out, *more)["rows"], key=lambda row: row["trial"])

    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert {row["state"] for row in rows} <= {"complete", "stopped early"}
    assert (out / "trials" / "0002" / "config.yaml").read_text() == begun
    assert [row["attempts"] for row in rows] == [1, 1, 2, 1]
    for row in rows:
        epochs = epochs_of(Path(row["run"]))
        assert epochs == list(range(1, row["epochs"] + 1))


def test_two_workers_share_the_trials_and_draw_what_one_would(tmp_path, stub):
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(alone, "--trials", 7)

    def log(folder, epoch):
        with (tmp_path / "log").open("a") as stream:
            stream.write(f"{os.getpid()} {folder.name} {epoch}\n")
        time.sleep(0.1)

    stub.before_epoch = log
    workers = [in_a_process(together, "--trials", 7) for _ in range(2)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    log_lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len({tuple(line[1:]) for line in log_lines}) == len(log_lines), "an epoch was trained twice"
    assert len({line[0] for line in log_lines}) == 2, "one worker did nothing"
    trials = study_of(together).get_trials()
    assert len(trials) == 7
    assert all(trial.state in FINISHED for trial in trials)
    assert [t.params for t in trials] == [t.params for t in study_of(alone).get_trials()]


def test_a_signal_puts_the_trial_down_for_the_next_start(tmp_path, stub, monkeypatch):
    out = tmp_path / "search"

    def stopping(config, on_epoch):
        if not config.out.endswith("0001"):
            return stub.train(config, on_epoch)
        metrics = stub.train(config, lambda epoch, metrics: None)  # a signal, before Hyperband has its say
        Path(config.out, "stopped").touch()
        monkeypatch.setattr(tuning, "train", stub.train)
        return metrics

    tuning.train = stopping
    first = run(out, "--trials", 3)
    assert [row["state"] for row in first["rows"] if row["trial"] == 1] == ["running"]
    again = run(out, "--trials", 3)
    assert len(again["rows"]) == 3
    assert {row["attempts"] for row in again["rows"]} == {1}
    assert "running" not in {row["state"] for row in again["rows"]}


def test_a_trial_that_kills_every_worker_is_given_up(tmp_path, stub):
    out = tmp_path / "search"

    def die(folder, epoch):
        if folder.name == "0000":
            os.kill(os.getpid(), signal.SIGKILL)

    stub.before_epoch = die
    for _ in range(3):
        worker = in_a_process(out, "--trials", 2)
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
    rows = run(out, "--trials", 2)["rows"]
    assert len(rows) == 3
    failed = next(row for row in rows if row["trial"] == 0)
    assert (failed["state"], failed["rank"]) == ("failed", None)
    assert "killed 3 times" in failed["reason"]


def test_half_a_line_at_the_journals_end_does_no_harm(tmp_path, stub):
    run(tmp_path / "search", "--trials", 1)
    with (tmp_path / "search" / "study.journal").open("a") as stream:
        stream.write('{"op_code": 8, "work')
    assert len(run(tmp_path / "search", "--trials", 2)["rows"]) == 2
    assert len(study_of(tmp_path / "search").get_trials()) == 2


# ---- trials ----------------------------------------------------------------------------------------------------------


def test_bayes_follows_random_in_the_same_study(tmp_path, stub):
    out = tmp_path / "search"
    run(out, "--trials", 3)
    assert stub.tested == []
    rows = run(out, "--method", "bayes", "--trials", 2)["rows"]
    assert sorted((row["trial"], row["method"]) for row in rows) == [
        *((number, "random") for number in range(3)),
        *((number, "bayes") for number in range(3, 5)),
    ]


def test_tpe_starts_from_the_finished_random_trials():
    def startup(n_random, epochs):
        return tuning.make_sampler("bayes", 0, 9, n_random, epochs)._n_startup_trials

    assert startup(n_random=6, epochs=4) == 6
    assert startup(n_random=6, epochs=30) == 2  # three Hyperband brackets, each with its share
    assert startup(n_random=40, epochs=4) == startup(n_random=0, epochs=4) == 10


def test_hyperband_stops_poor_trials_but_none_before_two_epochs(tmp_path, stub):
    stub.value = lambda config, epoch: 90 - 10 * int(Path(config.out).name) + 0.1 * epoch
    rows = run(tmp_path / "search", "--trials", 8, "--base.optim.epochs", 6)["rows"]
    early = [row for row in rows if row["state"] == "stopped early"]
    assert early
    assert all(2 <= row["epochs"] < 6 for row in early)
    assert all(row["epochs"] == 6 for row in rows if row["state"] == "complete")
    assert rows[0]["state"] == "complete"


def test_failed_trials_are_recorded_and_replaced(tmp_path, stub):
    def fail(folder, epoch):
        if folder.name == "0000":
            raise InputError("out of GPU memory; lower --optim.batch-size")
        if folder.name == "0001":
            raise KeyError("a bug")

    stub.before_epoch = fail
    rows = run(tmp_path / "search", "--trials", 3)["rows"]
    reasons = {row["trial"]: row["reason"] for row in rows if row["state"] == "failed"}
    assert reasons[0] == "out of GPU memory; lower --optim.batch-size"
    assert reasons[1].startswith("KeyError: 'a bug'")
    assert "a bug" in (tmp_path / "search" / "trials" / "0001" / "error.txt").read_text()
    assert [row["rank"] for row in rows] == [1, 2, 3, None, None]


def test_where_every_trial_fails_the_first_reason_is_told_and_nothing_is_tried_forever(tmp_path, stub):
    calls = []

    def fail(folder, epoch):
        calls.append(folder.name)
        raise InputError("the loss is not finite; lower --optim.lr")

    stub.before_epoch = fail
    for _ in range(2):  # the same command again tries nothing again
        with pytest.raises(InputError, match="all 3 trials failed; the first: the loss is not finite") as error:
            run(tmp_path / "search", "--trials", 3)
        assert "\n" not in str(error.value)
    assert calls == ["0000", "0001", "0002"]


def test_only_the_best_of_each_architecture_keeps_its_weights(tmp_path, stub):
    out = tmp_path / "search"
    rows = run(out, "--trials", 6)["rows"]
    best = {next(row["trial"] for row in rows if row["model"] == model) for model in {row["model"] for row in rows}}
    kept = {int(folder.parent.name) for folder in out.glob("trials/*/export")}
    assert kept == best
    assert len(list(out.glob("trials/*/config.yaml"))) == 6
    assert not list(out.glob("trials/*/checkpoints"))


# ---- selection -------------------------------------------------------------------------------------------------------


def test_each_winner_is_tested_once_and_the_search_is_then_over(tmp_path, stub):
    out = tmp_path / "search"
    run(out, "--trials", 4)
    rows = run(out, "--trials", 4, "--finish", "True")["rows"]
    winners = [row for row in rows if row["test_accuracy"]]
    assert {row["model"] for row in winners} == {row["model"] for row in rows}
    assert sorted(stub.tested) == sorted(f"{row['trial']:04d}" for row in winners)
    for model in {row["model"] for row in rows}:
        of_model = [row for row in rows if row["model"] == model]
        assert next(row for row in of_model if row["test_accuracy"]) == of_model[0]  # the best by validation
    tests = len(stub.tested)
    assert run(out, "--trials", 4)["rows"] == rows
    assert len(stub.tested) == tests
    with pytest.raises(InputError, match="the search is over"):
        run(out, "--trials", 5)


class Guarded:
    """A scan cache that notes which positions were read."""

    def __init__(self, scans):
        self.scans, self.read = scans, set()

    def __getitem__(self, i):
        self.read.add(int(i))
        return self.scans[i]

    def __getattr__(self, name):
        return getattr(self.scans, name)

    def __len__(self):
        return len(self.scans)


def test_a_real_search_reads_no_test_scan_before_its_winner_is_chosen(tmp_path, monkeypatch):
    opened, chosen_first = [], []
    out = tmp_path / "search"

    def guarded(load):
        def load_guarded(*args):
            index, scans = load(*args)
            opened.append((set(index.positions("test").tolist()), Guarded(scans)))
            return index, opened[-1][1]

        return load_guarded

    def test_scans_read() -> int:
        return sum(len(positions & scans.read) for positions, scans in opened)

    real_test = tuning.test

    def test_after_choice(*args):
        chosen_first.append((test_scans_read(), "winners" in study_of(out).user_attrs))
        return real_test(*args)

    monkeypatch.setattr("supervised.training.load_scans", guarded(tuning.load_scans))
    monkeypatch.setattr(tuning, "load_scans", guarded(tuning.load_scans))
    monkeypatch.setattr(tuning, "test", test_after_choice)
    tiny = [f"--base.{word[2:]}" if word.startswith("--") else word for word in TINY_FIT]
    tiny = [*tiny[tiny.index("--base.run.precision") :], "--base.optim.epochs", "2"]
    result = tuning.search(
        options(out, *tiny, "--method", "bayes", "--trials", 2, models=["random:vit_tiny_patch16_224"])
    )
    assert chosen_first == [(0, True)]
    assert test_scans_read() == 16  # the guard does see the test
    assert sum(len(scans.read) for _, scans in opened) > 16
    winner = result["rows"][0]
    assert winner["test_accuracy"]["low"] <= winner["test_accuracy"]["point"] <= winner["test_accuracy"]["high"]
    assert [row["epochs"] for row in result["rows"]] == [2, 2]
    assert (out / "trials" / f"{winner['trial']:04d}" / "export" / "config.json").exists()
    assert result["synthetic"]


# ---- spaces and storages ---------------------------------------------------------------------------------------------


def space(tmp_path: Path, text: str, models=("resnet18",)):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return read_space(file, models, SupervisedConfig())


def test_the_default_is_the_papers_space():
    distributions = read_space(PAPER, ["resnet50", "convnext_base"], SupervisedConfig()).distributions
    assert next(iter(distributions)) == "model"
    ranges = {name: drawn for name, drawn in distributions.items() if hasattr(drawn, "low")}
    limits = {name: (drawn.low, drawn.high, drawn.log) for name, drawn in ranges.items()}
    assert limits == {
        "optim.lr": (0.0, 1e-3, False),
        "optim.momentum": (0.0, 0.9, False),
        "optim.weight_decay": (0.0, 0.1, False),
        "optim.batch_size": (2, 8, False),
    }
    assert set(distributions["optim.optimizer"].choices) == {"adam", "sgd", "rmsprop"}
    assert set(distributions["init"].choices) == {"pretrained", "random"}


def test_settings_that_mean_nothing_together_are_not_drawn():
    papers_space = read_space(PAPER, ["resnet18", "random:resnet10t"], SupervisedConfig())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        drawn = papers_space.suggest(study.ask(), SupervisedConfig())
        assert ("init" in drawn) == (drawn["model"] == "resnet18")
        assert ("optim.momentum" in drawn) == (drawn["optim.optimizer"] != "adam")
        config = settings_of(SupervisedConfig(), drawn)
        assert (config.model, config.optim.lr) == (drawn["model"], drawn["optim.lr"])


def test_any_setting_can_be_searched(tmp_path):
    text = "optim.mixup: {low: 0, high: 1}\noptim.epochs: [5, 9]\noptim.lr: {low: 1e-5, high: 1e-2, log: true}"
    distributions = space(tmp_path, f"model: [resnet18, resnet26]\n{text}", models=()).distributions
    mixup = distributions["optim.mixup"]
    assert isinstance(mixup, optuna.distributions.FloatDistribution)  # although 0 and 1 are whole
    assert (distributions["optim.lr"].low, distributions["optim.lr"].log) == (1e-5, True)
    assert distributions["model"].choices == ("resnet18", "resnet26")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr: {low: 0, high: 1}", "optim.lr"),
        ("optim.bach_size: [2, 4]", "optim.batch-size"),
        ("optim.lr: {low: 0}", "optim.lr: high is missing"),
        ("optim.lr: {low: 1, high: 0}", "optim.lr"),
        ("optim.lr: {low: 0, high: 1, log: true}", "optim.lr"),
        ("optim.lr: {low: 0, high: 1, lag: true}", "unknown 'lag'"),
        ("optim.momentum: {low: 0, high: 1.5}", "--optim.momentum 1.5"),
        ("optim.optimizer: [adam, lion]", "lion"),
        ("optim.optimizer: {low: 0, high: 1}", "optim.optimizer"),
        ("optim.batch_size: {low: 2.5, high: 8}", "2.5"),
        ("optim.lr: 3", "choices"),
        ("dataset.val_fraction: {low: 0.1, high: 0.2}", "cannot be searched"),
        ("- a\n- b", "expected"),
        ("a: [b", "not valid YAML"),
    ],
)
def test_bad_spaces_are_one_line_that_names_the_way_out(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        space(tmp_path, text)
    assert message in str(error.value)
    assert "space.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_and_doubled_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="resnet50"):
        read_space(PAPER, ["resnet5O"], SupervisedConfig())
    with pytest.raises(InputError, match="are the same"):
        read_space(PAPER, ["resnet50", "ResNet50"], SupervisedConfig())
    with pytest.raises(InputError, match="--models"):
        read_space(PAPER, [], SupervisedConfig())


@pytest.mark.parametrize(
    "storage", ["nonsense://x/y", "postgresql://me:secret@127.0.0.1:1/none", "sqlite:////proc/no/such/study.db"]
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(tmp_path, stub, storage):
    with pytest.raises(InputError, match=r"--storage .* cannot be opened") as error:
        run(tmp_path / "search", "--storage", storage)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_another_search_or_anything_else_in_the_folder_is_refused(tmp_path, stub):
    run(tmp_path / "search", "--trials", 1)
    with pytest.raises(InputError, match=r"optim\.clip_grad: 0\.0 → 1\.0"):
        run(tmp_path / "search", "--trials", 1, "--base.optim.clip-grad", 1)
    with pytest.raises(InputError, match="the space or the models"):
        run(tmp_path / "search", "--trials", 1, models=["resnet18"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").touch()
    with pytest.raises(InputError, match="not the folder of a search"):
        run(tmp_path / "thesis")


def test_settings_given_twice_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"--base\.model"):
        options(tmp_path, "--base.model", "resnet18")


def test_the_command_refuses_in_one_line_with_status_2(call, tmp_path):
    finished = call("supervised/search.py", "--models", "resnet5O", "--out", tmp_path / "search")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert "resnet50" in finished.stderr
    assert not (tmp_path / "search").exists()


# ---- results ---------------------------------------------------------------------------------------------------------

NASTY = "<script>alert('x')</script>|_$5$"


def a_row(rank, trial, **changes) -> Row:
    values = {
        "method": "random", "model": f"{NASTY}{trial}", "paper": f"{NASTY}{trial}", "state": "complete",
        "val_balanced": 90.0 - trial, "val_accuracy": 91.0 - trial, "test_accuracy": Interval(88.0, 80.0, 94.0),
        "val_lowest": "61.5 DME", "val_majority": 40.0, "test_lowest": "0.0 DRUSEN", "test_majority": 52.3,
        "test_balanced": Interval(87.0), "parameters": 5_000_000, "epochs": 4, "best_epoch": 3, "seconds": 7200.0,
        "device": "cuda", "settings": {"optim.lr": 3.2e-4, "optim.optimizer": "sgd"}, "run": "r", "reason": "",
        "attempts": 1,
    }  # fmt: skip
    return Row(rank=rank, trial=trial, **(values | changes))


@pytest.fixture
def published(tmp_path):
    nothing = dict.fromkeys(("test_accuracy", "test_balanced", "test_lowest", "test_majority"))
    failed = nothing | dict.fromkeys(("val_balanced", "val_accuracy", "parameters", "epochs", "best_epoch"))
    rows = [
        a_row(1, 0),
        a_row(2, 1, state="stopped early", **nothing),
        a_row(None, 2, state="failed", reason=f"out of memory {NASTY}", **failed),
    ]
    sets = {name: {"scans": 40, "patients": 10} for name in ("train", "val", "test")}
    board = Board(rows, True, "data", sets, [f"note {NASTY}"], {"space": {}})
    result = leaderboard.publish(board, optuna.create_study(), tmp_path)
    return tmp_path, board, result


@needs_chromium
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 480)])
def test_the_page_is_right_for_everyone(published, scheme, width, tmp_path):
    check_page((published[0] / "leaderboard.html").read_text(), tmp_path, scheme, width)


def test_results_say_the_same_everywhere_and_escape_every_name(published):
    out, board, result = published
    html, text = (out / "leaderboard.html").read_text(), (out / "leaderboard.md").read_text()
    assert "alert('x')" not in html
    assert html.count("<script>") == 1
    assert "data:image/png;base64" in html
    assert not re.search(r"(src|href)=[\"']?(http|/)", html)
    assert "<script>alert" not in text
    assert all(line.count("|") - line.count("\\|") == 15 for line in text.splitlines() if line.startswith("|"))
    with (out / "leaderboard.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows] == ["1", "2", ""]
    assert rows[0]["paper"] == f"{NASTY}0"
    assert (float(rows[0]["test_accuracy_low"]), float(rows[0]["optim.lr"])) == (80.0, 3.2e-4)
    for shown in (html, text, leaderboard.board_text(board)):
        assert "PHANTOMS" in shown
        assert "6.00 GPU-hours" in shown
        assert "88.0" in shown
        for words in ("87.0", "61.5 DME", "0.0 DRUSEN", "40.0 % of validation, 52.3 % of test"):
            assert words in shown
        assert "out of memory" in shown
        assert "40 scans of 10 patients" in shown
    assert json.loads((out / "results.json").read_text()) == result
    assert result["cost"]["gpu_hours"] == 6
    assert (out / "figure3.png").stat().st_size > 10_000


def test_importance_finds_the_setting_that_matters_and_says_when_it_cannot(tmp_path, stub):
    stub.value = lambda config, epoch: 1e5 * config.optim.lr
    run(tmp_path / "few", "--trials", 1)
    few = json.loads((tmp_path / "few" / "importance.json").read_text())
    assert few["importance"] == {}
    assert "at least 2" in few["note"]
    run(tmp_path / "many", "--trials", 12, "--base.optim.epochs", 2)
    many = json.loads((tmp_path / "many" / "importance.json").read_text())
    assert next(iter(many["importance"])) == "optim.lr"
    assert many["importance"]["optim.lr"] > 0.7
    assert "optim.momentum" in many["note"]  # adam has none
    assert (tmp_path / "many" / "importance.png").exists()


def test_the_study_file_keeps_states_that_optuna_understands(tmp_path, stub):
    run(tmp_path / "search", "--trials", 2)
    trials = study_of(tmp_path / "search").get_trials()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(trial.intermediate_values for trial in trials)
