"""A network written for other programs, each form read back and compared, with its preprocessing and its card."""

import json
from pathlib import Path
from typing import Any

from dino_oct.errors import InputError
from dino_oct.files import private_folder, remove, scratch_folder, write_whole
from dino_oct.limits import check_settings
from dino_oct.models import portable
from dino_oct.models.attention import check_transformer
from dino_oct.models.backbone import patch_size
from dino_oct.models.portable import Portable
from dino_oct.scores.text import written
from evaluation.config import ExportOptions, Format
from evaluation.inputs import fitted as kept
from evaluation.inputs.model import open_model
from evaluation.inputs.sources import Source, open_source
from evaluation.protocols.model_card import Exported, card

_PREPROCESSING = "preprocessing.json"
_WITH_ATTENTION = ("onnx", "torch-export")


def open_exported(source: Source, options: ExportOptions) -> tuple[Exported, list[str]]:
    """The network to export, with the classifier that its run keeps, or else its own; and notes.

    Raises:
        InputError: logits or attention of a network that has none, or as ``open_model``.
    """
    wants_logits = options.output != "features"
    opening = {"image_size": options.image_size, "heads": options.heads}
    model, fitted, notes = open_model(source, **opening, with_classifier=wants_logits), None, []
    folder = source.run / "export" if source.is_final else None
    if wants_logits and folder is not None and kept.exists(folder):
        stored = kept.read(folder)
        if stored.weights == model.weights.sha256:
            model, fitted = kept.attach(model, stored), stored
        else:
            notes.append(f"the classifier in {folder} is of other weights: left out; dino-oct predict fits it anew")
    has_classifier = model.model.num_classes > 0
    if options.output == "logits" and not has_classifier:
        raise InputError(
            f"{source.name} has no classifier; dino-oct predict keeps one beside a run, --output features does without"
        )
    output = "logits" if has_classifier else "features"
    return Exported(source, model, Portable(model.model, output, model.input_size), fitted), notes


def describe(exported: Exported, network: Portable) -> dict[str, Any]:
    """How images are made ready for a network, and what its outputs are: plain values."""
    model, fitted = exported.model, exported.fitted
    channels, rows, columns = network.image_shape
    images = model.model.hub_config["pretrained_cfg"]
    outputs = {network.output: ["batch", network.network.num_classes or network.network.num_features]}
    if network.attention:
        patch, heads = patch_size(network.network), network.network.blocks[-1].attn.num_heads
        outputs["attention"] = ["batch", heads, rows // patch, columns // patch]
    facts: dict[str, Any] = {
        "input": {"images": ["batch", channels, rows, columns], "type": "float32"},
        "outputs": outputs,
        "preprocessing": {
            "before": (fitted.reading if fitted else model.model.hub_config.get("scans")) or {},
            "grey": f"one channel from 0 to 1{', repeated to 3' if channels == 3 else ''}",
            "resize": {"rows": rows, "columns": columns, "way": "bicubic (Pillow), the whole scan, not cropped"},
            "mean": images["mean"],
            "std": images["std"],
            "formula": "(grey - mean) / std",
        },
    }
    if network.output == "logits":
        facts["classes"] = list(exported.classes) or None
        facts["temperature"] = fitted.temperature if fitted else None
    return facts


def write(form: Format, exported: Exported, folder: Path, attention: bool) -> float | None:
    """Write one form into a folder of its own, in place of what an earlier export left there.

    Args:
        attention: as a second output of ONNX and torch.export.

    Returns:
        The largest difference to the network (``portable.largest_difference``); None for the card alone.

    Raises:
        InputError: the folder holds something else, or what is written differs: it is then not kept.
    """
    if folder.exists() and not (folder / _PREPROCESSING).is_file():
        raise InputError(f"{folder} exists and is no earlier export; give another --out")
    network = exported.network
    if attention and form in _WITH_ATTENTION:
        network = Portable(network.network, network.output, network.size, attention=True)
    facts, difference = describe(exported, network), None
    with scratch_folder(folder) as building:
        if form == "onnx":
            difference = portable.write_onnx(network, building / "model.onnx", facts)
        elif form == "torch-export":
            difference = portable.write_torch_export(network, building / "model.pt2", facts)
        elif form in ("timm", "hf"):
            difference = portable.write_timm(network, building, exported.classes)
        if form in ("hf", "card"):
            write_whole(building / "README.md", card(exported))
        write_whole(building / _PREPROCESSING, json.dumps(facts, indent=1))
        remove(folder)
        building.rename(folder)
    return difference


def run(options: ExportOptions) -> None:
    """Write every form that is asked for, and print how much each differs."""
    check_settings(options)
    if "onnx" in options.format:
        portable.check_onnx()
    source = open_source(options.model)
    exported, notes = open_exported(source, options)
    if options.attention:
        check_transformer(exported.model.model)
    print(f"{exported.name}: {exported.model.model.load_report.counts}")
    print(f"gives {_in_words(exported)}")
    out = private_folder(options.out)
    for form in options.format:
        difference = write(form, exported, out / form, options.attention)
        if difference is not None:
            print(f"{form}: read back, it differs by {difference:.1e} at most", flush=True)
    print("\n".join([*(f"note: {note}" for note in notes), written(*(out / form for form in options.format))]))


def _in_words(exported: Exported) -> str:
    model, (channels, rows, columns) = exported.model, exported.network.image_shape
    what = f"features ({model.model.num_features})"
    if exported.network.output == "logits":
        where = {"probe": "the probe that is kept beside the run", "own": "its own classifier"}.get(model.head, "")
        what = f"logits of {model.model.num_classes} classes, of {where}"
    return f"{what}; images {channels} × {rows} × {columns}"
