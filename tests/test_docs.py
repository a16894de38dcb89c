"""What the documents name exists: links, anchors, paths, commands, and every option of a command line."""

import argparse
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from campaigns.draw_settings import PACKAGES, commands
from conftest import REPOSITORY
from test_house import FLOORS

from dino_oct.cli import parse_options
from dino_oct.command import COMMANDS
from dino_oct.errors import InputError
from dino_oct.limits import all_settings

DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted((REPOSITORY / "docs").glob("*.md"))
TOP = (*PACKAGES, "configs", "docs", "launch", "tests")
PASSED_ON = {  # shell script → the command that gets its options; $TRAINER goes before
    "launch/quickstart.sh": "dino_oct/train.py",
    "launch/torchrun.sh": "dino_oct/train.py",
    "launch/slurm.sh": "dino_oct/train.py",
    "launch/compare_phantoms.sh": "evaluation/compare.py",
}
# Of others, whose options are not checked here.
PROGRAMS = {"tensorboard", "pip", "ruff", "chmod", "git", "cd", ".", "export"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"(?:\[[^\]]*\]\(|<img src=\")([^)\s\"]+)")


# ---- reading ---------------------------------------------------------------------------------------------------------


def without_fences(text: str) -> str:
    return _FENCE.sub("", text)


def codes(text: str) -> list[str]:
    """What stands between backticks, in one line each."""
    return [" ".join(code.split()) for code in _CODE.findall(without_fences(text))]


def is_command(code: str) -> bool:
    return code.startswith(("python ", "bash ", "sbatch ", "accelerate launch ", "dino-oct "))


def shell_lines(text: str) -> Iterator[str]:
    """Command lines of code blocks for a shell and of code between backticks."""
    for language, block in _FENCE.findall(text):
        if language in ("bash", "sh", "console"):
            yield from filter(None, (line.strip() for line in block.replace("\\\n", " ").splitlines()))
    yield from filter(is_command, codes(text))


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_fences(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- commands --------------------------------------------------------------------------------------------------------


@functools.cache
def readers() -> dict[str, Callable[[Sequence[str]], Any]]:
    """Script of the packages → how it reads its options."""
    return {command.script: command.parse for command in commands()}


def reader(script: str) -> Callable[[Sequence[str]], Any] | None:
    """How a script reads its options; None where it is no script of the repository."""
    if script in readers() or not re.fullmatch(r"tests/(benchmarks|campaigns)/\w+\.py", script):
        return readers().get(script)
    file = REPOSITORY / script
    if not file.is_file():
        return None
    sys.path.insert(0, str(file.parent))  # benchmarks import each other by name, as scripts do
    try:
        options_type = importlib.import_module(file.stem).Options
    finally:
        sys.path.remove(str(file.parent))
    return lambda args: parse_options(options_type, args)


@functools.cache
def every_option() -> frozenset[str]:
    """Every option of every command, and of ``accelerate launch``."""
    settings = [setting for command in commands() for setting in command.settings]
    for file in (REPOSITORY / "tests" / "campaigns").glob("*.py"):
        settings += all_settings(importlib.import_module(f"campaigns.{file.stem}").Options)
    own = {name for setting in settings for name in (setting.option, *setting.aliases)}
    return frozenset({"--help", *own, *launch_command_parser()._option_string_actions})


def fault_of_options(script: str, args: Sequence[str]) -> str:
    """Why a script refuses these words; empty where it takes them."""
    parse = reader(script)
    if parse is None:
        return f"{script}: no such command"
    try:
        parse(args)
    except InputError as error:
        return f"{script}: {error}"
    except SystemExit as stop:  # --help
        return f"{script}: status {stop.code}" if stop.code else ""
    return ""


def fault_of_launch(args: Sequence[str]) -> str:
    """As ``fault_of_options``, for the words behind ``accelerate launch``."""
    try:
        given = launch_command_parser().parse_args(args)
    except (SystemExit, argparse.ArgumentError):
        return f"accelerate launch does not take: {' '.join(args)}"
    if given.config_file and not (REPOSITORY / given.config_file).is_file():
        return f"{given.config_file}: no such file"
    return fault_of_options(given.training_script, given.training_script_args)


def fault_of_command(line: str) -> str:
    """Why a command line could not be run; empty where every option is known and takes its values."""
    words, trainer = shlex.split(line, comments=True), None
    while words and re.match(r"^[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        trainer = value if name == "TRAINER" else trainer
    match words:
        case []:
            return ""
        case ["accelerate", "launch", *args]:
            return fault_of_launch(args)
        case ["python", "-m", "pytest", *_]:
            return ""  # its files are checked as paths
        case ["python", script, *args]:
            return fault_of_options(script, args)
        case ["dino-oct", "launch", _, name, *args] | ["dino-oct", name, *args] if name in COMMANDS:
            return fault_of_options(COMMANDS[name].module.replace(".", "/") + ".py", args)
        case ["dino-oct"] | ["dino-oct", "completion", *_]:
            return ""
        case ["bash" | "sbatch", *args]:
            script = next((word for word in args if word.endswith(".sh")), "")
            if not (REPOSITORY / script).is_file():
                return f"{line}: no such script"
            args = args[args.index(script) + 1 :]
            return fault_of_options(trainer or PASSED_ON[script], args) if script in PASSED_ON and args else ""
        case [program, *_] if program in PROGRAMS:
            return ""
    return f"{line}: not a command that is known here"


# ---- all faults ------------------------------------------------------------------------------------------------------


def fault_of_path(word: str) -> str:
    """Why a word that names a path of the repository is wrong; a test may be named behind its file, as pytest does."""
    path, _, test = word.partition("::")
    if path.split("/")[0] in TOP and "/" in path:
        if not (REPOSITORY / path).exists():
            return f"{path}: no such path"
        if test and f"def {test}(" not in (REPOSITORY / path).read_text():
            return f"{word}: no such test"
    elif re.fullmatch(r"[\w-]+\.(py|sh|cff|toml)", path) and not any(REPOSITORY.glob(path)):
        return f"{path}: give its path from the repository's root"
    return ""


def fault_of_link(target: str, text: str, folder: Path) -> str:
    """Why a link of a document leads nowhere; addresses of other places are not opened."""
    if re.match(r"^(https?|mailto):", target):
        return ""
    place, _, anchor = target.partition("#")
    file = folder / place
    if place and not file.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(file.read_text() if place else text):
        return f"{target}: no such heading"
    return ""


def faults(text: str, folder: Path = REPOSITORY) -> list[str]:
    """All that is wrong in a document that lies in a folder."""
    blocks = [word for _, block in _FENCE.findall(text) for word in re.findall(r"[\w./:-]+", block)]
    words = [word.strip(".,:;()'\"") for code in codes(text) for word in code.split()]
    alone = [word.partition("=")[0] for code in codes(text) if not is_command(code) for word in code.split()]
    options = {word for word in alone if re.match(r"^--\w", word)}
    reasons = [fault_of_link(target, text, folder) for target in _LINK.findall(without_fences(text))]
    reasons += [fault_of_path(word) for word in [*words, *(word for word in blocks if "/" in word)]]
    reasons += [fault_of_command(line) for line in shell_lines(text)]
    reasons += [f"{option}: no command has this option" for option in options - every_option()]
    return list(filter(None, reasons))


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_what_a_document_names_exists(file, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert faults(file.read_text(), file.parent) == []


RIGHT = """
# A title, with `code`
[here](#a-title-with-code), `evaluation/scores/`, `--optim.lr`, `tests/test_docs.py::test_right_text_has_no_fault`
```bash
accelerate launch --config_file launch/cpu.yaml dino_oct/train.py --config configs/quickstart.yaml --optim.epochs 2
TRAINER=supervised/train.py bash launch/torchrun.sh --model resnet50 --data DIR  # a remark
python evaluation/knn.py --k 5 \\
    10
python tests/benchmarks/knn_speed.py --repeats 2
```
"""


def test_right_text_has_no_fault(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert faults(RIGHT) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("```bash\npython evaluation/knn.py --neighbors 5\n```", "--neighbors: no such option"),
        ("```bash\npython evaluation/knn.py --k 5 \\\n  --seed\n```", "--seed"),
        ("```bash\npython evaluation/knn.py --k five\n```", "five"),
        ("```bash\npython evaluation/knn.py --k 0\n```", "--k 0"),
        ("```bash\npython supervised/search.py --base.optim.epoch 2\n```", "--base.optim.epoch: no such option"),
        ("```bash\npython tests/benchmarks/knn_speed.py --scan 5\n```", "--scan: no such option"),
        ("```bash\npython evaluation/umap.py\n```", "evaluation/umap.py: no such"),
        ("```bash\nbash launch/quickstart.sh --epochs 2\n```", "--epochs: no such option"),
        (
            "```bash\nTRAINER=supervised/train.py bash launch/torchrun.sh --loss.centering center\n```",
            "--loss.centering",
        ),
        ("```bash\nbash launch/slow_start.sh\n```", "no such script"),
        ("```bash\naccelerate launch --config launch/cpu.yaml dino_oct/train.py --epochs 2\n```", "--epochs"),
        ("```bash\naccelerate launch --config_file launch/tpu.yaml dino_oct/train.py\n```", "launch/tpu.yaml: no such"),
        ("```bash\naccelerate launch dino_oct/train.py --config configs/slow.yaml\n```", "configs/slow.yaml: no such"),
        ("```bash\npython -m pytest tests/test_nothing.py\n```", "tests/test_nothing.py: no such path"),
        ("```bash\nmake all\n```", "make all"),
        ("run `python evaluation/linear.py --fraction\n0.5`", "--fraction: no such option"),
        ("see `--optim.learning-rate`", "--optim.learning-rate: no command"),
        ("see `evaluation/rooms/walls.py`", "evaluation/rooms/walls.py: no such path"),
        ("see `tests/test_docs.py::test_nothing`", "no such test"),
        ("see `knn_speed.py`", "give its path"),
        ("[there](docs/nowhere.md)", "docs/nowhere.md: no such file"),
        ("![picture](docs/figures/nothing.png)", "docs/figures/nothing.png: no such file"),
        ('<img src="docs/figures/none.png" width="9">', "docs/figures/none.png: no such file"),
        ("# A title\n[there](#the-title)", "#the-title: no such heading"),
        ("[there](docs/measured.md#nowhere)", "no such heading"),
    ],
)
def test_wrong_text_is_found(wrong, named, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    reasons = faults(wrong)
    assert any(named in reason for reason in reasons), reasons


def test_the_documents_tell_of_every_command_preset_and_room():
    text = "\n".join(file.read_text() for file in DOCUMENTS)
    presets = [file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "configs").rglob("*.yaml")]
    checks = [f"tests/{kind}/{file.name}" for kind in ("benchmarks", "campaigns")
              for file in (REPOSITORY / "tests" / kind).glob("*.py")]  # fmt: skip
    named = [*presets, *checks, *(command.script for command in commands()), *PASSED_ON]
    assert [name for name in named if name not in text] == []
    architecture = (REPOSITORY / "docs" / "architecture.md").read_text()
    folders = {
        file.parent.relative_to(REPOSITORY).as_posix() for p in PACKAGES for file in (REPOSITORY / p).rglob("*.py")
    }
    rooms = {f"`{folder}/`" for folder in folders} | {f"`evaluation/{name}" for name in FLOORS}
    assert [room for room in rooms if room not in architecture] == []


def test_every_page_can_be_reached_from_the_readme():
    reached, new = set(), {REPOSITORY / "README.md"}
    while new:
        file = new.pop()
        reached.add(file)
        targets = {target.partition("#")[0] for target in _LINK.findall(without_fences(file.read_text()))}
        pages = {(file.parent / target).resolve() for target in targets if target.endswith(".md") and ":" not in target}
        new |= pages - reached
    assert set(DOCUMENTS) <= reached


def test_the_citation_is_of_this_software():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license", "references"} <= citation.keys()
    metadata = (REPOSITORY / "setup.cfg").read_text()
    for key in ("version", "license"):
        assert re.search(rf"^{key} = {re.escape(str(citation[key]))}$", metadata, re.M), key
    assert all({"type", "title", "authors", "year"} <= reference.keys() for reference in citation["references"])
