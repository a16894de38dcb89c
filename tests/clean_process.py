"""A function in a process of its own, as a command runs: everything imported, nothing run.

Tests and campaigns call thousands of commands, and a new interpreter takes 5 s to import what they use. Each process is
forked from a server that has only imported: after a backward pass, torch refuses to go on in a fork of its process.
"""

import json
import multiprocessing
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

_CONTEXT = multiprocessing.get_context("forkserver")


class Ended(NamedTuple):
    """How a process ended: its exit status (None: it hung), what its function gave, and what it printed."""

    status: int | None
    answer: Any
    said: str


def start(work: Callable[..., object], *connections: Connection) -> ForkServerProcess:
    """Start a function in the group and session of a new process, with this one's environment and folder.

    Args:
        work: any function, lambda or method; it gets the ``connections``. What it gives is not kept.
    """
    _start_server()
    process = _CONTEXT.Process(
        target=_become, args=(cloudpickle.dumps(work), dict(os.environ), os.getcwd(), connections)
    )
    process.start()
    return process


@cache
def _start_server() -> None:
    _CONTEXT.set_forkserver_preload(["imported_by_commands"])
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), paths]))
    forkserver.ensure_running()
    if paths is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = paths


def _become(work: bytes, environment: dict[str, str], folder: str, connections: tuple[Connection, ...]) -> None:
    status = 1
    try:
        os.setsid()
        import imported_by_commands  # the server has done it long ago

        os.environ.clear()
        os.environ.update({**environment, **imported_by_commands.ONE_THREAD})
        # A fork makes torch's thread pool anew at the first call, and autograd's thread may not be in that call too.
        imported_by_commands.torch.set_num_threads(1)
        os.chdir(folder)
        cloudpickle.loads(work)(*connections)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def in_a_process(work: Callable[[], Any], limit: float = 90) -> Ended:
    """Run a function as a command does, for so many seconds at most; what it gives must be JSON."""
    text_end, says = _CONTEXT.Pipe(duplex=False)  # no files: a test may take the disk away
    answer, answers = _CONTEXT.Pipe(duplex=False)

    def command(says: Connection, answers: Connection) -> None:
        from dino_oct.cli import one_line_errors

        for number in (1, 2):
            os.dup2(says.fileno(), number)
        sys.stdout, sys.stderr = (
            os.fdopen(os.dup(n), "w", buffering=1, encoding="utf-8", errors="backslashreplace") for n in (1, 2)
        )
        with one_line_errors():
            os.write(answers.fileno(), json.dumps(work()).encode())

    process = start(command, says, answers)
    says.close()
    answers.close()
    got = {text_end.fileno(): b"", answer.fileno(): b""}
    open_ends, until = set(got), time.monotonic() + limit
    while open_ends and (left := until - time.monotonic()) > 0:
        for end in select.select(list(open_ends), [], [], left)[0]:
            part = os.read(end, 1 << 16)
            got[end] += part
            if not part:
                open_ends.discard(end)
    if open_ends:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    given = got[answer.fileno()]
    text = got[text_end.fileno()].decode(errors="replace")
    return Ended(None if open_ends else process.exitcode, json.loads(given) if given else None, text)
