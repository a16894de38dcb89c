"""What commands that explain classifiers share: models and scans, the class that is explained, pages and files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from matplotlib import pyplot as plt
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dino_oct.errors import InputError
from dino_oct.features import squash
from dino_oct.files import naming, read_json, remove, replacing
from dino_oct.limits import Name, Scans
from evaluation.chosen_scans import Chosen, from_files, from_split, page_name
from evaluation.class_target import Classifier, ClassTargetOptions, open_classifier
from evaluation.reports import table, write_json
from evaluation.runs import Source, open_source
from evaluation.scan_data import PHANTOM_NOTICE, ScanData, open_data

_TILE, _WIDEST, _GAP = 220, 420, 8  # pixels: short side of a picture, its longer side at most, between pictures
_LABEL, _CAPTION, _TITLE, _FOOT = 150, 44, 56, 40  # pixels of margins and captions
_DPI = 100
_OUTLINE = (255, 140, 0)


@dataclass
class ExplanationOptions(ClassTargetOptions):
    """Which classifiers explain which class of which scans."""

    scans: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Image files; unset: scans of --split."""
    beside: tuple[Name, ...] = ()
    """Further SOURCEs on the same scans, each at its own image size unless --image-size is given."""
    split: Literal["test", "val", "train"] = "test"
    """Where scans are taken from if no file is given."""
    n: Scans = 8
    """Scans to take from the split, in turns through the classes, each from a new patient as long as there are any."""
    target: Name = "predicted"
    """The class to explain: predicted (by each model), true, or a class name."""


@dataclass(frozen=True)
class Asked:
    """A classifier asked about a scan: its input (1, H, W) uint8, its logits (K,), and the class to explain."""

    classifier: Classifier
    chosen: Chosen
    image: torch.Tensor
    logits: np.ndarray
    target: int

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) float64."""
        return softmax(self.logits)

    @property
    def verdict(self) -> str:
        """What the model says, with its probability, and whether it is right where the class is known."""
        best = int(self.logits.argmax())
        name = self.classifier.class_names[best]
        known = self.chosen.label in self.classifier.class_names
        return f"{name} {100 * self.probabilities[best]:.0f} %" + (
            ("" if name == self.chosen.label else " (wrong)") if known else ""
        )

    def facts(self) -> dict[str, Any]:
        """For the JSON file."""
        names = self.classifier.class_names
        return {
            "predicted": names[int(self.logits.argmax())],
            "explained": names[self.target],
            "logits": dict(zip(names, self.logits.tolist(), strict=True)),
            "probabilities": dict(zip(names, self.probabilities.tolist(), strict=True)),
        }


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3) uint8 and its caption, of two lines at most."""

    picture: np.ndarray
    caption: str


@dataclass(frozen=True)
class Page:
    """One scan: rows of pictures, each row with a label; arrays for the npz file, facts for the JSON file."""

    chosen: Chosen
    rows: list[tuple[str, list[Tile]]]
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (…, K), float64."""
    return torch.from_numpy(np.asarray(logits, dtype=np.float64)).softmax(dim=-1).numpy()


def open_models(
    source: Source, options: ExplanationOptions
) -> tuple[dict[str, Classifier], list[Chosen], dict[str, Any]]:
    """The classifiers by a short name, the scans, and what a result says about the scans.

    Raises:
        InputError: a source given twice, a target that a model does not have, or as ``open_classifier``,
            ``from_files`` and ``from_split``.
    """
    sources = [source, *(open_source(name) for name in options.beside)]
    short_names(sources)  # a source given twice costs no time
    data = None
    if options.scans:
        chosen, about = from_files(options.scans, source, options.dataset)
    else:
        data = open_data(source, options.data, options.dataset, options.phantom, print)
        chosen, about = from_split(data, options.split, options.n, options.beside)
    models = open_each(sources, options, data)
    for model in models.values():
        if options.target not in ("predicted", "true"):
            model.class_index(options.target)
    return models, chosen, about


def open_each(
    sources: Sequence[Source], options: ClassTargetOptions, data: ScanData | None = None
) -> dict[str, Classifier]:
    """The classifiers of some sources by a short name.

    Raises:
        InputError: a source given twice, or as ``open_classifier``.
    """
    names = short_names(sources)
    return {name: open_classifier(one, options, data) for name, one in zip(names, sources, strict=True)}


def short_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source that a table has room for: the run's where these are unique.

    Raises:
        InputError: a source given twice.
    """
    given = [one.name for one in sources]
    if len(set(given)) < len(given):
        raise InputError(f"{' '.join(given)}: a source is given twice")
    short = [_short(one) for one in sources]
    return short if len(set(short)) == len(short) else given


def _short(source: Source) -> str:
    if source.run is None:
        return Path(source.name).name
    name = source.run.resolve().name
    return name if source.is_final else f"{name}/{Path(source.name).stem}"


def ask(classifier: Classifier, chosen: Chosen, target: str = "predicted") -> Asked:
    """Classify a scan, and settle which class is explained.

    Raises:
        InputError: the true class of a scan is asked for that has none, or a class that the model does not have.
    """
    image, logits = squash(chosen.scan, classifier.input_size), classifier.logits(chosen.scan)
    if target == "predicted":
        index = int(logits.argmax())
    elif target == "true" and chosen.label is None:
        raise InputError(f"{chosen.file}: its class is not known; give --target predicted or a class name")
    else:
        index = classifier.class_index(chosen.label if target == "true" else target)
    return Asked(classifier, chosen, image, logits, index)


def describe(
    name: str, models: dict[str, Classifier], source: Source, about: dict[str, Any], options: ExplanationOptions
) -> dict[str, Any]:
    """What the JSON file of an explanation holds besides its scans and settings."""
    random = [name for name, one in models.items() if one.model.load_report.matched == 0]
    return {
        "evaluation": name,
        "model": {"source": source.name, "run": source.run, "chosen": source.chosen},
        "weights": {name: one.weights for name, one in models.items()},
        "data": about,
        "models": {
            name: {
                "architecture": one.timm_name,
                "input_size": one.input_size,
                "classes": one.class_names,
                "classifier": one.head,
                "target": one.target,
                "fitted": one.fitted,
            }
            for name, one in models.items()
        },
        "settings": {"target": options.target},
        "notes": [
            *about["notes"],
            *(f"{name} has random weights: its maps are a control, not a finding" for name in random),
        ],
    }


def answers(models: dict[str, Classifier], asked: Sequence[dict[str, Asked]]) -> str:
    """What every model says about every scan, as a table, and what its logits are."""
    header = ["scan", "class", *models]
    rows = [
        [Path(first.chosen.file).name, first.chosen.label or "–", *(one.verdict for one in by_model.values())]
        for by_model in asked
        for first in [next(iter(by_model.values()))]
    ]
    targets = [
        f"{name}: {one.timm_name}, {one.input_size[0]} × {one.input_size[1]} px, {one.target}"
        for name, one in models.items()
    ]
    return "\n".join([*targets, "", table(header, rows)])


def picture_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns on a page of a scan of this shape."""
    scale = min(_TILE / min(shape), _WIDEST / max(shape))
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (rows, columns) to ``size``, bilinearly."""
    values = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def as_picture(scan: np.ndarray) -> np.ndarray:
    """A grey scan (H, W) as a picture of a page."""
    return np.repeat(squash(scan, picture_size(scan.shape))[0].numpy()[..., None], 3, axis=-1)


def overlay(scan: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The positive part of a map (rows, columns) over a scan (H, W), scaled by its own maximum."""
    grey = as_picture(scan).astype(np.float32)
    strength = enlarge(values, grey.shape[:2]).clip(0)
    strength = strength / max(float(strength.max()), 1e-12)
    return _blend(grey, matplotlib.colormaps["inferno"](strength), 0.05 + 0.7 * strength)


def signed_overlay(scan: np.ndarray, values: np.ndarray, limit: float) -> np.ndarray:
    """A signed map (rows, columns) over a scan (H, W): red for +limit, blue for −limit, the scan alone at 0."""
    grey = as_picture(scan).astype(np.float32)
    share = (enlarge(values, grey.shape[:2]) / max(limit, 1e-12)).clip(-1, 1)
    return _blend(grey, matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * share), 0.85 * np.abs(share) ** 0.7)


def outlined(shape: tuple[int, int], image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (h, w) uint8 in the size of a page's scan of ``shape``, with the outline of a mask (h, w)."""
    picture = np.repeat(squash(image, picture_size(shape))[0].numpy()[..., None], 3, axis=-1)
    return with_outline(picture, mask, _OUTLINE, 5)


def with_outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int = 3) -> np.ndarray:
    """A picture (H, W, 3) uint8 with the inner edge of a mask (h, w) bool in a colour, about half ``width`` pixels."""
    inside = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=picture.shape[:2], mode="nearest")
    edge = inside[0, 0].bool() & (-F.max_pool2d(-inside, width, 1, width // 2) < 0.5)[0, 0]
    drawn = picture.copy()
    drawn[edge.numpy()] = colour
    return drawn


def _blend(grey: np.ndarray, colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    opacity = opacity[..., None]
    return ((1 - opacity) * grey + opacity * 255 * colours[..., :3]).round().clip(0, 255).astype(np.uint8)


def draw_page(rows: Sequence[tuple[str, Sequence[Tile]]], title: str, foot: str, file: Path) -> None:
    """Write rows of pictures as one PNG; all pictures are of one size."""
    height, width = rows[0][1][0].picture.shape[:2]
    columns = max(len(tiles) for _, tiles in rows)
    page_width = max(_LABEL + columns * (width + _GAP), 760)
    page_height = _TITLE + len(rows) * (height + _CAPTION) + _FOOT
    figure = plt.figure(figsize=(page_width / _DPI, page_height / _DPI), dpi=_DPI)
    figure.text(8 / page_width, 1 - 8 / page_height, title, va="top", fontsize=9, parse_math=False)
    figure.text(8 / page_width, 8 / page_height, foot, va="bottom", fontsize=8, parse_math=False)
    for i, (label, tiles) in enumerate(rows):
        bottom = 1 - (_TITLE + (i + 1) * (height + _CAPTION)) / page_height
        middle = bottom + height / 2 / page_height
        figure.text(8 / page_width, middle, label, va="center", fontsize=8, parse_math=False, wrap=False)
        for j, tile in enumerate(tiles):
            left = _LABEL + j * (width + _GAP)
            axis = figure.add_axes((left / page_width, bottom, width / page_width, height / page_height))
            axis.imshow(tile.picture, interpolation="nearest", aspect="auto")
            axis.set_axis_off()
            figure.text(
                (left + width / 2) / page_width,
                bottom + (height + 4) / page_height,
                tile.caption,
                ha="center",
                va="bottom",
                fontsize=8,
                parse_math=False,
            )
    with replacing(file) as partial:
        figure.savefig(partial, dpi=_DPI, format="png")
    plt.close(figure)


def _earlier_pages(folder: Path, name: str) -> list[Path]:
    """Pages that the result in a folder names; none where there is no result."""
    try:
        scans = read_json(folder / f"{name}.json")["scans"]
        return [folder / Path(scan["page"]).name for scan in scans]
    except (InputError, KeyError, TypeError):
        return []


def write_pages(result: dict[str, Any], pages: Sequence[Page], subtitle: str, foot: str, folder: Path) -> None:
    """Write one PNG a scan, ``NAME.npz``, ``NAME.json`` and TensorBoard images into a folder, NAME the evaluation's.

    The arrays of page i are ``scan{i}_…`` in the npz file, and its facts are entry i of the JSON file's ``scans``.
    """
    name, arrays, files = result["evaluation"], {}, []
    notice = f"{PHANTOM_NOTICE} · " if result["data"]["synthetic"] else ""
    # An earlier evaluation's pages and TensorBoard images would pass for this one's.
    for old in [*_earlier_pages(folder, name), *(folder / "tensorboard").glob("events.out.tfevents.*")]:
        remove(old)
    for i, page in enumerate(pages):
        files.append(folder / page_name(i, page.chosen))
        label = f" (true class {page.chosen.label})" if page.chosen.label else ""
        draw_page(page.rows, f"{notice}{page.chosen.file}{label}\n{subtitle}", foot, files[-1])
        arrays |= {f"scan{i}_{key}": value for key, value in page.arrays.items()}
    with naming(folder / "tensorboard"), SummaryWriter(str(folder / "tensorboard")) as writer:
        for file in files:
            with Image.open(file, formats=["PNG"]) as image:
                writer.add_image(f"{name}/{file.stem}", np.asarray(image.convert("RGB")), 0, dataformats="HWC")
    with replacing(folder / f"{name}.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
    result["scans"] = [
        {
            "key": f"scan{i}",
            "file": page.chosen.file,
            "class": page.chosen.label,
            "patient": page.chosen.patient,
            "page": file.name,
            **page.facts,
        }
        for i, (page, file) in enumerate(zip(pages, files, strict=True))
    ]
    write_json(result, folder / f"{name}.json")
