"""The model card of an export: what is known of a network, in Markdown. What is not known is said to be unknown."""

import contextlib
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml

from dino_oct import __version__
from dino_oct.checkpoint import read_metrics
from dino_oct.cli import read_mapping
from dino_oct.config import RunSettings
from dino_oct.data.run_table import read_rows
from dino_oct.errors import InputError
from dino_oct.files import read_json
from dino_oct.models.portable import Portable
from dino_oct.provenance import TABLE, run_of, trained_on
from dino_oct.scores.bootstrap import Interval
from dino_oct.words import counted, scans_of
from evaluation.inputs.fitted import Fitted
from evaluation.inputs.model import Model
from evaluation.inputs.sources import Source
from supervised.architectures import find

_ROWS = {"knn": "model", "linear": "model", "supervised": "classifier"}  # evaluation → its row of the network
_METRICS = {"accuracy": "accuracy %", "balanced_accuracy": "balanced accuracy %", "macro_auroc": "AUROC %"}
_TITLES = {"knn": "k-NN", "linear": "linear probe", "supervised": "its own classifier"}
_DINO = "https://dl.fbaipublicfiles.com/dino/"
_MOST_STARTS = 20  # runs before this one that are followed
_SETTINGS = (
    *("data", "init", "seed", "model", "optim.epochs", "optim.batch_size", "optim.lr", "optim.optimizer"),
    *("optim.layer_decay", "augment.pair", "augment.global_size", "augment.local_size", "augment.n_local"),
    *("loss.centering", "loss.teacher_temperature", "loss.koleo_weight", "loss.anchor_weight", "loss.gram_weight"),
    *("loss.ibot_weight", "model.out_dim", "model.train_blocks", "model.lora_rank", "network.train", "run.precision"),
)
_OFF = (("optim.layer_decay", 1.0), ("augment.pair", "none"))
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Exported:
    """A network that is exported, with all that its card says something about.

    Attributes:
        network: as it is written. fitted: the classifier that is kept beside its run, if it is the one exported.
    """

    source: Source
    model: Model
    network: Portable
    fitted: Fitted | None = None

    @property
    def name(self) -> str:
        """Of the run, or of what was loaded, without folders."""
        return _last_part(self.model.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the logits, where they have names."""
        return tuple(self.model.class_names) if self.network.output == "logits" else ()


def escaped(text: Any) -> str:
    """A text of someone else as Markdown shows it, on one line: nothing in it is markup, a link or a column."""
    return re.sub(r"([\\`*_{}\[\]()#+!|$~@:/])", r"\\\1", html.escape(_plain(text), quote=False))


def card(exported: Exported) -> str:
    """The card, in Markdown with a YAML head as the Hugging Face Hub reads it."""
    sections = {
        "What it is for": _purpose(exported),
        "Load it": _loading(exported),
        "Training scans": _training(exported.source),
        "Settings": _settings(exported.source),
        "Results": _results(exported),
        "Limits": _limits(exported),
        "Licence": _licence(exported.source),
    }
    parts = [_head(exported), f"# {escaped(exported.name)}", *_about(exported)]
    for title, lines in sections.items():
        parts += [f"## {title}", *lines]
    return "\n\n".join(parts) + "\n"


def _head(exported: Exported) -> str:
    is_logits = exported.network.output == "logits"
    facts = {
        "library_name": "timm",
        "license": UNKNOWN,
        "pipeline_tag": "image-classification" if is_logits else "image-feature-extraction",
        "tags": ["timm", "oct", "retina", "medical-imaging", *(["dino"] if exported.source.monitor else [])],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def _about(exported: Exported) -> list[str]:
    model, network, source = exported.model, exported.network, exported.source
    channels, rows, columns = network.image_shape
    kind = {
        "self-supervised": "pretrained on OCT scans without labels (DINO)",
        "supervised": "trained on labelled OCT scans",
        "starting weights": "the weights that a run started from",
        "random weights": "random weights: not trained",
    }.get(source.kind, "weights from elsewhere; their training is unknown here")
    outputs = f"features ({network.network.num_features})"
    if network.output == "logits":
        which = "of a linear probe of its frozen features" if model.head == "probe" else "of its own classifier"
        named = f": {', '.join(map(escaped, exported.classes))}" if exported.classes else ", names unknown"
        outputs = f"logits of {network.network.num_classes} classes, {which}{named}"
    return [
        f"A network for B-scans of retinal OCT, {kind}.",
        _table(
            ["", ""],
            [
                ["architecture", f"`{model.timm_name}` of timm"],
                ["parameters", f"{sum(p.numel() for p in network.network.parameters()) / 1e6:.2f} M"],
                [
                    "input",
                    f"{channels} channels, {rows} × {columns} px (rows × columns); preprocessing.json has it all",
                ],
                ["output", outputs],
                ["made from", f"weights whose sha256 begins with `{model.weights.sha256}`"],
                ["made with", f"dino-oct {__version__}, timm {timm.__version__}"],
            ],
        ),
    ]


def _purpose(exported: Exported) -> list[str]:
    use = "Features of OCT B-scans for probes, retrieval and maps"
    if exported.network.output == "logits":
        use = "Classification of OCT B-scans of the classes above"
    return [
        f"**Intended:** research. {use}.",
        "**Out of scope:** diagnosis, triage and treatment of patients. This is research software, not a medical "
        "device; nothing here was validated for clinical use. Scans of other devices, protocols or diseases than those "
        "of the training scans need an evaluation of their own.",
    ]


def _loading(exported: Exported) -> list[str]:
    grey = '.convert("L")' + ('.convert("RGB")' if exported.network.image_shape[0] == 3 else "")
    lines = [
        "import timm",
        "import torch",
        "from PIL import Image",
        "",
        'model = timm.create_model("local-dir:.", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f'image = transform(Image.open("scan.png"){grey})',
        "with torch.inference_mode():",
        "    output = model(image[None])",
    ]
    what = "`output` has the features, one row a scan."
    if exported.network.output == "logits":
        warm = f" / {exported.fitted.temperature:.4g}" if exported.fitted else ""
        lines.append(f"probabilities = (output{warm}).softmax(dim=1)")
        what = "`probabilities` has a row a scan, a column a class in the order above."
        what += (
            " The divisor is the temperature that calibrates them on validation patients."
            if exported.fitted
            else " They are not calibrated."
        )
    code = "\n".join(lines)
    return [
        f"In the folder that `dino-oct export --format hf` writes:\n\n```python\n{code}\n```",
        f'{what} After an upload, `"hf-hub:OWNER/NAME"` takes the place of `"local-dir:."`. What was done to scans '
        "before (white borders, deep and large images) is in preprocessing.json under `before`; this code does not do "
        "it.",
    ]


# ---- training --------------------------------------------------------------------------------------------------------


def _training(source: Source) -> list[str]:
    if source.run is None or source.config is None:
        return ["Unknown: the weights are not of a run of dino-oct."]
    lines = [f"Data: {_data_name(source.config)}."]
    table = source.run / TABLE
    if not table.is_file():
        return [*lines, "Their number is unknown: the run has no table of its scans."]
    rows = read_rows(table)
    labels = sorted({row.label for row in rows if row.label}) or [""]
    labels += [""] if any(not row.label for row in rows) and "" not in labels else []

    def count(label: str | None, split: str) -> str:
        chosen = [row for row in rows if (label is None or row.label == label) and row.split == split]
        return f"{len(chosen):,} ({len({row.patient for row in chosen}):,})"

    splits = ("train", "val", "test")
    cells = [[escaped(label) or "no label", *(count(label, split) for split in splits)] for label in labels]
    cells.append(["all", *(count(None, split) for split in splits)])
    lines.append("Scans (patients) of each class and split:")
    lines.append(_table(["", *splits], cells))
    if source.monitor and labels != [""]:
        lines.append("The labels were used to judge the network while it trained, not to train it.")
    before = trained_on(source.name) or []
    runs = Counter(_last_part(row.run) for row in before if row.file and row.run != source.run.resolve().name)
    runs.pop(source.run.name, None)
    if runs:
        lines.append(
            "Runs before it, from which it went on, were trained on: "
            + ", ".join(f"{escaped(name)} ({counted(count, 'scan')})" for name, count in runs.items())
            + "."
        )
    if starts := sorted({_last_part(row.run) for row in before if not row.file}):
        lines.append(f"What these first weights were trained on is unknown: {', '.join(map(escaped, starts))}.")
    return [*lines, *_audit(source.run)]


def _data_name(config: RunSettings) -> str:
    if config.data == "phantom":
        return "phantoms (synthetic scans), drawn by dino-oct"
    return f"folder or table `{_code(_last_part(config.data))}`; where it is from is unknown here"


def _audit(run: Path) -> list[str]:
    file = run / "audit.json"
    if not file.is_file():
        return []
    try:
        found = read_json(file)
        folder, shared = found["folder"], found["patients"]["shared_between_splits"]
        counts = {
            "files left out": len(found["left_out"]),
            "scans that copy another": found["duplicates"]["exact"]["surplus_scans"],
            "pairs of near-duplicates of different patients": len(found["duplicates"]["near"]["pairs"]),
            "inverted scans": len(found["inverted"]),
            "eyes with several labels at one visit": len(found["eyes"]["at_one_visit"]),
            "patients in two splits (as used)": len(
                {name for where, pair in shared.items() if where.startswith("used") for name in pair["patients"]}
            ),
        }
    except (InputError, KeyError, TypeError, AttributeError):
        return ["Audit: audit.json cannot be read."]
    return [
        f"Audit of `{_code(_last_part(folder))}`: "
        + ", ".join(f"{name} {count:,}" for name, count in counts.items())
        + "."
    ]


def _settings(source: Source) -> list[str]:
    if source.config is None:
        return ["Unknown."]
    values = _settings_of(source.run)
    rows = [
        [f"`{name}`", f"`{_code(_last_part(value) if name in ('data', 'init', 'model') else value)}`"]
        for name in _SETTINGS
        if (value := values.get(name)) not in (None, "", 0.0) and (name, value) not in _OFF
    ]
    return [_table(["setting", "value"], rows), "config.yaml of the run has all."]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# ---- results ---------------------------------------------------------------------------------------------------------


def _results(exported: Exported) -> list[str]:
    source, lines, rows, others = exported.source, [], [], 0
    files = sorted((source.run / "evaluation").glob("*/*.json")) if source.run else []
    for file in files:
        try:
            found = read_json(file)
            kind = found["evaluation"]
            if kind not in _ROWS:
                continue
            if found["weights"][_ROWS[kind]]["sha256"] != exported.model.weights.sha256:
                others += 1
                continue
            rows += _result_rows(kind, found)
        except (InputError, KeyError, TypeError, AttributeError):
            lines.append(f"`{_code(file.name)}` cannot be read and is left out.")
    if rows:
        lines.append("In per cent, with 95 % intervals by patient. Where there is none, there are too few patients.")
        lines.append(_table(["judged by", *_METRICS.values(), "always one class", "measured on"], rows))
    if others:
        lines.append(f"left out, of other weights: {others} result{'s' * (others > 1)} in the run's folder.")
    lines += [*_online(source), *_kept(exported)]
    return lines or ["None are known here."]


def _result_rows(kind: str, found: dict[str, Any]) -> Iterator[list[str]]:
    of_model, scans = found["rows"][_ROWS[kind]], found["data"]["sets"]["queries"]
    place = "phantoms (synthetic)" if found["data"]["synthetic"] else f"`{_code(_last_part(found['data']['folder']))}`"
    where = f"{found['data']['queries']}: {scans_of(scans)}, {place}"
    majority = f"{found['majority']['share']:.1f}"
    for k, row in of_model.items() if kind == "knn" else [("", of_model)]:
        metrics = [Interval(**row[name]).words() for name in _METRICS]
        yield [_TITLES[kind] + (f", k = {int(k)}" if k else ""), *metrics, majority, where]


def _online(source: Source) -> list[str]:
    """The last evaluation while it trained."""
    if not (source.monitor and source.is_final) or not (source.run / "metrics.jsonl").is_file():
        return []
    entries = [entry for entry in read_metrics(source.run / "metrics.jsonl")[0] if "rankme" in entry]
    if not entries:
        return []
    last, first = entries[-1], entries[0]
    parts = []
    for name in sorted(name for name in last if re.fullmatch(r"knn_\d+|probe", name)):
        words = Interval(last[name], last.get(f"{name}_low"), last.get(f"{name}_high")).words()
        start = f", before the first step {first[name]:.1f}" if first is not last and name in first else ""
        parts.append(f"{name.replace('knn_', 'k-NN, k = ')} {words} %{start}")
    if not parts:
        return []
    return [f"While it trained, on validation patients at step {last['step']:,}: {'; '.join(parts)}."]


def _kept(exported: Exported) -> list[str]:
    fitted = exported.fitted
    if fitted is None:
        return []
    what = "The probe was fitted" if fitted.head == "probe" else "The classifier was calibrated"
    checked = fitted.validation
    return [
        f"{what} on {scans_of(fitted.train, 'training')} and {scans_of(fitted.val, 'validation')}. "
        "On the validation scans: "
        f"balanced accuracy {checked.balanced_accuracy:.1f} %, calibration error {checked.calibration_error:.1f} %. "
        "They chose it, so they flatter it."
    ]


def _limits(exported: Exported) -> list[str]:
    source = exported.source
    limits = ["It was not tested on patients of other hospitals, unless the results above say so."]
    if source.config is not None and source.config.data == "phantom":
        limits = ["It was trained on synthetic scans: its results say nothing about patients."]
    limits.append("Devices, ages and origins of the patients that it was trained on are unknown here.")
    if exported.network.output == "logits":
        limits.append("It names one of its classes for every scan, also for a scan that shows none of them.")
    limits.append("Larger or smaller images than those above need another export.")
    return ["\n".join(f"- {limit}" for limit in limits)]


def _licence(source: Source) -> list[str]:
    start = _first_weights(source)
    return [
        "The licence of these weights is not stated; who shares them states it (`license` in the head of this file). "
        "That of the first weights goes on holding:",
        _table(["first weights", "licence"], [[f"`{_code(_last_part(start))}`", _licence_of(start)]]),
        "dino-oct itself is Apache-2.0.",
    ]


def _first_weights(source: Source) -> str:
    """SOURCE of the first weights, through all runs that a run went on from."""
    start = source.name
    for _ in range(_MOST_STARTS):
        if start.startswith(("timm:", "random:", "https://")) or (run := run_of(start)) is None:
            break
        settings = _settings_of(run)
        resume = settings.get("resume")
        if resume not in ("auto", "never", None) and run_of(resume) not in (None, run):
            start = str(run_of(resume))
        elif isinstance(settings.get("model"), str):  # of a supervised run
            start = settings["model"]
            with contextlib.suppress(InputError):
                start = find(start, settings.get("init") != "random")[1]
        else:
            start = str(settings.get("init", UNKNOWN))
    return start


def _licence_of(start: str) -> str:
    kind, _, name = start.partition(":")
    if kind == "random":
        return "none: random weights"
    if start.startswith(_DINO):
        return "apache-2.0 (DINO)"
    config = timm.get_pretrained_cfg(name) if kind == "timm" and "@" not in name else None
    return f"{escaped(config.license)}, as timm states it" if config and config.license else UNKNOWN


# ---- text ------------------------------------------------------------------------------------------------------------


def _settings_of(run: Path) -> dict[str, Any]:
    """Settings of a run by their whole names."""
    return dict(_flat(read_mapping(run / "config.yaml")))


def _last_part(source: Any) -> str:
    """A SOURCE, file or folder without the folders that it is in, which may name people and machines."""
    name = str(source)
    if name.startswith(_DINO) or (name.startswith(("timm:", "random:")) and "@" not in name):
        return name
    architecture, at, file = name.partition("@") if name.startswith("timm:") else ("", "", name)
    return f"{architecture}{at}{Path(file).name or Path(file).resolve().name}"


def _code(text: Any) -> str:
    """A text for between backticks, also in a table."""
    return _plain(text).replace("`", "'").replace("|", "¦")


def _plain(text: Any) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
