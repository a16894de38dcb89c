"""What a search found: leaderboard (CSV, Markdown, HTML, terminal), figures, importance of settings, and cost."""

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from jinja2 import Environment, FileSystemLoader
from optuna.trial import FrozenTrial, TrialState

from dino_oct.files import write_whole
from dino_oct.scan_data import ScanCounts
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.class_summary import ClassSummary
from dino_oct.scores.text import PHANTOM_NOTICE, plain, show, table, write_json
from dino_oct.streams import short_seed_of
from dino_oct.words import counted, scans_of
from supervised.architectures import find
from supervised.search_figures import draw_figure3, draw_importance
from supervised.trials import Drawn, Row

_SHORT = {"optim.batch_size": "batch", "optim.optimizer": "optimiser", "optim.weight_decay": "decay"}
_FEW_TRIALS = 30  # below them, importance says little
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}

_RECALL = "val_recall_"


@dataclass(frozen=True)
class Board:
    """The rows with what a reader must know about them.

    Attributes:
        sets: scans and patients of each split of the data in ``folder``. settings: what trials share, and the space.
    """

    rows: list[Row]
    is_phantom: bool
    folder: str
    sets: dict[str, ScanCounts]
    notes: list[str]
    settings: dict[str, Any]

    @property
    def counts(self) -> str:
        """Scans and patients of each split, in words."""
        return " · ".join(f"{name}: {scans_of(counts)}" for name, counts in self.sets.items())

    @property
    def cost(self) -> str:
        """Time of all trials, in words."""
        ended = [row for row in self.rows if row.state != "running"]
        total, gpu = sum(r.seconds for r in ended), sum(r.seconds for r in ended if r.device == "cuda")
        states = {state: sum(row.state == state for row in self.rows) for state in _STATES.values()}
        by_state = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        hours = f" ({gpu / 3600:.2f} GPU-hours)" if gpu else " on CPUs"
        epochs = sum(row.epochs or 0 for row in ended)
        return f"{counted(len(self.rows), 'trial')} ({by_state}) · {epochs} epochs in {clock(total)}{hours}"


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials with a result, best validation first: balanced accuracy, then lower loss, then the earlier trial."""
    done = [t for t in trials if t.user_attrs.get("outcome")]
    return sorted(done, key=lambda t: (*(-value for value in _judged(t)), t.number))


def with_ranks(trials: Sequence[FrozenTrial]) -> list[tuple[int | None, FrozenTrial]]:
    """All trials: those with a result by rank, then the others by number."""
    order = ranked(trials)
    numbers = {trial.number for trial in order}
    return [*enumerate(order, start=1), *((None, t) for t in trials if t.number not in numbers)]


def _judged(trial: FrozenTrial) -> tuple[float, float]:
    outcome = trial.user_attrs["outcome"]
    return outcome["val_balanced_accuracy"], -outcome["val_loss"]


def make_row(trial: FrozenTrial, rank: int | None, run: Path, tested: dict[str, Any] | None) -> Row:
    """The row of a trial.

    Args:
        tested: what its test's JSON file holds, if it won.
    """
    attrs, settings = trial.user_attrs, dict(trial.params)
    model, outcome = settings.pop("model", ""), attrs.get("outcome") or {}
    result = next(iter(tested["rows"].values())) if tested else {}
    intervals = {name: Interval(**result[name]) if result else None for name in ("accuracy", "balanced_accuracy")}
    trained = outcome.get("trainable_parameters")
    by_class = ClassSummary(
        {name.removeprefix(_RECALL): value for name, value in outcome.items() if name.startswith(_RECALL)}
    )
    lowest = result.get("lowest_recall")
    return Row(
        rank=rank,
        trial=trial.number,
        method=attrs["method"],
        model=model,
        paper=find(model)[0] if model else "",
        state=_STATES[trial.state],
        val_balanced=outcome.get("val_balanced_accuracy"),
        val_accuracy=outcome.get("val_accuracy"),
        val_lowest=f"{by_class.recall[by_class.lowest]:.1f} {by_class.lowest}" if by_class.recall else None,
        val_majority=outcome.get("val_majority"),
        test_accuracy=intervals["accuracy"],
        test_balanced=intervals["balanced_accuracy"],
        test_lowest=f"{lowest['recall']['point']:.1f} {lowest['class']}" if lowest else None,
        test_majority=tested["majority"]["share"] if lowest else None,
        parameters=None if trained is None else int(trained),
        epochs=outcome.get("epochs"),
        best_epoch=outcome.get("best_epoch"),
        seconds=attrs.get("seconds", 0.0),
        device=attrs.get("device", ""),
        settings=settings,
        run=str(run),
        reason=attrs.get("reason", ""),
        attempts=attrs.get("attempts", 1),
    )


def settings_line(settings: Drawn) -> str:
    """Settings in a few words."""

    def shown(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{_SHORT.get(name, name.rsplit('.', 1)[-1])} {shown(value)}" for name, value in settings.items())


def clock(seconds: float) -> str:
    """Seconds as ``42 s``, ``3.1 min`` or ``5.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def importance(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Share of the variance of validation that each setting explains (fANOVA, Hutter et al. 2014), and what to add.

    Only settings that every completed trial has can be compared; stopped trials are left out.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        return {}, f"no importance: it needs at least 2 completed trials, there are {len(complete)}"
    if len({t.value for t in complete}) < 2:
        return {}, "no importance: all completed trials have the same validation"
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=short_seed_of("importance of settings"))
    )
    absent = sorted({name for t in complete for name in t.params} - set(shares))
    few = " (few: these shares are rough)" if len(complete) < _FEW_TRIALS else ""
    note = f"{len(complete)} completed trials{few}" + (f"; not in all of them: {', '.join(absent)}" if absent else "")
    return shares, note


def write_tables(rows: Sequence[Row], out: Path) -> None:
    """``leaderboard.csv``, for a look at a search that is running."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    searched = sorted({name for row in rows for name in row.settings})
    plain_columns = [
        name for name in Row.__dataclass_fields__ if name not in ("settings", "test_accuracy", "test_balanced")
    ]
    intervals = [f"{name}{end}" for name in ("test_accuracy", "test_balanced") for end in ("", "_low", "_high")]
    writer.writerow([*plain_columns, *intervals, *searched])
    for row in rows:
        bounds = [
            value
            for interval in (row.test_accuracy, row.test_balanced)
            for value in ((interval.point, interval.low, interval.high) if interval else (None,) * 3)
        ]
        cells = [getattr(row, name) for name in plain_columns]
        writer.writerow([*cells, *bounds, *(row.settings.get(name) for name in searched)])
    write_whole(out / "leaderboard.csv", text.getvalue())


_HEADER = ["rank", "architecture", "validation %, balanced", "validation %", "lowest recall %",
           "test % [95 % interval]", "test %, balanced", "test, lowest recall %",
           "M parameters", "epochs", "time", "settings", "trial", "state"]  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row in words, in the order of the header."""
    name = row.paper if row.paper == row.model else f"{row.paper} ({row.model})"
    return [
        "–" if row.rank is None else str(row.rank),
        name,
        _percent(row.val_balanced),
        _percent(row.val_accuracy),
        row.val_lowest or "–",
        "" if row.test_accuracy is None else show(row.test_accuracy),
        "" if row.test_balanced is None else show(row.test_balanced),
        row.test_lowest or "",
        "–" if row.parameters is None else f"{row.parameters / 1e6:.2f}",
        "–" if row.epochs is None else f"{row.epochs} (best {row.best_epoch})",
        clock(row.seconds),
        settings_line(row.settings),
        f"{row.trial}, {row.method}",
        f"{row.state}: {row.reason}" if row.state == "failed" else row.state,
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def markdown(board: Board) -> str:
    """The leaderboard as Markdown."""

    def line(words: Sequence[str]) -> str:
        return "| " + " | ".join(_for_markdown(word) for word in words) + " |"

    return "\n".join(
        [
            f"# Leaderboard{f' · {PHANTOM_NOTICE}' if board.is_phantom else ''}",
            "",
            *(f"{_for_markdown(text)}  " for text in _about(board)),
            "",
            line(_HEADER),
            "|" + " --- |" * len(_HEADER),
            *(line(cells(row)) for row in board.rows),
            "",
        ]
    )


def _for_markdown(text: str) -> str:
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


def _about(board: Board) -> list[str]:
    tested = any(row.test_accuracy for row in board.rows)
    return [
        f"data: {board.folder} · {board.counts}",
        board.cost,
        "ranked by validation alone; "
        + ("the winner of each architecture classified the test split once" if tested else "nothing was tested yet"),
        *_majorities(board.rows),
        *(f"note: {note}" for note in board.notes),
    ]


def _majorities(rows: Sequence[Row]) -> list[str]:
    """The accuracy of always naming the most frequent class, which is the same for every trial."""
    shares = {
        "validation": next((row.val_majority for row in rows if row.val_majority is not None), None),
        "test": next((row.test_majority for row in rows if row.test_majority is not None), None),
    }
    known = ", ".join(f"{share:.1f} % of {split}" for split, share in shares.items() if share is not None)
    return [f"always the most frequent class would be right in {known}"] if known else []


def board_text(board: Board) -> str:
    """The leaderboard for the terminal."""
    rows = [[cell if len(cell) <= 90 else f"{cell[:89]}…" for cell in cells(row)] for row in board.rows]
    title = f"leaderboard{f' · {PHANTOM_NOTICE}' if board.is_phantom else ''}"
    return "\n".join([title, "", table(_HEADER, rows), "", *_about(board)])


def publish(board: Board, study: optuna.Study, out: Path) -> dict[str, Any]:
    """Write everything into the search's folder; what ``results.json`` holds."""
    shares, note = importance(study)
    notice = PHANTOM_NOTICE if board.is_phantom else ""
    write_json({"importance": shares, "method": "fANOVA", "note": note}, out / "importance.json")
    title = "\n".join(filter(None, [notice, board.counts]))
    figures = {"figure3.png": draw_figure3(board.rows, title)} if any(r.rank for r in board.rows) else {}
    if shares:
        figures["importance.png"] = draw_importance(shares, "\n".join(filter(None, [notice, note])))
    for name, content in figures.items():
        write_whole(out / name, content)
    if not shares:
        (out / "importance.png").unlink(missing_ok=True)
    write_tables(board.rows, out)
    write_whole(out / "leaderboard.md", markdown(board))
    write_whole(out / "leaderboard.html", page(board, figures, note))
    result = plain(
        {
            "evaluation": "search",
            "synthetic": board.is_phantom,
            "data": {"folder": board.folder, "sets": board.sets},
            "settings": board.settings,
            "units": "per cent; tests with 95 % patient-bootstrap intervals; seconds",
            "rows": [asdict(row) for row in board.rows],
            "cost": {
                "seconds": sum(row.seconds for row in board.rows),
                "gpu_hours": sum(row.seconds for row in board.rows if row.device == "cuda") / 3600,
                "epochs": sum(row.epochs or 0 for row in board.rows),
            },
            "importance": {"shares": shares, "note": note},
            "notes": board.notes,
        }
    )
    write_json(result, out / "results.json")
    return result


def page(board: Board, figures: dict[str, bytes], note: str) -> str:
    """The leaderboard as one HTML file that opens offline; every name in it is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    keys = [_sort_keys(row) for row in board.rows]
    return environment.get_template("leaderboard.html").render(
        notice=PHANTOM_NOTICE if board.is_phantom else "",
        about=_about(board),
        header=_HEADER,
        rows=[list(zip(cells(row), key, strict=True)) for row, key in zip(board.rows, keys, strict=True)],
        states=[row.state for row in board.rows],
        winners=[row.test_accuracy is not None for row in board.rows],
        figures={name: base64.b64encode(content).decode() for name, content in figures.items()},
        note=note,
    )


def _sort_keys(row: Row) -> list[Any]:
    """By what each cell is sorted; numbers where it shows one, empty where it shows none."""
    values = [
        row.rank,
        row.paper.lower(),
        row.val_balanced,
        row.val_accuracy,
        row.val_lowest and float(row.val_lowest.split()[0]),
        row.test_accuracy and row.test_accuracy.point,
        row.test_balanced and row.test_balanced.point,
        row.test_lowest and float(row.test_lowest.split()[0]),
        row.parameters,
        row.epochs,
        row.seconds,
        settings_line(row.settings),
        row.trial,
        row.state,
    ]
    return ["" if value is None else value for value in values]
