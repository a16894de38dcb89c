"""Kill commands at random moments, and see that nothing stays, hangs or is lost.

    python tests/campaigns/kill_runs.py --kills 40 --signals 20 --seed 0      about 10 minutes on two cores

Pretraining and supervised training (with 0 and 2 loader processes), a search and a comparison are started again and
again on a few phantoms. SIGKILL, SIGTERM and Ctrl-C (SIGINT) go to the main process or to its whole group, from the
first line that the command says to its end. Every process must be gone within 10 seconds, a command that was asked to
stop must end with one line and status 0, 130 or 143, and the same command, started again until it is done, must leave
the results of one that was never disturbed, bit for bit.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import REPOSITORY, TINY_FIT, TINY_RUN, environment

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.speed import PACE

LIMIT = 10.0  # seconds until every process is gone
_WHOLE = 300  # seconds that an undisturbed command may take
_CLOCKS = {
    *PACE,
    "ms",
    "ms_per_scan",
    "epoch_seconds",
    "seconds",
    "attempts",
    "made",
    "command",
    "commands",
    "versions",
}
_ENDS = ("done: ", "written: ", "already complete")  # said last; the signal may find Python on its way out
_OFTEN = ["--run.save-every", "2", "--run.log-every", "1"]


@dataclass
class Options:
    """Kill commands at random moments; exit status 1 if anything stayed, hung or differed."""

    kills: int = 40
    """SIGKILLs in all, in turns over the commands."""
    signals: int = 20
    """SIGTERMs and SIGINTs in all."""
    only: tuple[str, ...] = ()
    """Names of commands; unset: all."""
    seed: int = 0
    """Of the moments."""


@dataclass
class Command:
    """A command that is disturbed, and what it must leave; ``seconds`` from its first line to its end."""

    name: str
    line: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    whole: Any = None
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)


def without_clocks(value: Any) -> Any:
    """A result without what no two runs share."""
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if key not in _CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def result_of_run(part: str) -> Callable[[Path], Any]:
    """Metrics and weights that a run leaves."""

    def result(run: Path) -> Any:
        lines = [without_clocks(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
        return lines, {name: tensor.numpy().tobytes() for name, tensor in state[part].items()}

    return result


def result_of_search(out: Path) -> Any:
    """The rows of a leaderboard, with the paths of this folder left out."""
    return without_clocks(json.loads((out / "results.json").read_text().replace(str(out), "")))["rows"]


def result_of_comparison(out: Path) -> Any:
    """The numbers of a report."""
    return without_clocks(json.loads((out / "results.json").read_text().replace(str(out), "")))


def commands(folder: Path) -> list[Command]:
    """Everything that is disturbed; the comparison is of the first two commands' undisturbed runs."""
    listed = []
    for workers in ("0", "2"):
        more = ["--run.workers", workers, *_OFTEN]
        listed.append(
            Command(
                f"pretraining-{workers}",
                lambda run, m=more: ["dino_oct/train.py", *TINY_RUN, "--optim.epochs", "10", *m, "--out", str(run)],
                result_of_run("teacher"),
            )
        )
        listed.append(
            Command(
                f"supervised-{workers}",
                lambda run, m=more: [
                    "supervised/train.py", *TINY_FIT, "--optim.epochs", "8", "--optim.mixup", "0.4", *m, "--out",
                    str(run),
                ],
                result_of_run("model"),
            )
        )  # fmt: skip
    base = [f"--base.{word[2:]}" if word.startswith("--") else word for word in TINY_FIT[2:]]
    listed.append(
        Command(
            "search",
            lambda out: [
                "supervised/search.py", "--models", TINY_FIT[1], "--trials", "3", "--finish", "True", *base,
                "--space", str(folder / "space.yaml"), "--out", str(out),
            ],
            result_of_search,
        )
    )  # fmt: skip
    models = [str(folder / f"{name}-whole") for name in ("pretraining-0", "supervised-0")]
    listed.append(
        Command(
            "compare",
            lambda out: [
                "evaluation/compare.py", *models, "--k", "3", "--cases", "4", "--leaderboard", "4", "--methods",
                "attention", "gradcam", "--bootstrap", "200", "--out", str(out),
            ],
            result_of_comparison,
        )
    )  # fmt: skip
    return listed


def start(command: Command, out: Path, cache: Path) -> subprocess.Popen:
    """The command in a session of its own, what it says in one file beside its results."""
    with open(f"{out}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-u", *command.line(out)], cwd=REPOSITORY, env=environment(cache), stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            *_, fields = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, *_ = fields.split()
        if state != "Z" and int(fields.split()[3]) == leader:
            pids.append(int(stat.parent.name))
    return pids


def run_whole(command: Command, out: Path, cache: Path) -> None:
    """Run the command to its end; what it leaves is what all others must leave."""
    process = start(command, out, cache)
    while process.poll() is None and not Path(f"{out}.log").stat().st_size:
        time.sleep(0.01)
    begun = time.monotonic()
    if process.wait(timeout=_WHOLE):
        raise InputError(f"{command.name} ends with {process.returncode}: {Path(f'{out}.log').read_text()[-500:]}")
    command.seconds = time.monotonic() - begun
    command.whole = command.result(out)


def disturb(command: Command, out: Path, cache: Path, number: int, rng: random.Random) -> bool:
    """Start the command, send it a signal at a random moment, and judge how it ends; whether it met the signal."""
    log = Path(f"{out}.log")
    size = log.stat().st_size if log.exists() else 0
    process = start(command, out, cache)
    deadline = time.monotonic() + _WHOLE
    while process.poll() is None and log.stat().st_size == size:
        if time.monotonic() > deadline:
            command.faults.append(f"{out.name}: says nothing")
            break
        time.sleep(0.01)
    began = time.monotonic()
    wait = rng.random() * command.seconds
    while process.poll() is None and time.monotonic() < began + wait:
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    to_group = rng.random() < 0.5
    name = f"{signal.Signals(number).name} to the {'group' if to_group else 'main process'}"
    (os.killpg if to_group else os.kill)(process.pid, number)
    begun = time.monotonic()
    left = session(process.pid)
    while left and time.monotonic() < begun + LIMIT:
        process.poll()
        time.sleep(0.02)
        left = session(process.pid)
    where = f"{out.name}, {name} after {wait:.1f} s"
    if left:
        command.faults.append(f"{where}: {len(left)} processes are left after {LIMIT:.0f} s")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    text, status = log.read_bytes()[size:].decode(errors="replace"), process.wait()
    is_over = any(end in text for end in _ENDS)
    allowed = {-number} if number == signal.SIGKILL else {0, 128 + number}
    if status not in allowed | ({0, -number} if is_over else set()):
        command.faults.append(f"{where}: status {status}: {text[-300:]}")
    if "Traceback" in text:
        command.faults.append(f"{where}: a traceback: {text[-300:]}")
    command.done[name] += 1
    return True


def finish(command: Command, out: Path, cache: Path) -> None:
    """Let the same command end, and compare what it leaves."""
    process = start(command, out, cache)
    if process.wait(timeout=_WHOLE):
        command.faults.append(f"{out.name}: ends with {process.returncode}: {Path(f'{out}.log').read_text()[-500:]}")
    elif command.result(out) != command.whole:
        command.faults.append(f"{out.name}: another result than that of the undisturbed command")
    command.done["ended, compared"] += 1


def campaign(options: Options, folder: Path) -> list[Command]:
    """Disturb every command in turns.

    Raises:
        InputError: a command that does not run, or no such name.
    """
    rng, cache = random.Random(options.seed), folder / "cache"
    (folder / "space.yaml").write_text("optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n")
    every = commands(folder)
    selected = [command for command in every if not options.only or command.name in options.only]
    if not selected:
        raise InputError(f"--only {' '.join(options.only)}: the commands are {', '.join(c.name for c in every)}")
    needed = selected if all(c.name != "compare" for c in selected) else every
    for command in needed:
        if command in selected or command.name in ("pretraining-0", "supervised-0"):
            run_whole(command, folder / f"{command.name}-whole", cache)
            print(f"{command.name}: {command.seconds:.1f} s from its first line to its end", flush=True)
    numbers = [signal.SIGKILL] * options.kills
    numbers += [(signal.SIGTERM, signal.SIGINT)[i % 2] for i in range(options.signals)]
    rng.shuffle(numbers)
    for i, command in enumerate(selected):
        attempt = 0
        mine = numbers[i :: len(selected)]
        while mine:
            out = folder / f"{command.name}-{attempt}"
            if not disturb(command, out, cache, mine[0], rng):
                finish(command, out, cache)
                attempt += 1
                continue
            mine.pop(0)
        finish(command, out, cache)
        counts = ", ".join(f"{count} × {name}" for name, count in sorted(command.done.items()))
        print(f"{command.name}: {counts}; {len(command.faults)} faults", flush=True)
        for fault in command.faults:
            print(f"  {fault}", flush=True)
    return selected


def main(options: Options) -> None:
    """Run the campaign in a temporary folder, which stays if a fault was found."""
    folder = Path(tempfile.mkdtemp(prefix="kill_runs-"))
    outcomes = campaign(options, folder)
    total = Counter()
    for command in outcomes:
        total.update(command.done)
    faults = sum(len(command.faults) for command in outcomes)
    ended = total.pop("ended, compared")
    print(f"{sum(total.values())} signals, {ended} ended runs compared, {faults} faults")
    if faults:
        print(f"the runs are in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_command(main, Options)
