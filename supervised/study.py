"""One Optuna study that many workers fill: who runs which trial, how many are left, and what became of each.

The number of trials is kept, and a trial is given to one worker only, under a lock in the search's folder, which all
workers share. A worker holds a locked file while it lives; a running trial whose worker is gone goes to the next one,
as the same trial with the same settings, which goes on from the checkpoint in its run folder.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import threading
import traceback
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from dino_oct.errors import InputError
from dino_oct.files import check_regular, is_full, open_lock, read_json
from supervised.config import Method

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
JOURNAL = "study.journal"
_MOST_ATTEMPTS = 3  # a trial that takes its worker down each time is given up
_BEAT, _SILENCE = 15, 180  # seconds: between signs of life, and after which a worker on another machine is gone
LOCK = "search.lock"
_READERS = ("optuna.", "sqlalchemy.", __name__, "supervised.leaderboard")  # modules that read what a study holds

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("sqlalchemy").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


def open_study(storage: str, name: str, out: Path, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Open a study, or make it.

    Args:
        storage: a database's URL, or a journal file; empty: ``OUT/study.journal``, since a journal that is only
            appended to, under a lock made by an atomic link, is safe for many workers on network file systems too,
            where SQLite's locks are not.

    Raises:
        InputError: the storage cannot be opened.
    """
    with locked(out / LOCK):  # two processes that make a database's tables at once fail
        try:
            if "://" in storage:
                if storage.startswith("sqlite:///") and os.path.lexists(database := storage.removeprefix("sqlite:///")):
                    check_regular(database)
                opened: optuna.storages.BaseStorage = optuna.storages.RDBStorage(
                    storage, engine_kwargs={"pool_pre_ping": True} if not storage.startswith("sqlite") else None
                )
            else:
                file = Path(storage or out / JOURNAL)
                file.parent.mkdir(parents=True, exist_ok=True)
                _mend(file)
                opened = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
            return optuna.create_study(
                storage=opened, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
            )
        except Exception as error:  # whatever a database driver raises
            if is_full(error):
                raise
            raise InputError(
                f"--storage {_without_password(storage) or out / JOURNAL}: cannot be opened ({_reason(error)}); give a "
                "file, sqlite:///FILE, postgresql://… or mysql://…; a damaged study goes on only from a copy of it"
            ) from None


@contextlib.contextmanager
def reading_study(storage: str, out: Path) -> Iterator[None]:
    """Say in one line where a study that could be opened turns out to be damaged, or its database breaks off.

    Raises:
        InputError: names the storage.
    """
    try:
        yield
    except (OptunaError, SQLAlchemyError, AttributeError, KeyError, TypeError, ValueError) as error:
        modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
        if not any(name.startswith(_READERS) for name in modules):
            raise
        raise InputError(
            f"--storage {_without_password(storage) or out / JOURNAL}: damaged, or cannot be reached any more "
            f"({_reason(error)}); give a copy of it, or begin anew in another --out"
        ) from None


def _reason(error: Exception) -> str:
    message = " ".join(str(error).splitlines()[0].split()) if str(error) else ""
    return f"{type(error).__name__} {_without_password(message)}"[:200]


def _mend(file: Path) -> None:
    """Cut off half a line at a journal's end, which a machine that went down may leave and which Optuna cannot read."""
    if not os.path.lexists(file):
        return
    check_regular(file)
    lock = JournalFileSymlinkLock(str(file))
    lock.acquire()
    try:
        with file.open("rb+") as stream:
            content = stream.read()
            if not content.endswith(b"\n"):
                stream.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _without_password(text: str) -> str:
    return re.sub(r"://([^:/@\s]*):[^@\s]*@", r"://\1:***@", text)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that the system releases should the process die.

    Raises:
        InputError: a file system without locks.
    """
    with open_lock(file) as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(f"{file}: no file locks here ({error.strerror}); give an --out that has them") from None
        yield


class Worker:
    """This process as the others see it: a file in a shared folder, locked and touched as long as it lives.

    POSIX locks are used because they end with the process itself, not with the loader processes it forked.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, uuid.uuid4().hex[:12]
        self._handle = self._file(self.name).open("w", encoding="utf-8")
        fcntl.lockf(self._handle, fcntl.LOCK_EX)
        about = {"machine": _machine(), "host": socket.gethostname(), "pid": os.getpid()}
        self._handle.write(json.dumps(about))
        self._handle.flush()
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def is_alive(self, name: str) -> bool:
        """Whether a worker still runs: on this machine by its lock, elsewhere by its signs of life."""
        if name == self.name:
            return True
        file = self._file(name)
        try:
            about = read_json(file)
            if about.get("machine") == _machine():
                with file.open("a") as handle:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            os.utime(self._file(self.name))  # the clock of the file system, not of this machine
            return self._file(self.name).stat().st_mtime - file.stat().st_mtime < _SILENCE
        except (BlockingIOError, PermissionError):
            return True
        except (InputError, OSError):  # removed when it ended, or damaged
            return False

    def close(self) -> None:
        self._stop.set()
        self._file(self.name).unlink(missing_ok=True)
        self._handle.close()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._file(self.name))


def _machine() -> str:
    """Of the running kernel: containers of one machine share it, machines of one name do not."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.is_file() else f"{uuid.getnode()}"


class SharedStudy:
    """A study as one worker uses it.

    Trials carry ``method``, ``worker`` (empty: put down), ``attempts``, ``seconds`` over all attempts, ``device``,
    ``outcome`` (what validation said) and ``reason`` (of a failure).
    """

    def __init__(self, study: optuna.Study, out: Path, worker: Worker):
        self.study, self.out, self.worker = study, out, worker

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """For what only one worker may do at a time; for seconds."""
        return locked(self.out / LOCK)

    def trials(self, method: Method | None = None) -> list[FrozenTrial]:
        """All trials that were begun, by number, of one method or both."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.user_attrs.get("method") in ((method,) if method else ("random", "bayes"))]

    @property
    def winners(self) -> dict[str, int] | None:
        """The chosen trial of each architecture, once the search is over."""
        return self.study.user_attrs.get("winners")

    def next_trial(self, method: Method, total: int) -> Trial | None:
        """A trial for this worker alone: one that its worker left, or else a new one while there are fewer than
        ``total`` of the method finished or running over all workers, and fewer than ``total`` that failed.

        Raises:
            InputError: the search is over, and more trials are asked for.
        """
        with self.lock():
            if trial := self._abandoned():
                return trial
            mine = self.trials(method)
            taken = sum(t.state in (*FINISHED, TrialState.RUNNING) for t in mine)
            failed = sum(t.state is TrialState.FAIL for t in mine)
            if taken >= total or failed >= total:
                return None
            if self.winners is not None:
                raise InputError(
                    f"{self.out}: the search is over, its winners have seen the test split; choose another --out for "
                    f"more trials, or --trials {taken} for the results"
                )
            trial = self.study.ask()
            trial.set_user_attr("worker", self.worker.name)
            trial.set_user_attr("attempts", 1)
            trial.set_user_attr("method", method)  # last: without it, the trial was never begun
            return trial

    def running(self) -> int:
        """Trials that workers run now."""
        return sum(t.state is TrialState.RUNNING and self._is_held(t) for t in self.trials())

    def put_down(self, trial: Trial) -> None:
        """Leave a trial to the next worker, which goes on with it, unless it has just ended."""
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr("worker", "")

    def finish(
        self,
        trial: Trial,
        state: TrialState,
        value: float | None = None,
        reason: str = "",
        outcome: dict[str, float] | None = None,
    ) -> None:
        """Record what became of a trial."""
        trial.set_user_attr("outcome", outcome or {})
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, value, state=state, skip_if_finished=True)

    def _is_held(self, trial: FrozenTrial) -> bool:
        name = trial.user_attrs.get("worker", "")
        return bool(name) and self.worker.is_alive(name)

    def _abandoned(self) -> Trial | None:
        """Take over the first running trial without a living worker. The lock is held."""
        for running in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._is_held(running):
                continue
            trial = Trial(self.study, running._trial_id)  # Optuna names trials by number only elsewhere
            attempts, was_put_down = running.user_attrs.get("attempts", 0), running.user_attrs.get("worker") == ""
            if "method" not in running.user_attrs:  # its worker died in next_trial, before a setting was drawn
                self.study.tell(trial, state=TrialState.FAIL)
            elif attempts >= _MOST_ATTEMPTS and not was_put_down:
                self.finish(trial, TrialState.FAIL, reason=f"its worker was killed {attempts} times in this trial")
            else:
                trial.set_user_attr("worker", self.worker.name)
                trial.set_user_attr("attempts", attempts + (not was_put_down))
                return trial
        return None
