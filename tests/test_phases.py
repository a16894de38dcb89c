"""What a command says on a terminal while it works."""

import contextlib
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

from conftest import REPOSITORY

from dino_oct.runtime import step_bar
from evaluation.inputs import steps

SCRIPT = """
import time
from dataclasses import dataclass
from tqdm import tqdm
from dino_oct.cli import run_command
from dino_oct.phases import phase

@dataclass
class Options:
    "Nothing."

def main(options):
    with phase("quick"):
        pass
    with phase("counting sheep"):
        time.sleep(3.2)
    for _ in tqdm([0], desc="one long item", disable=None, leave=False):
        time.sleep(3.2)
    print("done")

run_command(main, Options)
"""


def on_a_terminal(code: str) -> tuple[str, float]:
    """What a program writes on a terminal of 80 columns, and the longest silence in seconds after its first word."""
    inside, outside = pty.openpty()
    ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=outside, stdout=outside, stderr=outside, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    os.close(outside)
    written, longest, last = "", 0.0, None
    try:
        while True:
            if select.select([inside], [], [], 60)[0]:
                written += os.read(inside, 1 << 16).decode(errors="replace")
                now = time.monotonic()
                longest, last = max(longest, now - (last or now)), now
            elif program.poll() is not None:
                break
    except OSError:  # the program has closed the terminal
        pass
    finally:
        os.close(inside)
    assert program.wait(60) == 0, written
    return written, longest


def test_a_long_phase_and_a_long_item_show_that_time_goes_on():
    written, longest = on_a_terminal(SCRIPT)
    assert len(set(re.findall(r"counting sheep: (\d\d:\d\d)", written))) >= 2
    assert len(set(re.findall(r"one long item: .*?\[(\d\d:\d\d)<", written))) >= 3
    assert "quick" not in written
    assert longest < 3
    assert written.rstrip().endswith("done")


def test_nothing_of_it_is_in_a_file():
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (finished.stdout, finished.stderr) == ("done\n", "")


def test_what_a_training_tells_behind_its_bar_fits_80_columns(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    step_bar(10, 0, is_main=False).close()
    assert not terminal.getvalue()
    told = "loss 6.320, 123 img/s, waiting for data 10%"
    with step_bar(20_000, 12_345, is_main=True) as bar:
        bar.set_postfix_str(told)
        days_are_shown = bar.format_dict | {"elapsed": 40_000, "rate": 0.3, "ncols": 79}
    line = bar.format_meter(**days_are_shown)
    assert told in line
    assert "[7:05:16 left" in line


def test_a_step_of_a_report_is_named_while_it_is_made_and_not_when_it_is_read(tmp_path, monkeypatch):
    named = []

    @contextlib.contextmanager
    def told(name):
        named.append(name)
        yield

    monkeypatch.setattr(steps, "phase", told)
    for _ in range(2):
        assert steps.StepCache(tmp_path).of("a model").json("maps", lambda: 5) == 5
    assert named == ["maps a model"]
