"""``dino-oct COMMAND …``: one name for every command of the toolkit.

    dino-oct                             the commands, a line each
    dino-oct knn --k 5 10                the same as python evaluation/knn.py --k 5 10
    dino-oct launch 4 train --data DIR   a training on four GPUs, or by four processes of a CPU
    dino-oct completion bash             a script that completes commands and options

A command is the script of its module, run in this process: both doors open the same room.
"""

import difflib
import importlib
import os
import runpy
import sys
import typing
from collections.abc import Sequence
from typing import NamedTuple

from dino_oct import __version__
from dino_oct.cli import one_line_errors
from dino_oct.errors import InputError
from dino_oct.limits import all_settings


class Command(NamedTuple):
    """What a name stands for: the module that is run, and a line for the list."""

    module: str
    line: str


COMMANDS = {
    "doctor": Command("dino_oct.doctor", "what this machine has, and what runs on it"),
    "phantom": Command("dino_oct.data.phantom", "draw synthetic scans as files"),
    "audit": Command("dino_oct.data.audit", "check scans: bad files, copies, leaks, shortcuts"),
    "table": Command("dino_oct.data.table", "write the table of a folder of scans, to be corrected"),
    "slices": Command("dino_oct.data.export", "write the B-scans of volumes as pictures, with a table"),
    "train": Command("dino_oct.train", "pretrain without labels (DINO)"),
    "finetune": Command("supervised.train", "train a network with labels, or fine-tune one"),
    "search": Command("supervised.search", "search hyper-parameters of networks with labels"),
    "zoo": Command("supervised.zoo", "the paper's networks by name"),
    "knn": Command("evaluation.knn", "k-NN on frozen features"),
    "linear": Command("evaluation.linear", "a linear probe on frozen features"),
    "umap": Command("evaluation.embedding_map", "a map of the scans"),
    "attention": Command("evaluation.attention", "where each attention head looks"),
    "gradcam": Command("evaluation.gradcam", "explanation maps: Grad-CAM"),
    "occlusion": Command("evaluation.occlusion", "explanation maps: occlusion"),
    "relevance": Command("evaluation.relevance", "explanation maps: relevance of transformers"),
    "explain": Command("evaluation.side_by_side", "explanation maps of several methods side by side"),
    "localize": Command("evaluation.localization", "which explanation map finds the lesion"),
    "predict": Command("evaluation.predict", "classes, probabilities and sets of new scans"),
    "embed": Command("evaluation.embed", "features of any scans as a file"),
    "export": Command("evaluation.export_model", "a network for timm, Hugging Face, ONNX, torch.export"),
    "compare": Command("evaluation.compare", "one report that compares models"),
    "report": Command("evaluation.compare", "the same; without a name, of the newest run beside its start"),
}
_TRAINERS = ("train", "finetune")
_SHELLS = ("bash", "zsh", "fish")


def main() -> None:
    """Run what the command line names."""
    name, args = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in COMMANDS:
        sys.argv = [f"dino-oct {name}", *args]
        runpy.run_module(COMMANDS[name].module, run_name="__main__")
        return
    with one_line_errors():
        if name in ("-h", "--help", "help"):
            print(_overview())
        elif name in ("--version", "-V"):
            print(f"dino-oct {__version__}")
        elif name == "launch":
            _launch(args)
        elif name == "completion":
            print(_completion(args))
        else:
            close = difflib.get_close_matches(name, [*COMMANDS, "launch", "completion"], n=1)
            raise InputError(f"{name}: no such command" + (f"; did you mean {close[0]}?" if close else _HINT))


_HINT = " (dino-oct --help lists them)"


def _overview() -> str:
    lines = [(name, command.line) for name, command in COMMANDS.items()]
    lines.append(("launch", "dino-oct launch N train …: on N GPUs, or by N processes of a CPU"))
    lines.append(("completion", "of commands and options: dino-oct completion bash|zsh|fish"))
    listed = "\n".join(f"  {name:10}  {line}" for name, line in lines)
    return f"usage: dino-oct COMMAND [OPTIONS]\n\n{listed}\n\ndino-oct COMMAND --help lists the options of a command."


def _launch(args: Sequence[str]) -> None:
    """Replace this process by a launcher of several."""
    count, name = (*args[:2], "", "")[:2]
    if not count.isdecimal() or not 1 <= int(count) <= 1024 or name not in _TRAINERS:
        raise InputError("launch: expected dino-oct launch N train …, or finetune, where N is a number of processes")
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < int(count):
        raise InputError(f"launch {count}: this machine has {gpus} GPU{'s' * (gpus > 1)}; each process needs one")
    program = ["--module", COMMANDS[name].module, *args[2:]]
    if gpus > 1:
        options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher = ["accelerate.commands.launch", *options, "--num_processes", count]
    else:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", count]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *launcher, *program])


def _completion(args: Sequence[str]) -> str:
    """A script for a shell, with the options of this version."""
    if len(args) != 1 or args[0] not in _SHELLS:
        raise InputError(f"completion: expected one of {', '.join(_SHELLS)}")
    options = {name: _options(command) for name, command in COMMANDS.items()}
    names = " ".join([*COMMANDS, "launch", "completion"])
    if args[0] == "fish":
        lines = [f"complete -c dino-oct -f -n __fish_use_subcommand -a '{names}'"]
        for name, words in options.items():
            found = " ".join(f"-l {word[2:]}" for word in words)
            lines.append(f"complete -c dino-oct -n '__fish_seen_subcommand_from {name}' {found}")
        return "\n".join(lines)
    cases = "\n".join(f'    {name}) words="{" ".join(words)}" ;;' for name, words in options.items())
    loading = "autoload -U +X bashcompinit && bashcompinit\n" if args[0] == "zsh" else ""
    return f"""{loading}_dino_oct() {{
  local words="" current="${{COMP_WORDS[COMP_CWORD]}}" of="${{COMP_WORDS[1]}}"
  if [ "$of" = launch ] && [ "$COMP_CWORD" -gt 3 ]; then of="${{COMP_WORDS[3]}}"; fi
  if [ "$COMP_CWORD" = 1 ]; then words="{names}"; else case "$of" in
{cases}
    launch) words="{" ".join(_TRAINERS)}" ;;
    completion) words="{" ".join(_SHELLS)}" ;;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _dino_oct dino-oct"""


def _options(command: Command) -> list[str]:
    """Options of a command, as they are typed."""
    module = importlib.import_module(command.module)
    kind = getattr(module, "Options", None)
    if kind is None:
        reader = next(getattr(module, name) for name in ("load_config", "load_options") if hasattr(module, name))
        kind = typing.get_type_hints(reader)["return"]
    named = [setting for setting in all_settings(kind) if not setting.positional]
    return ["--help", *(word for setting in named for word in (setting.option, *setting.aliases))]


if __name__ == "__main__":
    main()
