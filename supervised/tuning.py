"""The search of ``supervised/search.py``: one worker that runs trials, reports, and tests the winners."""

import dataclasses
import gc
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState

from dino_oct.checkpoint import read_metrics
from dino_oct.cli import read_settings, write_settings
from dino_oct.config import differences
from dino_oct.data.load import load_scans
from dino_oct.devices import default_device
from dino_oct.errors import InputError
from dino_oct.files import is_full, private_folder, read_json, read_yaml, remove, write_whole
from dino_oct.limits import check_settings
from dino_oct.scan_data import ScanData
from dino_oct.scores.text import write_json, written
from dino_oct.streams import short_seed_of
from dino_oct.words import counted
from supervised import leaderboard
from supervised.config import Method, SearchOptions, SupervisedConfig
from supervised.data import check_classes, labelled
from supervised.judge import read_result
from supervised.space import Space, base_of, read_space, settings_of
from supervised.study import FINISHED, LOCK, SharedStudy, Worker, locked, open_study, reading_study
from supervised.training import JUDGED_BY, test, train

Say = Callable[[str], None]
LEAST_EPOCHS = 2  # before a trial may be stopped for being worse than the others
_REDUCTION = 3  # Hyperband: one trial in so many goes on at each of its stages
_STARTUP = 10  # random trials that TPE wants before it models them, where there are fewer random ones in the study
_TEST_FILE = Path("evaluation", "supervised", "supervised_test.json")


def search(options: SearchOptions, say: Say = print) -> dict[str, Any]:
    """Run trials as one worker of a search until there are enough, then report, and test the winners if it is over.

    Returns:
        what ``results.json`` holds.

    Raises:
        InputError: wrong options, space, storage or data; another search in the folder; every trial failed.
    """
    check_settings(options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a search runs each trial in one process: start it with python, one worker for each GPU")
    base = dataclasses.replace(options.base, data=options.data or options.base.data)
    space = read_space(options.space, options.models, base)
    base = base_of(base, space.given["model"])
    index, scans = load_scans(base.data, base.dataset, base.phantom, say)
    if index.multilabels:
        raise InputError(
            f"{index.root}: its scans may have several labels each, and a search compares classifiers of one class a "
            "scan; train models one by one: supervised/train.py"
        )
    check_classes(index)
    data = ScanData(index, scans, base.dataset, None, index.notes)
    out = Path(options.out)
    _claim_folder(out)
    epochs = space.most_epochs or base.optim.epochs
    study = open_study(options.storage, options.study or out.resolve().name, out, make_pruner(epochs))
    worker = Worker(out / "workers")
    try:
        with reading_study(options.storage, out):
            return _work(SharedStudy(study, out, worker), options, base, space, data, epochs, say)
    finally:
        worker.close()


def _work(
    shared: SharedStudy,
    options: SearchOptions,
    base: SupervisedConfig,
    space: Space,
    data: ScanData,
    epochs: int,
    say: Say,
) -> dict[str, Any]:
    out = shared.out
    _check_same_search(shared, base, space)
    say(
        f"search: {options.method} trials up to {options.trials} over "
        f"{counted(len(space.given['model']), 'architecture')} · searched: {', '.join(space.given)} · "
        f"at most {epochs} epochs, "
        + (f"stopped from epoch {LEAST_EPOCHS} on (Hyperband)" if epochs > LEAST_EPOCHS else "none stopped early")
    )
    stopped = _run_trials(shared, options, base, space, say)
    with shared.lock():
        trials, running = shared.trials(), shared.running()
    finished = [t for t in trials if t.state in FINISHED]
    if not finished and not running and not stopped:
        failed = next(t for t in trials if t.state is TrialState.FAIL)
        raise InputError(
            f"all {len(trials)} trials failed; the first: {failed.user_attrs['reason']} (settings in "
            f"{_run_folder(out, failed.number)}/config.yaml; a new search needs another --out)"
        )
    wanted = options.method == "bayes" if options.finish is None else options.finish
    is_over = shared.winners is not None or (wanted and not stopped and not running)
    tested = _test_winners(shared, data, say) if is_over else {}
    if running:
        say(f"other workers still run {running} of the trials; the last of them finishes the search")
    elif stopped:
        say("stopped by a signal; the same command goes on from there")
    return _publish(shared, data, base, space, tested, say)


def make_pruner(epochs: int) -> optuna.pruners.BasePruner:
    """Hyperband between ``LEAST_EPOCHS`` and the most epochs of a trial; nothing to stop where these are the same."""
    if epochs <= LEAST_EPOCHS:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(LEAST_EPOCHS, epochs, _REDUCTION)


def make_sampler(method: Method, seed: int, number: int, n_random: int, epochs: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial, which draws the same in any worker and after any restart.

    Args:
        number: of the trial; n_random: finished random trials, which stand for TPE's random start. TPE looks at one
            Hyperband bracket at a time, which holds its share of them.
        epochs: the most of a trial.
    """
    own = short_seed_of("settings of a trial", seed, number)
    if method == "random":
        return optuna.samplers.RandomSampler(seed=own)
    brackets = int(math.log(max(epochs / LEAST_EPOCHS, 1), _REDUCTION)) + 1
    startup = min(_STARTUP, max(n_random // brackets, 1)) if n_random else _STARTUP
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=startup, constant_liar=True)


def _claim_folder(out: Path) -> None:
    private_folder(out)
    if any(out.iterdir()) and not (out / LOCK).exists():
        raise InputError(f"{out} exists and is not the folder of a search; choose another --out")


def _check_same_search(shared: SharedStudy, base: SupervisedConfig, space: Space) -> None:
    """Write the settings of a new search; refuse to go on with others, whose trials could not be compared."""
    settings, searched = shared.out / "base.yaml", shared.out / "space.yaml"
    with shared.lock():
        if not os.path.lexists(searched):
            if shared.trials():
                raise InputError(
                    f"{searched}: no such file, and study {shared.study.study_name} holds the trials of another --out; "
                    "give that folder, or another --study name"
                )
            write_settings(base, settings)
            write_whole(searched, yaml.safe_dump(space.given, sort_keys=False, width=120))
            return
        changed = differences(read_settings(SupervisedConfig, settings), base)
        if not _is_same_space(read_yaml(searched), space.given):
            changed.append(f"the space or the models (those of the search are in {searched})")
    if changed:
        raise InputError(f"{shared.out}: a search with other settings: {'; '.join(changed)}; choose another --out")


def _is_same_space(old: Any, new: dict[str, Any]) -> bool:
    """Whether two spaces are the same, however the paths of their models are spelled."""

    def resolved(given: Any) -> Any:
        models = given.get("model") if isinstance(given, dict) else None
        if not isinstance(models, list):
            return given
        return {**given, "model": [str(Path(m).resolve()) if Path(str(m)).exists() else m for m in models]}

    return resolved(old) == resolved(new)


def _run_trials(shared: SharedStudy, options: SearchOptions, base: SupervisedConfig, space: Space, say: Say) -> bool:
    """Run trials until there are enough of them; whether a signal ended it before."""
    while True:
        trial = shared.next_trial(options.method, options.trials)
        if trial is None:
            return False
        try:
            is_stopped = not _run_trial(shared, trial, options, base, space, say)
        except KeyboardInterrupt:  # before the trainer could save
            shared.put_down(trial)
            raise
        if is_stopped:
            shared.put_down(trial)
            return True
        with shared.lock():
            if not options.keep_weights:
                _remove_lesser_weights(shared)
            leaderboard.write_tables(_rows(shared, {}), shared.out)


def _run_trial(
    shared: SharedStudy, trial: Trial, options: SearchOptions, base: SupervisedConfig, space: Space, say: Say
) -> bool:
    """Train one trial, or go on with it, and record its end; False if a signal stopped it."""
    epochs = space.most_epochs or base.optim.epochs
    n_random = sum(t.state in FINISHED for t in shared.trials("random"))
    method = trial.user_attrs["method"]
    shared.study.sampler = make_sampler(method, options.seed, trial.number, n_random, epochs)
    run, before, clock = _run_folder(shared.out, trial.number), trial.user_attrs.get("seconds", 0.0), time.monotonic()

    trial.set_user_attr("device", default_device().type)

    def count_seconds() -> None:
        trial.set_user_attr("seconds", before + time.monotonic() - clock)

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        trial.report(metrics[JUDGED_BY], epoch)
        count_seconds()
        if epoch < config.optim.epochs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        drawn = space.suggest(trial, base)
        going_on = " (goes on)" if trial.user_attrs["attempts"] > 1 else ""
        say(f"trial {trial.number}, {method}{going_on}: {leaderboard.settings_line(drawn)}")
        config = dataclasses.replace(settings_of(base, drawn), out=str(run))
        best = train(config, on_epoch)
    except optuna.TrialPruned:
        ended = TrialState.PRUNED, None, "stopped by Hyperband"
        say(f"trial {trial.number}: stopped by Hyperband")
    except InputError as error:
        ended = TrialState.FAIL, None, str(error)
    except Exception as error:  # one trial's, which must not end the search; its traceback is kept
        if is_full(error):  # every other trial would fail too
            shared.put_down(trial)
            raise
        private_folder(run)
        write_whole(run / "error.txt", traceback.format_exc())
        ended = TrialState.FAIL, None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({run}/error.txt)"
    else:
        if (run / "stopped").exists():
            count_seconds()
            return False
        ended = TrialState.COMPLETE, best[JUDGED_BY], ""
    count_seconds()
    (state, value, reason), outcome = ended, None
    if state in FINISHED:
        try:
            outcome = outcome_of(run)
        except InputError as error:
            state, value, reason = TrialState.FAIL, None, str(error)
    if state is TrialState.FAIL:
        say(f"trial {trial.number} failed: {reason}")
    shared.finish(trial, state, value, reason, outcome)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def outcome_of(run: Path) -> dict[str, float]:
    """Metrics of a run's best validation, with ``best_epoch`` and the ``epochs`` that were trained.

    Raises:
        InputError: its log is missing, or holds no validation.
    """
    lines, _ = read_metrics(run / "metrics.jsonl")
    judged = [line for line in lines if all(_is_number(line.get(name)) for name in (JUDGED_BY, "val_loss"))]
    if not judged:
        raise InputError(f"{run / 'metrics.jsonl'}: damaged: it holds no validation of this trial")
    best = max(judged, key=lambda line: (line[JUDGED_BY], -line["val_loss"]))
    kept = {name: value for name, value in best.items() if name.startswith("val_") or name == "trainable_parameters"}
    return kept | {"best_epoch": round(best["epoch"]), "epochs": round(max(line["epoch"] for line in judged))}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def best_trials(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """The number of each architecture's best trial by validation, stopped ones included: their weights are kept too."""
    best: dict[str, int] = {}
    for trial in leaderboard.ranked(trials):
        best.setdefault(trial.params["model"], trial.number)
    return best


def _remove_lesser_weights(shared: SharedStudy) -> None:
    """Keep ``export/`` of the best trial of each architecture alone; logs and settings of all. The lock is held."""
    trials = shared.trials()
    best = set(best_trials(trials).values())
    for trial in trials:
        if trial.state.is_finished():
            run = _run_folder(shared.out, trial.number)
            for folder in ("checkpoints",) if trial.number in best else ("checkpoints", "export"):
                shutil.rmtree(run / folder, ignore_errors=True)


def _test_winners(shared: SharedStudy, data: ScanData, say: Say) -> dict[int, dict[str, Any]]:
    """Choose the best trial of each architecture, for good, and test those that were not: results by trial."""
    with shared.lock():
        if shared.winners is None:
            shared.study.set_user_attr("winners", best_trials(shared.trials()))
    results: dict[int, dict[str, Any]] = {}
    if not len(labelled(data.index, "test")):
        say(f"winners not tested: {data.index.root} has no labelled test scans")
        return results
    with locked(shared.out / "test.lock"):  # another worker may be testing them now
        for model, number in shared.winners.items():
            run = _run_folder(shared.out, number)
            file = run / _TEST_FILE
            result = read_result(file)
            if result is None:
                if not (run / "export").is_dir():
                    raise InputError(f"{run}/export is missing: the winner of {model} cannot be tested")
                say(f"testing the winner of {model}, trial {number}")
                config = read_settings(SupervisedConfig, run / "config.yaml")
                private_folder(file.parent)
                remove(file)
                write_json(test(config, data, run, default_device()), file)
                result = read_json(file)
            results[number] = result
    return results


def _rows(shared: SharedStudy, tested: dict[int, dict[str, Any]]) -> list[leaderboard.Row]:
    return [
        leaderboard.make_row(trial, rank, _run_folder(shared.out, trial.number), tested.get(trial.number))
        for rank, trial in leaderboard.with_ranks(shared.trials())
    ]


def _publish(
    shared: SharedStudy,
    data: ScanData,
    base: SupervisedConfig,
    space: Space,
    tested: dict[int, dict[str, Any]],
    say: Say,
) -> dict[str, Any]:
    """Write every result into the search's folder and say the leaderboard."""
    sets = {split: data.counts(labelled(data.index, split)) for split in ("train", "val", "test")}
    with shared.lock():
        rows = _rows(shared, tested)
        settings = {"base": base, "space": space.given}
        board = leaderboard.Board(rows, data.is_phantom, str(data.index.root), sets, list(data.notes), settings)
        result = leaderboard.publish(board, shared.study, shared.out)
    say("\n" + leaderboard.board_text(board))
    names = ("leaderboard.html", "leaderboard.md", "leaderboard.csv", "results.json", "figure3.png", "importance.json")
    say(written(*(shared.out / name for name in names)))
    return result


def _run_folder(out: Path, number: int) -> Path:
    return out / "trials" / f"{number:04d}"
