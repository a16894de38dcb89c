"""Command lines: a dataclass in, one line of error out.

Every script declares its options as a dataclass and ends with ``run_command(main, Options)``. Exit status: 0 done,
2 wrong use or wrong input (one line on stderr), 1 anything else (a traceback).
"""

import atexit
import contextlib
import dataclasses
import difflib
import gc
import importlib
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
import yaml

from dino_oct.devices import on_device
from dino_oct.errors import InputError, Interrupted, interrupt
from dino_oct.files import explain, harden_terminal, read_yaml, write_whole
from dino_oct.limits import Setting, all_settings, check_settings
from dino_oct.phases import moving_bars, phase
from dino_oct.presets import preset_names

Options = TypeVar("Options")
_LARGEST_SETTINGS = 1 << 20  # bytes
_DEEPEST = 8  # sections in sections
_RULES = ({"─"}, {"-"})
SPINS = "2000"
"""Turns that OpenMP's threads wait awake for each other. The usual 300,000 keep a core from the very thread that is
waited for, where other work has the rest. Then steps take 1.5 to 11 times as long; alone, this costs a small network
6 to 24 % (tests/benchmarks/busy_cores.py)."""
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory|out of memory")  # of torch


def parse_options(
    options_type: type[Options], args: Sequence[str], default: Options | None = None, prog: str | None = None
) -> Options:
    """Read ``--section.key VALUE`` options into a dataclass.

    Args:
        options_type: a dataclass whose fields, nested dataclasses included, are the options.
        args: the command line without the program name.
        default: values of options that ``args`` does not name.

    Raises:
        InputError: an unknown option (the nearest valid ones are named), a value of the wrong type or outside the
            setting's limits, or settings that do not go together.
    """
    _check_names(args, all_settings(options_type))
    args = _with_values(args, all_settings(options_type))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            options = tyro.cli(
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
    check_settings(options)
    return options


def read_settings(
    options_type: type[Options], file: str | Path, default: Options | None = None, others: bool = False
) -> Options:
    """Read a YAML file of settings with the same names and checks as the command line.

    Args:
        others: leave out settings that ``options_type`` does not know instead of refusing them.

    Raises:
        InputError: as ``read_yaml``, an unknown key, or a value that ``parse_options`` refuses.
    """
    file = Path(file)
    known = {setting.name: setting for setting in all_settings(options_type)}
    mapping, values = read_mapping(file), {}
    try:
        for name, value in _flatten(mapping, known):
            if name in values:
                raise InputError(f"'{name}' is given twice")
            values[name] = value
        values = {name: value for name, value in values.items() if name in known or not others}
        args = [word for name, value in values.items() for word in _words(name, value, known)]
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    try:
        return parse_options(options_type, args, default=default)
    except InputError as error:
        message = re.sub(r"--([\w.-]+)", lambda option: _in_file(option, known), str(error))
        raise InputError(f"{file}: {message}") from None


def options_in(args: Sequence[str]) -> dict[str, str]:
    """Settings that a command line names (``optim.lr``), each with its first value; nothing is checked."""
    values: dict[str, str] = {}
    for i, word in enumerate(args):
        if word.startswith("--"):
            name, is_given, value = word[2:].partition("=")
            following = args[i + 1] if i + 1 < len(args) else ""
            values[name.replace("-", "_")] = value if is_given else following
    return values


def settings_in(file: str | Path, options_type: type) -> list[str]:
    """Names of the settings that a YAML file gives; see ``read_settings``."""
    return [name for name, _ in _flatten(read_mapping(file), {setting.name for setting in all_settings(options_type)})]


def read_mapping(file: str | Path, what: str = "settings file", presets: str = "") -> dict[str, Any]:
    """Read a YAML file of ``key: value`` that a person wrote; an empty one holds nothing.

    Args:
        what: the file is, for the reader; presets: section of the presets that are named where there is no such file.

    Raises:
        InputError: as ``files.read_yaml``; too large, a key that is no text or comes twice.
    """
    file = Path(file)
    try:
        if not file.exists():
            raise InputError(f"{file}: no such {what}; presets: {', '.join(preset_names(presets))}")
        if file.stat().st_size > _LARGEST_SETTINGS:
            raise InputError(f"{file}: {file.stat().st_size >> 20} MB are too many for a {what}")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    content = read_yaml(file, _StrictLoader)
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{file}: expected 'key: value' settings, found a {type(content).__name__}")
    return content or {}


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML whose keys are texts, each once: the second of two equal keys would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or section"
                raise InputError(f"line {line}: key {shown}: not the name of a setting; if it is one, put it in quotes")
            if key.value in lines:
                raise InputError(f"line {line}: '{key.value}' is given twice, first in line {lines[key.value]}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def write_settings(settings: Any, file: str | Path) -> None:
    """Write a dataclass as YAML that ``read_settings`` reads back equal."""
    write_whole(file, yaml.safe_dump(_as_dict(settings), sort_keys=False, width=120))


def run_command(main: Callable[[Options], Any], options_type: type[Options], room: str = "") -> None:
    """Parse the command line, call ``main(options)`` and exit with the house's status.

    Args:
        room: module with the work, whose libraries take seconds to import.
    """
    with one_line_errors():
        options = parse_options(options_type, sys.argv[1:])
        if room:
            with phase("loading"):
                importlib.import_module(room)
        with on_device(getattr(options, "device", "auto")):
            main(options)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn wrong input, a full disk, too little memory and what may not be read or written into one line on stderr and
    exit status 2, Ctrl-C into 130, SIGTERM into 143; let no print end the program, and let threads soon sleep."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch is loaded
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, _end_if_interrupted
    harden_terminal()
    try:
        with moving_bars():
            yield
    except InputError as error:
        _stop(str(error))
    except OSError as error:
        if (line := explain(error)) is None:
            raise
        _stop(line)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}")):
            raise
        _stop(f"out of memory ({str(error)[:160]}); lower the sizes of images, batches or networks")
    except KeyboardInterrupt as interruption:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + getattr(interruption, "number", signal.SIGINT))
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        atexit.unregister(_end_at_once)
        atexit.register(_end_at_once)


def _end_at_once() -> None:
    """Before the exit functions of the libraries: look for no garbage among all that they hold (1.2 of the 1.5 s from a
    report's last line to its end), and let Ctrl-C end the process without a traceback."""
    gc.freeze()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end_if_interrupted(unraisable: Any) -> None:
    """End the process where a library swallowed the interruption, as callbacks of compiled code and destructors do."""
    if not isinstance(unraisable.exc_value, Interrupted):
        return sys.__unraisablehook__(unraisable)
    print("interrupted", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(128 + unraisable.exc_value.number)


def _stop(reason: str) -> NoReturn:
    process = os.environ.get("RANK", "0")
    who = f" (process {process})" if process != "0" else ""
    print(f"error{who}: {' '.join(reason.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


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


def _flatten(settings: dict[str, Any], known: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    if prefix.count(".") > _DEEPEST:
        raise InputError(f"'{prefix}': nested too deeply")
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _flatten(value, known, f"{name}.")
        elif value is not None or not _is_section(name, known):  # a section may be empty
            yield name, value


def _words(name: str, value: Any, known: dict[str, Setting]) -> list[str]:
    """A value of a file as words of a command line."""
    if name not in known:
        example = next((key for key in known if key.startswith(f"{name}.")), None)
        reason = f"'{name}' is a section: its settings stand below it, as {example}" if example else ""
        raise InputError(reason or f"unknown setting '{name}'{_meant(name, known)}")
    setting = known[name]
    values = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, (list, tuple)) and not setting.is_list:
        raise InputError(f"{name} {value}: must be one value, not a list")
    wrong = (dict, list, tuple, set, bytes, bool, type(None)) if setting.is_text else (dict, list, tuple, set, bytes)
    for item in values:
        if isinstance(item, wrong) and not (item is None and setting.is_optional):
            raise InputError(f"{name}: {' '.join(str(item).split())[:60]} must be a text or number; put it in quotes")
        if setting.is_list and str(item).startswith("-") and not _is_number(str(item)):
            raise InputError(f"{name} {item}: must not begin with a hyphen")
    return [setting.option, *map(str, values)] if setting.is_list else [f"{setting.option}={value}"]


def _in_file(option: re.Match[str], known: Collection[str]) -> str:
    """An option's name as a file has it."""
    name = option[1].replace("-", "_")
    return name if name in known else option[0]


def _is_section(name: str, known: Collection[str]) -> bool:
    return any(key.startswith(f"{name}.") for key in known)


def _check_names(args: Sequence[str], settings: Sequence[Setting]) -> None:
    """Raise InputError for an option that there is not, or more values than one takes."""
    options = {
        name: setting for setting in settings if not setting.positional for name in (setting.option, *setting.aliases)
    }
    has_positional = any(setting.positional for setting in settings)
    if {"-h", "--help"} & set(args):
        return
    current, room = "", 0
    for word in args:
        if word.startswith("-") and not _is_number(word):
            name, is_given, _ = word.partition("=")
            current = name.replace("_", "-")
            if current.startswith("--tyro-"):
                return
            if current not in options:
                known = [setting.name for setting in settings if not setting.positional]
                raise InputError(f"{name}: no such option{_meant(current.lstrip('-').replace('-', '_'), known, '--')}")
            room = options[current].most_values - bool(is_given)
        elif room < 1 and not has_positional:
            reason = f"one value too many for {current}" if current else "options are given as --name VALUE"
            raise InputError(f"'{word}': {reason} (--help lists every option)")
        else:
            room -= 1


def _with_values(args: Sequence[str], settings: Sequence[Setting]) -> list[str]:
    """A switch that is named without a value is on: ``--dry-run`` as ``--dry-run True``."""
    switches, words = {setting.option for setting in settings if setting.hint is bool}, []
    for i, word in enumerate(args):
        words.append(word)
        if word.replace("_", "-") in switches and (i + 1 == len(args) or args[i + 1].startswith("--")):
            words.append("True")
    return words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _meant(name: str, known: Collection[str], dashes: str = "") -> str:
    """What an unknown name may stand for: the same last part in another section first, then the most alike."""
    section, _, leaf = name.rpartition(".")
    words = set(leaf.split("_"))
    leaves = {key: key.rpartition(".")[2] for key in sorted(known, key=lambda key: key.count("."))}
    alike = [key for key, last in leaves.items() if words <= set(last.split("_"))]
    of_leaf = {last: key for key, last in reversed(leaves.items())}
    close = difflib.get_close_matches(leaf, list(of_leaf), n=1)
    rules = (
        [key for key in alike if section and key.rpartition(".")[0] == section],
        [key for key, last in leaves.items() if last == leaf],
        alike,
        difflib.get_close_matches(name, list(leaves), n=1),
        [of_leaf[last] for last in close],
    )
    suggestions = [key if not dashes else dashes + key.replace("_", "-") for key in next(filter(None, rules), [])[:3]]
    if suggestions:
        return "; did you mean " + " or ".join(suggestions if dashes else [f"'{key}'" for key in suggestions]) + "?"
    return " (--help lists every option)" if dashes else f"; known settings: {', '.join(sorted(known))}"


def _one_line(boxed: str) -> str:
    """Flatten tyro's boxed message to its first statement.

    The box's title is in its upper edge, or, where the terminal has no UTF-8, in a line above a rule.
    """
    lines = [line.strip("│ \n") for line in boxed.splitlines() if not re.match(r"^[╭╰]", line)]
    parts = [list(part) for is_rule, part in itertools.groupby(lines, lambda line: set(line) in _RULES) if not is_rule]
    statement = parts[1 if "╭" not in boxed else 0 :] or [["wrong options"]]
    message = " ".join(line for line in statement[0] if line)
    return f"{message.partition(' Got errors:')[0]} (--help lists every option)"
