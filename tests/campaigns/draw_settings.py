"""Random values for every setting of every command: exit 0 or 2, one line that names the setting, never a traceback.

    python tests/campaigns/draw_settings.py --draws 2000 --seed 0

Commands are the scripts of the three packages with a command line, settings those of their options classes, so a new
one of either is drawn without being listed. Each draw changes one or two settings of a tiny command line that works, on
the command line or in a settings file. What parsing refuses must be one line that names the setting; what it accepts
is run as a user runs it, in a process of its own, under limits of time and memory.
"""

import ast
import contextlib
import dataclasses
import importlib
import math
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))
from clean_process import start  # noqa: E402

from dino_oct.cli import one_line_errors, parse_options  # noqa: E402
from dino_oct.errors import InputError  # noqa: E402
from dino_oct.limits import Items, Range, Setting, all_settings  # noqa: E402

PACKAGES = ("dino_oct", "supervised", "evaluation")
MEMORY = 6 << 30  # bytes that a run may take
GRACE = 10  # seconds from SIGTERM, or from its end, to the end of every process

_PHANTOMS = ["patients", "12", "scans-per-patient", "2", "size", "32", "32"]
_NETWORK = ["patch_size=8", "img_size=32", "embed_dim=16", "depth=1", "num_heads=1"]
_EVALUATION = ["--model", "RUN", "--bootstrap", "20"]
_MAPS = ["--model", "FIT", "--bootstrap", "20", "--n", "1"]


def _phantoms(prefix: str) -> list[str]:
    return [f"--{prefix}{word}" if word[0].isalpha() else word for word in _PHANTOMS]


_PRETRAINING = [
    *("--init", "random:vit_tiny_patch16_224", *_phantoms("phantom."), "--run.precision", "fp32", "--run.workers", "0"),
    *("--optim.epochs", "1", "--optim.batch-size", "4", "--optim.warmup-epochs", "0", "--model.args", *_NETWORK),
    *("--model.out-dim", "16", "--model.hidden-dim", "16", "--model.bottleneck-dim", "8", "--model.init", "dino"),
    *("--augment.global-size", "16", "--augment.local-size", "8", "--augment.n-local", "1"),
    *("--monitor.image-size", "16", "16", "--monitor.attention-size", "16", "--monitor.k", "3"),
    *("--monitor.attention-scans", "1", "--out", "OUT"),
]
_SUPERVISED = [
    *(*_phantoms("phantom."), "--run.precision", "fp32", "--run.workers", "0", "--network.args", *_NETWORK),
    *("--network.image-size", "16", "--optim.epochs", "1", "--optim.batch-size", "4"),
]
# A command line of each script that works; RUN, FIT, SCANS, SCAN, VOLUME and OUT stand for paths. Scripts that are not
# here are given a run.
BASES = {
    "dino_oct/train.py": _PRETRAINING,
    "dino_oct/doctor.py": [],
    "dino_oct/data/phantom.py": ["--out", "OUT", *_phantoms("")],
    "dino_oct/data/audit.py": ["SCANS"],
    "dino_oct/data/export.py": ["VOLUME", "--out", "OUT"],
    "dino_oct/data/table.py": ["SCANS", "--out", "OUT/scans.csv"],
    "supervised/train.py": ["--model", "random:vit_tiny_patch16_224", *_SUPERVISED, "--out", "OUT"],
    "supervised/search.py": [
        *("--models", "random:vit_tiny_patch16_224", "--trials", "1", "--out", "OUT"),
        *(f"--base.{word[2:]}" if word.startswith("--") else word for word in _SUPERVISED),
    ],
    "supervised/zoo.py": ["--filter", "ResNet18"],
    "evaluation/knn.py": [*_EVALUATION, "--k", "3"],
    "evaluation/linear.py": [*_EVALUATION, "--n-c", "2", "--draws", "1", "--fractions", "1", "--epochs", "2"],
    "evaluation/embedding_map.py": [*_EVALUATION, "--seeds", "1", "--k", "2", "--neighbours", "3", "--frames", "2"],
    "evaluation/attention.py": [*_EVALUATION, "--n", "1"],
    "evaluation/gradcam.py": _MAPS,
    "evaluation/occlusion.py": [*_MAPS, "--window", "0.5", "--stride", "1"],
    "evaluation/relevance.py": _MAPS,
    "evaluation/side_by_side.py": [*_MAPS, "--methods", "gradcam"],
    "evaluation/localization.py": [
        *(*_MAPS, "--methods", "attention", "gradcam", "--faithfulness", "1", "--sanity", "1", "--pages", "1"),
        *("--stride", "1"),
    ],
    "evaluation/embed.py": ["RUN", "SCANS", "--out", "OUT.npz"],
    "evaluation/export_model.py": ["RUN", "--format", "timm", "--out", "OUT"],
    "evaluation/predict.py": ["RUN", "phantom", *_phantoms("phantom."), "--out", "OUT"],
    "evaluation/compare.py": [
        *("RUN", "--bootstrap", "20", "--k", "3", "--methods", "attention", "--leaderboard", "2", "--cases", "1"),
        *("--out", "OUT"),
    ],
}
# A value above these takes long, or a larger machine, and proves no more: it is parsed and checked, not run.
HEAVY = {
    **{"epochs": 3, "warmup_teacher_temperature_epochs": 1000, "patients": 16, "scans_per_patient": 4, "trials": 2},
    **{"slices": 8, "visits": 3},
    **{"bootstrap": 2000, "seeds": 3, "draws": 3, "n_c": 20, "frames": 4, "n": 8, "workers": 2, "faithfulness": 4},
    **{"sanity": 4, "pages": 4, "leaderboard": 8, "cases": 8, "size": 512, "global_size": 128, "local_size": 128},
    **{"n_local": 8, "image_size": 128, "attention_size": 256, "attention_scans": 8, "out_dim": 65536},
    **{"hidden_dim": 2048, "bottleneck_dim": 2048},
}
# Where a small value is what takes long.
LIGHT = {"stride": 0.1, "window": 0.1}

_NUMBERS = """
    0 -0.0 -1 1 2 3 7 0.5 1.5 nan -nan inf -inf 1e30 -1e30 1e-30 1e-320 1e400 2147483648 -2147483649 1_0 0x10
    9223372036854775808 ٣ 1,5 1e -- None True fast auto [1,2]
"""
_TEXTS = """
    None True 0 3 -3 nan fast é漢字 ' " {} [ %s $HOME * - -- --seed ~ . .. : nowhere no/where/at/all runs/none
    /dev/null /dev/null/x JUNK JUNK/x SCANS SCAN OUT RUN FIT RUN/config.yaml RUN/checkpoints/last.pt configs
    RUN/checkpoints/start RUN/export RUN/export/backbone.safetensors configs/none.yaml none.pth phantom auto never true
    full head predicted CNV resnet5O timm: timm:nothing timm:resnet10t@nowhere.pth timm:resnet10t@JUNK random:
    random:resnet10t random:resnet18@x random:vit_tiny_patch16_224 https:// https://127.0.0.1:9/x.pth sqlite://
    sqlite:///OUT.db mysql://a:b@127.0.0.1:9/x
"""
_ARGUMENTS = """
    depth=-1 depth=0 depth=1.5 depth=[1] depth=[ depth= =3 depth foo=1 depth=!!int embed_dim=7 embed_dim=0 embed_dim=[1]
    embed_dim=x num_heads=0 num_heads=3 num_heads=-1 patch_size=0 patch_size=5 patch_size=64 patch_size=[8,4] img_size=0
    img_size=-8 img_size=x img_size=[16] img_size=[16,32] mlp_ratio=-1 mlp_ratio=.nan mlp_ratio=0 drop_rate=2 in_chans=0
    in_chans=1 in_chans=2 global_pool= global_pool=avg global_pool=x class_token=False init_values=x init_values=.inf
    reg_tokens=-1 reg_tokens=2 pos_embed=none act_layer=foo norm_layer=x qkv_bias=maybe weight_init=foo num_classes=3
    pretrained_cfg=x é=1 depth=2 checkpoint_path=x dynamic_img_size=False fc_norm=True patch_drop_rate=1 pre_norm=True
    proj_drop_rate=.5 no_embed_class=True drop_path_rate=.5 embed_dim=24 depth=1000000000 embed_dim=1048576
"""
ODD_NUMBERS = [*_NUMBERS.split(), str(10**25), "9" * 5000, "", " "]
ODD_TEXTS = [*_TEXTS.split(), "", " ", "a b", "a\nb", "\t", "x" * 200, "x" * 300, "x/" * 3000, "a\udcffb"]
MODEL_ARGUMENTS = [*_ARGUMENTS.split(), "depth={a: 1}", "depth=!!int a", "depth=2 3"]


@dataclass(frozen=True)
class Command:
    """A script with a command line: its settings, and how it reads them."""

    script: str
    kind: type
    parse: Callable[[Sequence[str]], Any]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All of them, sections included."""
        return all_settings(self.kind)

    @property
    def base(self) -> list[str]:
        """A tiny command line that works."""
        return BASES.get(self.script, ["--model", "RUN"])


def commands() -> list[Command]:
    """Every script of the packages that reads a command line."""
    listed = []
    for file in sorted(file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")):
        tree = ast.parse(file.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        reads = {call.func.id: call for call in calls}
        if "__main__" not in file.read_text() or not {"run_command", "load_config", "load_options"} & reads.keys():
            continue
        script = file.relative_to(REPOSITORY)
        module = importlib.import_module(".".join(script.with_suffix("").parts))
        if "run_command" in reads:
            kind = getattr(module, reads["run_command"].args[1].id)
            parse = lambda args, kind=kind: parse_options(kind, args)  # noqa: E731
        else:
            parse = next(getattr(module, name) for name in ("load_config", "load_options") if name in reads)
            kind = typing.get_type_hints(parse)["return"]
        listed.append(Command(script.as_posix(), kind, parse))
    return listed


# ---- draws -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """A command line with one or two settings changed.

    Attributes:
        settings: those that were changed, with their values as words. in_file: given in a settings file.
    """

    command: Command
    settings: tuple[tuple[Setting, tuple[str, ...]], ...]
    in_file: bool = False

    def args(self, places: dict[str, str]) -> list[str]:
        """The command line; a settings file is written where the draw has one."""

        def filled(word: str) -> str:
            for name, place in places.items():
                word = word.replace(name, place)
            return word

        changed = {setting.name for setting, _ in self.settings}
        args, keep = [], True
        options = {setting.option: setting.name for setting in self.command.settings}
        base = self.command.base
        begins = next((i for i, word in enumerate(base) if word.startswith("--")), len(base))
        # All but the last of the settings without a name take one word.
        unnamed = [setting.name for setting in self.command.settings if setting.positional]
        first = {name: base[i : begins if i == len(unnamed) - 1 else i + 1] for i, name in enumerate(unnamed)}
        drawn = {setting.name: words for setting, words in self.settings if setting.positional}
        for name in unnamed:
            args += map(filled, drawn.get(name, first[name]))
        for word in base[begins:]:
            keep = options[word] not in changed if word.startswith("--") else keep
            args += [filled(word)] * keep
        if self.in_file:
            file = Path(places["OUT"]).with_name("drawn.yaml")
            prefix = "base." if any(name.startswith("base.") for name in changed) else ""
            tree: dict[str, Any] = {}
            for setting, words in self.settings:
                *sections, leaf = setting.name.removeprefix(prefix).split(".")
                section = tree
                for name in sections:
                    section = section.setdefault(name, {})
                values = [_as_yaml(filled(word)) for word in words]
                section[leaf] = values if setting.is_list or len(values) != 1 else values[0]
            file.write_text(yaml.safe_dump(tree))
            return [*args, f"--{prefix}config", str(file)]
        for setting, words in self.settings:
            words = [filled(word) for word in words]
            if setting.positional:
                continue
            if len(words) == 1 and not setting.is_list:
                args.append(f"{setting.option}={words[0]}")
            else:
                args += [setting.option, *words]
        return args

    def __str__(self) -> str:
        changed = " ".join(f"{setting.option} {' '.join(map(repr, words))[:120]}" for setting, words in self.settings)
        return f"{self.command.script} {changed}{' (in a file)' if self.in_file else ''}"


def draw(command: Command, setting: Setting, rng: np.random.Generator) -> Draw:
    """A setting of a command with random values, now and then with a second one."""
    changed = {setting.name: (setting, _values(setting, rng))}
    if rng.random() < 0.25:
        second = command.settings[rng.integers(len(command.settings))]
        changed.setdefault(second.name, (second, _values(second, rng)))
    files = [item.name for item in command.settings if item.name.endswith("config")]
    prefix = files[0].removesuffix("config") if files else None
    fits = prefix is not None and all(name.startswith(prefix) and name not in files for name in changed)
    in_file = fits and rng.random() < 0.3
    return Draw(command, tuple(changed.values()), in_file)


def draws(n: int, seed: int) -> Iterator[Draw]:
    """``n`` draws, in turns through all settings of all commands."""
    rng = np.random.default_rng(seed)
    pairs = [(command, setting) for command in commands() for setting in command.settings]
    order: list[int] = []
    for _ in range(n):
        order = order or rng.permutation(len(pairs)).tolist()
        command, setting = pairs[order.pop()]
        yield draw(command, setting, rng)


def _values(setting: Setting, rng: np.random.Generator) -> tuple[str, ...]:
    """Words for a setting: plausible ones, the edges of its limits, odd ones, and lists of wrong lengths."""
    length = 1
    if setting.is_list:
        fixed = setting.most_values
        lengths = [1, 2, 3] if math.isinf(fixed) else [int(fixed)] * 6
        length = int(rng.choice([*lengths, 0, 1, 3, 40]))
    words = [_word(setting, rng) for _ in range(length)]
    if length > 1 and rng.random() < 0.2:
        words = [words[0]] * length
    return tuple(words)


def _word(setting: Setting, rng: np.random.Generator) -> str:
    def one_of(words: Sequence[Any]) -> str:
        return str(words[rng.integers(len(words))])

    is_odd = rng.random() < 0.4
    if setting.name.endswith(".args"):
        return one_of(MODEL_ARGUMENTS if rng.random() < 0.9 else ODD_TEXTS)
    if words := _choices(setting.hint):
        return one_of(ODD_TEXTS if rng.random() < 0.2 else words)
    if setting.is_text:
        return one_of(ODD_TEXTS)
    if is_odd:
        return one_of(ODD_NUMBERS)
    limits = next((limit for limit in setting.limits if isinstance(limit, Range)), Range())
    is_whole = setting.number is int
    low, high = max(limits.least, limits.above, -1e3), min(limits.most, limits.below, 1e12)
    if rng.random() < 0.4:
        edges = [low, high, low - 1, high + 1, low + 1, high - 1, *([] if is_whole else [low + 1e-9, high - 1e-9])]
        return one_of([int(edge) if is_whole else edge for edge in edges])
    if is_whole:
        return str(int(low + min(rng.integers(12) ** rng.integers(1, 3), high - low)))
    return f"{low + (min(high, 2.0) - low) * rng.random():.4g}"


def _choices(hint: Any) -> tuple[Any, ...]:
    if hint is bool:
        return (True, False)
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    parts = [_choices(part) for part in typing.get_args(hint) if part not in (Ellipsis, type(None))]
    return sum(parts, ()) if all(parts) else ()


def _as_yaml(word: str) -> Any:
    """A word as a careless author of a file may write it."""
    try:
        return yaml.safe_load(word)
    except Exception:
        return word


# ---- judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a draw.

    Attributes:
        status: exit status, negative for a signal. text: what it wrote on stderr. seconds: until it ended.
        fault: what is wrong; empty where nothing is.
    """

    status: int | None
    text: str
    seconds: float = 0.0
    fault: str = ""


def refusal(drawn: Draw, places: dict[str, str]) -> str | None:
    """Why parsing refuses a draw, in the words of the user; None where it accepts it.

    Raises:
        AssertionError: not one line, or one that names neither setting nor value.
    """
    try:
        drawn.command.parse(drawn.args(places))
    except InputError as error:
        if is_told(drawn, str(error), places):
            return str(error)
        raise AssertionError(f"{drawn}: {error}") from None
    return None


def is_told(drawn: Draw, text: str, places: dict[str, str] | None = None) -> bool:
    """Whether one line names a changed setting or its value, or in full another setting that does not go with it."""
    words = [(places or {}).get(word, word) for _, words in drawn.settings for word in words]
    names = [setting.name.rpartition(".")[2] for setting, _ in drawn.settings]
    names += [name.removesuffix("s") for name in names]
    names += [setting.name for setting in drawn.command.settings if "." in setting.name]
    names += [word.partition("=")[0] for word in words if "=" in word[1:]]  # of an argument of the model
    paths = [str(path) for word in words for path in (Path(word), Path(word).parent)]
    values = [re.split("[/@]", path)[-1] or path for path in (*words, *paths) if path != "."]
    values += [word.partition("@")[0].removeprefix("timm:") for word in words if word.startswith("timm:")]
    values = [repr(" ".join(value.split()))[1:41].rstrip("'\"") for value in values if value.strip()]
    plain = re.sub("[- ]", "_", text)
    told = any(_has(plain, f"(_|\\b){re.escape(name)}(_|\\b)") for name in names)
    told |= any(_has(text, rf"(?<!\w){re.escape(value)}" + ("" if len(value) == 40 else r"(?!\w)")) for value in values)
    told |= any(text.removeprefix("error: ").startswith(f"{word}: ") for word in words)
    # Words that begin with a hyphen are options to the parser.
    return len(text.splitlines()) == 1 and (told or any(word.startswith("-") for word in words))


def _has(text: str, pattern: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def is_heavy(settings: Any) -> bool:
    """Whether accepted settings ask for more than a campaign has time for."""
    for setting in all_settings(type(settings)):
        value: Any = settings
        for part in setting.name.split("."):
            value = getattr(value, part)
        leaf = setting.name.rpartition(".")[2]
        numbers = [x for x in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(x, (int, float))]
        if any(x > HEAVY.get(leaf, math.inf) or x < LIGHT.get(leaf, -math.inf) for x in numbers):
            return True
    return False


# ---- running ---------------------------------------------------------------------------------------------------------


class Sandbox:
    """A folder in which commands run, with a pretraining, a supervised run and scans; each run finds it as new."""

    def __init__(self, root: Path, limit: float = 120):
        self.root, self.limit = root, limit
        self.box, self.made = root / "outer" / "inner", root / "made"
        names = {
            "RUN": "run",
            "FIT": "fit",
            "SCANS": "scans",
            "JUNK": "junk",
            "OUT": "inner/out",
            "VOLUME": "stack.npy",
        }
        self.places = {name: str(self.box.parent / place) for name, place in names.items()}
        self.all = {command.script: command for command in commands()}

    def prepare(self) -> None:
        """Make the phantoms, the runs and the scans.

        Raises:
            RuntimeError: a command line that should work does not.
        """
        self.made.mkdir()
        (self.made / "junk").write_bytes(bytes(range(256)) * 40)
        np.save(self.made / "stack.npy", np.arange(2 * 40 * 50, dtype=np.uint16).reshape(2, 40, 50))
        for script, name in (
            ("dino_oct/train.py", "RUN"),
            ("supervised/train.py", "FIT"),
            ("dino_oct/data/phantom.py", "SCANS"),
        ):
            base = Draw(self.all[script], ()).args(
                {**self.places, "OUT": str(self.made / Path(self.places[name]).name)}
            )
            outcome = self.run(script, base)
            if outcome.status != 0:
                raise RuntimeError(f"{script} {' '.join(base)}: status {outcome.status}: {outcome.text}")
        scan = next((self.made / "scans" / "test").rglob("*.jpeg")).relative_to(self.made)
        self.places = {"SCANS": self.places["SCANS"], "SCAN": str(self.box.parent / scan), **self.places}

    def run(self, script: str, args: Sequence[str]) -> Outcome:
        """Run a script in a process of its own, as ``python SCRIPT ARGS`` does."""
        self._furnish(args)
        begun = time.monotonic()
        process = start(lambda: self._become(script, args))
        status = self._wait(process, begun + self.limit)
        seconds, fault = time.monotonic() - begun, ""
        if status is None:
            os.killpg(process.pid, signal.SIGTERM)
            status = self._wait(process, time.monotonic() + GRACE)
            fault = f"took more than {self.limit:g} s" + (
                "" if status is not None else f", and {GRACE} s after SIGTERM"
            )
        deadline = time.monotonic() + GRACE
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:  # a loader process notices within a moment that its trainer has ended
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            fault = fault or f"left processes behind for {GRACE} s"
        process.join()
        text = (self.root / "stderr").read_text(errors="replace")
        return Outcome(status, text, seconds, fault)

    def _furnish(self, args: Sequence[str]) -> None:
        """Give the box what a command line names, as it was made: an earlier command may have written over it."""
        drawn = self.box / "drawn.yaml"
        content = drawn.read_bytes() if str(drawn) in args else b""
        shutil.rmtree(self.box.parent, ignore_errors=True)
        self.box.mkdir(parents=True)
        if content:
            drawn.write_bytes(content)
        for item in self.made.iterdir():
            place = self.box.parent / item.name
            if any(str(place) in word for word in (*args, content.decode())):
                (shutil.copytree if item.is_dir() else shutil.copy2)(item, place)

    def _become(self, script: str, args: Sequence[str]) -> None:
        """In the process: run the script."""
        os.chdir(self.box)
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        os.environ["DINO_OCT_CACHE"] = str(self.root / "cache")
        os.environ |= {"WANDB_MODE": "offline", "COMET_START_ONLINE": "0"}  # trackers, where they are installed
        for number, target in ((0, "/dev/null"), (1, self.root / "stdout"), (2, self.root / "stderr")):
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(target, mode), number)
        pages = int(Path("/proc/self/statm").read_text().split()[0])  # libraries take gigabytes of addresses
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww")
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
        sys.argv = [str(REPOSITORY / script), *args]
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()

    @staticmethod
    def _wait(process: BaseProcess, deadline: float) -> int | None:
        while process.exitcode is None:
            now = time.monotonic()
            if now > deadline:
                return None
            process.join(0.05)
            deadline += max(time.monotonic() - now - 1, 0)  # this process was stopped itself, or had no processor
        return process.exitcode

    def judge(self, drawn: Draw) -> tuple[str, Outcome]:
        """Run a draw: whether it is ``done``, ``refused``, ``checked`` (too heavy to run) or a ``fault``, and why."""
        shutil.rmtree(self.box.parent, ignore_errors=True)
        self.box.mkdir(parents=True)
        args = drawn.args(self.places)
        self._furnish(args)
        before = os.getcwd()
        os.chdir(self.box)
        try:
            told = refusal(drawn, self.places)
            if told is None and is_heavy(drawn.command.parse(args)):
                return "checked", Outcome(None, "")
        except SystemExit:  # a word that asks for help
            pass
        except BaseException as error:
            return "fault", Outcome(None, traceback.format_exc(), fault=f"parsing: {type(error).__name__}")
        finally:
            os.chdir(before)
        outcome = self.run(drawn.command.script, args)
        lines = [line for line in outcome.text.splitlines() if line.startswith("error")]
        fault = outcome.fault
        if not fault and outcome.status not in (0, 2):
            fault = f"status {outcome.status}"
        elif not fault and "Traceback" in outcome.text:
            fault = "a traceback"
        elif not fault and outcome.status == 2 and len(lines) != 1:
            fault = f"{len(lines)} lines of error"
        elif not fault and outcome.status == 2 and not is_told(drawn, lines[0], self.places):
            fault = "neither setting nor value is named"
        if fault:
            return "fault", dataclasses.replace(outcome, fault=fault)
        return "done" if outcome.status == 0 else "refused", outcome


@dataclass
class Options:
    """Draw settings and run what is accepted."""

    draws: Annotated[int, Range(1, 1_000_000)] = 2000
    """How many."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Another seed, other draws."""
    first: Annotated[int, Range(0, 1_000_000)] = 0
    """Draws to pass over, to go on where a campaign was ended."""
    limit: Annotated[float, Range(above=0)] = 120.0
    """Seconds that a run may take."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SCRIPT"), Items()] = ()
    """Scripts; unset: all."""


def main(options: Options) -> int:
    """Print each fault and the counts; returns the number of faults."""
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder), options.limit)
        sandbox.prepare()
        print(f"prepared in {time.monotonic() - begun:.0f} s", flush=True)
        for number, drawn in enumerate(draws(options.draws, options.seed)):
            if number < options.first or (options.only and drawn.command.script not in options.only):
                continue
            verdict, outcome = sandbox.judge(drawn)
            counts[verdict] += 1
            if verdict == "fault":
                print(
                    f"{number}: {drawn}: {outcome.fault}\n  " + outcome.text.strip()[-700:].replace("\n", "\n  "),
                    flush=True,
                )
            elif outcome.seconds > 15:
                print(f"{number}: {drawn}: {outcome.seconds:.0f} s", flush=True)
    told = {"done": "exit 0", "refused": "exit 2", "checked": "accepted, too heavy to run", "fault": "faults"}
    print(f"{counts.total()} draws: " + ", ".join(f"{counts[name]} {text}" for name, text in told.items()))
    print(f"{time.monotonic() - begun:.0f} s")
    return counts["fault"]


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(min(main(parse_options(Options, sys.argv[1:])), 1))
