"""What a command is doing, on a terminal: a line with name and time for whatever takes long and has no count."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

_AFTER = 1.0  # seconds: what is shorter is not told


@contextlib.contextmanager
def phase(name: str, is_shown: bool = True) -> Iterator[None]:
    """Show ``name`` and the seconds so far while something runs; nothing in a file or a pipe, or when it is quick.

    Args:
        is_shown: False where another process tells it.
    """
    from tqdm import tqdm  # here, as every command's --help imports this

    def show(is_over: threading.Event) -> None:
        if is_over.wait(_AFTER):
            return
        with tqdm(desc=name, bar_format="{desc}: {elapsed}", disable=None, leave=False):
            is_over.wait()

    with _beside(show) if is_shown else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def moving_bars() -> Iterator[None]:
    """Every bar on a terminal shows the time each second, also where its next item takes long."""

    def move(is_over: threading.Event) -> None:
        while not is_over.wait(1):
            bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
            for bar in list(getattr(bars, "_instances", ())):
                bar.refresh()

    is_seen = sys.stderr is not None and sys.stderr.isatty()
    with _beside(move) if is_seen else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``work`` in a thread of its own until the event that it is given is set, at the end."""
    is_over = threading.Event()
    thread = threading.Thread(target=work, args=(is_over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
