"""What a command is doing, on a terminal: a line with name and time for whatever takes long and has no count."""

import contextlib
import sys
import threading
from collections.abc import Iterator

_AFTER = 1.0  # seconds: what is shorter is not told


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Show ``name`` and the seconds so far while something runs; nothing in a file or a pipe, or when it is quick."""
    from tqdm import tqdm  # here, as every command's --help imports this

    is_over = threading.Event()

    def show() -> None:
        if is_over.wait(_AFTER):
            return
        with tqdm(desc=name, bar_format="{desc}: {elapsed}", disable=None, leave=False):
            is_over.wait()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def moving_bars() -> Iterator[None]:
    """Every bar on a terminal shows the time each second, also where its next item takes long."""
    is_over = threading.Event()

    def move() -> None:
        while not is_over.wait(1):
            bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
            for bar in list(getattr(bars, "_instances", ())):
                bar.refresh()

    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
