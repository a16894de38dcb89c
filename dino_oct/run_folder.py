"""A run's folder: one owner at a time, which checkpoint it goes on from, and earlier runs kept aside."""

import os
import shutil
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO

from dino_oct.checkpoint import Checkpoints, way_out
from dino_oct.cli import read_settings, write_settings
from dino_oct.config import RunSettings, differences
from dino_oct.errors import InputError
from dino_oct.files import is_at, lock_now, naming, open_lock
from dino_oct.provenance import is_run_folder, run_of

_LOCK = ".lock"


class RunFolder:
    """A run's folder while a trainer works in it. A context: the folder is locked from its begin to its end.

    Args:
        path: of the folder, which need not be there.
        owns: whether this process is the main one, which alone locks and writes.

    Raises:
        InputError: at the begin: the folder is not a run's, cannot be written, or another process works in it.
    """

    def __init__(self, path: str | Path, owns: bool):
        self.path, self.owns = Path(path), owns
        self._handle: IO[str] | None = None

    def __enter__(self) -> "RunFolder":
        if self.path.exists() and (not self.path.is_dir() or (_content(self.path) and not is_run_folder(self.path))):
            raise InputError(f"{self.path} exists and is not a run folder; choose another --out")
        if self.owns:
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    @property
    def _settings(self) -> Path:
        return self.path / "config.yaml"

    def find_resume(self, resume: str) -> Path | None:
        """The checkpoint to go on from.

        Args:
            resume: ``auto``: the folder's last, if any; ``never``: none; else a checkpoint or the folder of a run. One
                from elsewhere starts this run, once: after a stop the same command goes on from the folder's own last.

        Raises:
            InputError: a path that holds no checkpoint.
        """
        last = Checkpoints(self.path).last
        if resume == "never":
            return None
        if resume == "auto":
            if os.path.lexists(last):
                return last
            if Checkpoints(self.path).all():
                raise InputError(f"{last}: no such file, though the run has other checkpoints; {way_out(last)}")
            return None
        path = Path(resume)
        path = Checkpoints(path).last if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"--resume {resume}: no checkpoint there")
        if not self._holds(path) and last.exists() and self._began_from(path):
            return last
        return path

    def prepare(self, config: RunSettings, resume: Path | None, say: Callable[[str], None]) -> None:
        """Make the folder ready and write ``config.yaml``; say what is resumed, and keep an earlier run aside.

        Args:
            resume: from ``find_resume``; None: the run begins.
        """
        goes_on = resume is not None and self._holds(resume)
        if not goes_on and _content(self.path):
            self._put_aside(say)
        if resume is not None:
            self._say_resumed(config, resume, goes_on, say)
            if not goes_on:
                _copy_history(run_of(str(resume)), self.path)
        (self.path / "stopped").unlink(missing_ok=True)
        write_settings(config, self._settings)

    def _holds(self, checkpoint: Path) -> bool:
        return self.path.resolve() in checkpoint.resolve().parents

    def _began_from(self, checkpoint: Path) -> bool:
        """Whether this run was started from another run's checkpoint by the same ``--resume``."""
        try:
            resume = Path(read_settings(RunSettings, self._settings, others=True).resume)
        except InputError:
            return False
        resume = Checkpoints(resume).last if resume.is_dir() else resume
        return resume.resolve() == checkpoint.resolve()

    def _put_aside(self, say: Callable[[str], None]) -> None:
        if Checkpoints(self.path).all():
            aside = self.path.with_name(f"{self.path.name}-{datetime.now():%Y%m%d-%H%M%S}")
            self.path.rename(aside)
            self._unlock(aside)
            self._lock()
            say(f"the earlier run is kept in {aside}")
        else:
            say(f"{self.path}: an earlier try stopped before its first checkpoint; starting anew")
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def _say_resumed(self, config: RunSettings, resume: Path, goes_on: bool, say: Callable[[str], None]) -> None:
        say(f"resuming from {resume} (--resume never starts anew)")
        if goes_on and resume.resolve() != Checkpoints(self.path).last.resolve():
            say(f"note: what {self.path} logged after this checkpoint is dropped")
        run = self.path if goes_on else run_of(str(resume))
        if run is not None and (changed := differences_to(run / "config.yaml", config)):
            say(f"warning: settings differ from the run's: {'; '.join(changed)}")

    def _lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        handle = open_lock(self.path / _LOCK)
        if not lock_now(handle.fileno()):
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            handle.close()
            raise InputError(f"{self.path} is in use by {holder}; wait for its end, or choose another --out")
        if not is_at(handle.fileno(), self.path / _LOCK):  # its last owner removed it just now
            handle.close()
            return self._lock()
        with naming(self.path / _LOCK):
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}\n")
            handle.flush()
        self._handle = handle

    def _unlock(self, path: Path | None = None) -> None:
        if self._handle is None:
            return
        path = path or self.path
        (path / _LOCK).unlink(missing_ok=True)
        self._handle.close()
        self._handle = None
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()  # nothing came of the run


def differences_to(settings: Path, config: RunSettings) -> list[str]:
    """What differs between a run's ``config.yaml`` and the present settings."""
    try:
        return differences(read_settings(type(config), settings), config)
    except InputError as error:
        return [f"{error}"]


def _content(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != _LOCK] if folder.is_dir() else []


def _copy_history(run: Path | None, new: Path) -> None:
    """What a run that goes on elsewhere takes along: its log, and the weights that it started from."""
    if run is None:
        return
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", new / "metrics.jsonl")
    if (run / "checkpoints" / "start").is_dir():
        shutil.copytree(run / "checkpoints" / "start", new / "checkpoints" / "start", dirs_exist_ok=True)
