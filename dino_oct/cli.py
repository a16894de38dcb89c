"""Command lines: a dataclass in, one line of error out.

Every script declares its options as a dataclass and ends with ``run_command(main, Options)``. Exit status: 0 done,
2 wrong use or wrong input (one line on stderr), 1 anything else (a traceback).
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from dino_oct.errors import InputError, interrupt
from dino_oct.files import explain, harden_terminal, read_text, write_whole

Options = TypeVar("Options")


def parse_options(
    options_type: type[Options], args: Sequence[str], default: Options | None = None, prog: str | None = None
) -> Options:
    """Read ``--section.key VALUE`` options into a dataclass.

    Args:
        options_type: a dataclass whose fields, nested dataclasses included, are the options.
        args: the command line without the program name.
        default: values of options that ``args`` does not name.

    Raises:
        InputError: an unknown option (the nearest valid one is named) or a value of the wrong type.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                options_type,
                args=list(args),
                default=default,
                prog=prog,
                description=options_type.__doc__,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise InputError(_one_line(printed.getvalue())) from None


def read_settings(
    options_type: type[Options], file: str | Path, default: Options | None = None, others: bool = False
) -> Options:
    """Read a YAML file of settings with the same names and checks as the command line.

    Args:
        others: leave out settings that ``options_type`` does not know instead of refusing them.

    Raises:
        InputError: no such file, not YAML, an unknown key or a value of the wrong type.
    """
    file = Path(file)
    if not file.is_file():
        presets = sorted(str(path) for path in Path("configs").glob("*.yaml"))
        raise InputError(f"{file}: no such settings file" + (f"; presets: {', '.join(presets)}" if presets else ""))
    settings = read_yaml(file) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{file}: expected 'key: value' settings, found a {type(settings).__name__}")
    known = set(_leaves(default if default is not None else options_type()))
    args: list[str] = []
    for name, value in _flatten(settings, known):
        if name not in known and others:
            continue
        if name not in known:
            raise InputError(f"{file}: unknown setting '{name}'{_nearest(name, known)}")
        args += ["--" + name.replace("_", "-"), *_words(value)]
    try:
        return parse_options(options_type, args, default=default)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def read_yaml(file: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: as ``read_text``, or not YAML.
    """
    try:
        return yaml.safe_load(read_text(file))
    except InputError:
        raise
    except Exception as error:  # its constructors raise anything for values that there are not, as a 13th month
        raise InputError(f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}") from None


def write_settings(settings: Any, file: str | Path) -> None:
    """Write a dataclass as YAML that ``read_settings`` reads back equal."""
    write_whole(file, yaml.safe_dump(_as_dict(settings), sort_keys=False, width=120))


def run_command(main: Callable[[Options], Any], options_type: type[Options]) -> None:
    """Parse the command line, call ``main(options)`` and exit with the house's status."""
    with one_line_errors():
        main(parse_options(options_type, sys.argv[1:]))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn wrong input, a full disk and what may not be read or written into one line on stderr and exit status 2,
    Ctrl-C into 130, SIGTERM into 143; let no print end the program."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    harden_terminal()
    try:
        yield
    except (InputError, OSError) as error:
        line = explain(error) if isinstance(error, OSError) else str(error)
        if line is None:
            raise
        process = os.environ.get("RANK", "0")
        print(f"error{f' (process {process})' if process != '0' else ''}: {line}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + getattr(interruption, "number", signal.SIGINT))


def _as_dict(settings: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {
        field.name: _as_dict(value) if dataclasses.is_dataclass(value) else plain(value)
        for field in dataclasses.fields(settings)
        for value in [getattr(settings, field.name)]
    }


def _leaves(settings: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _flatten(settings: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _flatten(value, known, f"{name}.")
        else:
            yield name, value


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]


def _nearest(name: str, known: set[str]) -> str:
    # Compare whole names first, then the last part alone: `augment.size` should find `augment.global_size`.
    by_key = {key.rsplit(".", 1)[-1]: key for key in sorted(known)}
    match = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    match = match or [by_key[k] for k in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(by_key), n=1)]
    return f"; did you mean '{match[0]}'?" if match else f"; known settings: {', '.join(sorted(known))}"


def _one_line(boxed: str) -> str:
    """Flatten tyro's boxed message to its first statement and, for an unknown option, the nearest one."""
    lines = [line.strip("│ \n") for line in boxed.splitlines() if not re.match(r"^[╭╰]", line)]
    parts: list[list[str]] = [[]]
    for line in lines:
        if line and set(line) <= {"─"}:
            parts.append([])
        elif line:
            parts[-1].append(line)
    message = " ".join(parts[0]) or "wrong options"
    suggestions = re.findall(r"(--[\w.-]+)", " ".join(parts[1])) if len(parts) > 1 else []
    if message.startswith("Unrecognized") and suggestions:
        message += f"; did you mean {suggestions[0]}?"
    return message + " (--help lists every option)"
