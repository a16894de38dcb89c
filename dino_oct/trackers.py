"""Experiment trackers beside TensorBoard: what a run logs goes to them as well, through accelerate's classes.

Each tracker works in a thread of its own. What it takes it takes in order; where it fails, hangs or cannot be reached,
it is left behind with one line, and the training goes on.
"""

import importlib.util
import json
import os
import queue
import re
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import tracking

from dino_oct.config import RunSettings, Tracker, flat
from dino_oct.errors import InputError
from dino_oct.files import read_json, write_whole

PROJECT = "dino-oct"
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio", "comet": "comet-ml"}  # as pip names them
_MODULES = {**_PACKAGES, "comet": "comet_ml"}
_RUNS = "trackers.json"  # in a run's folder: tracker → its name of the run
_PATIENCE = 60.0  # seconds that a tracker may take to finish after the training
_MOST_WAITING = 10_000  # entries that a tracker may leave untaken


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raise InputError, with what to install, unless every tracker is there."""
    for name in names:
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise InputError(f"--run.trackers {name}: not installed: pip install {_PACKAGES[name]}")
        if _MODULES[name] not in tracking.LOGGER_TYPE_TO_CLASS:
            raise InputError(f"--run.trackers {name}: this accelerate does not know it: pip install -U accelerate")


class Trackers:
    """The trackers of one run. All that is given before ``start`` and after a tracker's failure is dropped.

    Args:
        names: of the trackers. patience: seconds that ``close`` waits for all of them.
    """

    def __init__(self, names: Sequence[Tracker] = (), patience: float = _PATIENCE):
        self.names, self.patience = tuple(names), patience
        self._lines: list[_Line] = []
        self._sends_images = False

    def start(self, run: Path, config: RunSettings, goes_on: bool) -> None:
        """Begin a run under the name of its folder, with its settings; only the main process may call it.

        Args:
            goes_on: the run was resumed: trackers go on with their own run, where they still have it.
        """
        self._sends_images = config.run.tracker_images
        for name in self.names:
            self._lines.append(line := _Line(name, run, flat(config), goes_on))
            line.begin(self.patience)

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers of a step, under their names in ``metrics.jsonl``."""
        numbers = {name: float(value) for name, value in values.items()}
        for line in self._lines:
            line.put(lambda line=line: line.log(numbers, step))

    def image(self, section: str, name: str, file: Path, image: np.ndarray, step: int) -> None:
        """An image (H, W) or (H, W, 3) uint8 that lies in a file, too; dropped unless the settings send images."""
        for line in self._lines if self._sends_images else ():
            line.put(lambda line=line: line.image(section, name, file, image, step))

    def close(self) -> None:
        """Let every tracker finish, as long as ``patience`` lasts."""
        for line in self._lines:
            line.put(line.finish)
            line.put(None)
        for line in self._lines:
            line.wait(self.patience)
        self._lines = []


class _Line:
    """One tracker, and the thread that alone speaks to it."""

    def __init__(self, name: Tracker, run: Path, settings: dict[str, Any], goes_on: bool):
        self.name, self.run, self.settings, self.goes_on = name, run, settings, goes_on
        self.waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.is_left = False
        self.tracker: tracking.GeneralTracker | None = None
        self.has_begun = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def begin(self, seconds: float) -> None:
        """Wait for the tracker, but not for ever; nothing is forked while it begins."""
        self.put(self._begin)
        self.thread.start()
        if not self.has_begun.wait(seconds):
            self._leave(f"did not begin within {seconds:g} s")

    def put(self, work: Callable[[], None] | None) -> None:
        if self.waiting.qsize() > _MOST_WAITING:
            self._leave("does not answer")
        if not self.is_left or work is None:
            self.waiting.put(work)

    def wait(self, seconds: float) -> None:
        self.thread.join(0 if self.is_left else seconds)
        if self.thread.is_alive():
            self._leave(f"did not finish within {seconds:g} s")

    def _work(self) -> None:
        while (work := self.waiting.get()) is not None:
            if self.is_left:
                continue
            try:
                work()
            except BaseException as error:  # libraries that log in may even exit
                self._leave(" ".join(f"{type(error).__name__}: {error}".split())[:200])
            self.has_begun.set()

    def _leave(self, reason: str) -> None:
        if not self.is_left:
            self.is_left = True
            text = f"warning: tracker {self.name}: {reason}; the training goes on without it"
            print(text, file=sys.stderr, flush=True)

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        known = read_json(self.run / _RUNS) if (self.run / _RUNS).is_file() else {}
        before = known.get(self.name) if self.goes_on else None
        name, new = self.run.resolve().name, before or uuid.uuid4().hex
        kind, project = tracking.LOGGER_TYPE_TO_CLASS[_MODULES[self.name]], PROJECT
        if self.name == "wandb":
            import wandb

            arguments = {"name": name, "id": new, "resume": "allow", "dir": str(self.run), "config": self.settings}
            arguments |= {"allow_val_change": True, "settings": wandb.Settings(console="off", quiet=True)}
            project = os.environ.get("WANDB_PROJECT", PROJECT)
        elif self.name == "mlflow":
            arguments = {"run_id": before} if before else {"run_name": name}
        elif self.name == "trackio":
            new = before or f"{name}-{new[:8]}"  # trackio knows a run by its name
            arguments = {"name": new, "resume": "allow", "config": self.settings}
        else:
            arguments = {"experiment_key": new}
            project = os.environ.get("COMET_PROJECT_NAME", PROJECT)
        self.tracker = kind(project, **arguments)
        getattr(self.tracker, "start", lambda: None)()  # older ones start when they are made
        if self.name == "mlflow":
            new = self.tracker.tracker.info.run_id
        if self.name == "comet":
            self.tracker.tracker.set_name(name)
        if self.name in ("mlflow", "comet") and not before:  # parameters of mlflow cannot change
            self.tracker.store_init_configuration(self.settings)
        if known.get(self.name) != new:
            write_whole(self.run / _RUNS, json.dumps({**known, self.name: new}, indent=1))
        url = getattr(self.tracker.tracker, "url", None)
        print(f"tracker {self.name}: run {name}{f', {url}' if isinstance(url, str) else ''}", flush=True)

    def log(self, numbers: dict[str, float], step: int) -> None:
        if self.name == "mlflow":
            numbers = {_mlflow_name(name): value for name, value in numbers.items()}
        self.tracker.log(numbers, step=step)

    def image(self, section: str, name: str, file: Path, image: np.ndarray, step: int) -> None:
        title = f"{section}/{name}"
        if self.name == "wandb":
            self.tracker.log_images({title: [image]}, step=step)
        elif self.name == "mlflow":
            self.tracker.log_artifact(str(file), section)
        elif self.name == "trackio":
            import trackio

            self.tracker.log({title: trackio.Image(str(file))}, step=step)
        else:
            self.tracker.tracker.log_image(str(file), name=title, step=step)

    def finish(self) -> None:
        self.tracker.finish()


def _mlflow_name(name: str) -> str:
    """A name as mlflow allows it."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]
