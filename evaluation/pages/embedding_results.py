"""What the UMAP evaluation leaves: the printed table, figure, page, animation, projector export and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.index import UNLABELLED
from dino_oct.features import resize_all
from dino_oct.files import replacing, write_whole
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.paired import MODEL
from dino_oct.scores.text import closing, heading, show, table, write_json
from dino_oct.streams import generator
from evaluation.pages.embedding_figures import Frame, Mark, Panel, animate, draw_panels, marks
from evaluation.pages.embedding_page import page, page_data, thumbnails
from evaluation.pages.projector import write_projector

MOST_SHOWN = 5000  # scans on the page and in the projector
_SPRITE = 48  # pixels per side of a scan in the projector


@dataclass(frozen=True)
class Maps:
    """What the figures are made of; everything is in the order of ``chosen``.

    Attributes:
        chosen: (N,) positions of the scans in ``data``.
        features: row → (N, D).
        by_row: row → (seeds, N, 2).
        comparable: (N,) bool, scans that silhouette and purity are measured on.
        near: row → (N, k) nearest scans of other patients by features; empty where there is one patient only.
        frames: training state → (N, 2), aligned; empty without an animation.
    """

    data: ScanData
    chosen: np.ndarray
    comparable: np.ndarray
    features: dict[str, np.ndarray]
    by_row: dict[str, np.ndarray]
    near: dict[str, np.ndarray]
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """(N,) classes, or ``UNLABELLED``."""
        return self.data.index.labels[self.chosen]

    @property
    def patients(self) -> np.ndarray:
        """(N,) patients."""
        return self.data.index.patients[self.chosen]


def report(result: dict[str, Any]) -> str:
    """The result as text: what was used, one table, and what it does not let one say."""
    data, settings = result["data"], result["settings"]
    counts, umap = data["sets"]["scans"], settings["umap"]
    classes = ", ".join(f"{name} {count['scans']}" for name, count in counts["classes"].items() if count["scans"])
    seeds = len(settings["seeds"])
    lines = [
        *heading("UMAP of features", result),
        f"data: {data['folder']} · {_scans(result)}" + (f" ({classes})" if classes else ""),
        f"UMAP: n_neighbors {umap['n_neighbors']}, min_dist {umap['min_dist']:g}, {umap['metric']}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        "",
    ]
    header = [
        "", "silhouette", f"{settings['k']}-NN purity %", "map's purity %", "trustworthiness",
        "overlap of seeds %", "Procrustes of seeds",
    ]  # fmt: skip
    rows = [
        [name, *_measured(row), f"{row['trustworthiness']:.3f}", *_stability(row.get("stability"))]
        for name, row in result["rows"].items()
    ]
    if result["chance"] is not None:
        rows.append(["chance", "", f"{result['chance']:.1f}", "", "", "", ""])
    rows += [[name, *_measured(row, signed=True), "", "", ""] for name, row in result["differences"].items()]
    lines.append(table(header, rows))
    if settings["bootstrap"]["resamples"] and result["differences"]:
        lines.append(
            f"[95 % interval, {settings['bootstrap']['resamples']} resamples of patients]  (lowest–highest of pairs of "
            "seeds)"
        )
    if trained := {name: row for name, row in result["training"].items() if "purity" in row}:
        purities = [[name, show(row["purity"])] for name, row in trained.items()]
        lines += ["", table(["training", f"{settings['k']}-NN purity %"], purities)]
    return "\n".join([*lines, *closing(result)])


def _measured(row: dict[str, Any], signed: bool = False) -> list[str]:
    digits = {"silhouette": 3, "purity": 1, "map_purity": 1}
    return [show(row[name], n, signed) if name in row else "" for name, n in digits.items()]


def _stability(agreement: dict[str, tuple[float, float, float]] | None) -> list[str]:
    if agreement is None:
        return ["", ""]
    percent = [100 * value for value in agreement["overlap"]]
    return ["{:.0f} ({:.0f}–{:.0f})".format(*percent), "{:.2f} ({:.2f}–{:.2f})".format(*agreement["procrustes"])]


def _scans(result: dict[str, Any]) -> str:
    counts, split = result["data"]["sets"]["scans"], result["data"]["split"]
    which = "all splits" if split == "all" else f"{split} split"
    patients = f"{counts['patients']:,} patient{'' if counts['patients'] == 1 else 's'}"
    return f"{which}, {counts['scans']:,} scans of {patients}"


def _title(result: dict[str, Any]) -> str:
    return f"{result['data']['folder'].name}, {_scans(result)}"


def _panels(result: dict[str, Any], maps: Maps) -> list[Panel]:
    k = result["settings"]["k"]

    def caption(purity: Interval | None) -> str:
        return f"{k}-NN purity of the features {show(purity)} %" if purity else ""

    shown = {name: f"{name}: {result['model']['source']}" if name == MODEL else name for name in maps.by_row}
    return [
        Panel(shown[name], (Frame(caption(result["rows"][name].get("purity")), drawn[0]),), maps.near.get(name))
        for name, drawn in maps.by_row.items()
    ]


def _training_panel(result: dict[str, Any], maps: Maps) -> Panel:
    k, frames = result["settings"]["k"], []
    for name, points in maps.frames.items():
        purity = result["training"][name].get("purity")
        frames.append(Frame(f"{name}" + (f" · {k}-NN purity {purity.point:.1f} %" if purity else ""), points))
    return Panel("over training", tuple(frames))


def write_results(result: dict[str, Any], maps: Maps, folder: Path, projector: bool = True) -> list[str]:
    """Write figure, page, coordinates, animation, projector export and ``embedding_map.json`` into a folder.

    ``maps.npz`` holds ``row0`` … in the order of the JSON file's ``rows``, each (seeds, N, 2); ``frame0`` … (N, 2) in
    the order of ``training``; and ``files``, ``labels`` (−1 without a class) and ``patients`` of the N scans.

    Returns:
        the names of what was written.
    """
    index = maps.data.index
    unlabelled = maps.labels == UNLABELLED
    marked = marks(index.class_names, bool(unlabelled.any()))
    labels = np.where(unlabelled, len(index.class_names), maps.labels)
    panels, title, written = _panels(result, maps), _title(result), []
    notice = result["data"]["notice"]
    figure_title = f"{notice} · {title}" if notice else title
    draw_panels(panels, marked, labels, figure_title, folder / "maps.png")
    written.append("maps.png")
    if maps.frames:
        training = _training_panel(result, maps)
        animate(training, marked, labels, figure_title, folder / "training.gif")
        panels.append(training)
        written.append("training.gif")
    write_whole(folder / "maps.html", _page(result, maps, panels, marked, labels, title))
    files = np.array([index.files[i] for i in maps.chosen])
    arrays = {f"row{i}": points for i, points in enumerate(maps.by_row.values())}
    arrays |= {f"frame{i}": points for i, points in enumerate(maps.frames.values())}
    with replacing(folder / "maps.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, files=files, labels=maps.labels, patients=maps.patients, **arrays)
    written += ["maps.html", "maps.npz"]
    if projector:
        result["notes"] = [*result["notes"], *_write_projector(maps, marked, labels, folder / "projector")]
        written.append("projector/")
    write_json(result, folder / "embedding_map.json")
    return [*written, "embedding_map.json"]


def _shown(n: int) -> np.ndarray:
    """Positions of the scans that fit on a page: all, or ``MOST_SHOWN`` drawn at random."""
    return np.sort(generator("scans of a page").permutation(n)[:MOST_SHOWN])


def _page(
    result: dict[str, Any], maps: Maps, panels: list[Panel], marked: Sequence[Mark], labels: np.ndarray, title: str
) -> str:
    keep, index = _shown(len(labels)), maps.data.index
    notes = [*result["verdicts"], *result["notes"]]
    if len(keep) < len(labels):
        notes.append(f"{len(keep):,} of {len(labels):,} scans are on this page, and no nearest scans")
        panels = [
            Panel(panel.title, tuple(Frame(frame.caption, frame.points[keep]) for frame in panel.frames))
            for panel in panels
        ]
    positions = maps.chosen[keep]
    scans = {
        "file": [index.files[i] for i in positions],
        "patient": index.patients[positions].tolist(),
        "split": index.splits[positions].tolist(),
        "image": thumbnails([maps.data.scans[i] for i in positions]),
    }
    data = page_data(panels, marked, labels[keep], result["settings"]["k"], scans)
    return page(f"UMAP · {title}", result["data"]["notice"], notes, data)


def _write_projector(maps: Maps, marked: Sequence[Mark], labels: np.ndarray, folder: Path) -> list[str]:
    keep, index = _shown(len(labels)), maps.data.index
    metadata = [
        [marked[label].name, str(index.patients[i]), str(index.splits[i]), index.files[i]]
        for label, i in zip(labels[keep].tolist(), maps.chosen[keep].tolist(), strict=True)
    ]
    images = resize_all((maps.data.scans[i] for i in maps.chosen[keep]), (_SPRITE, _SPRITE))[:, 0].numpy()
    features = {name: rows[keep] for name, rows in maps.features.items()}
    return write_projector(features, ("class", "patient", "split", "file"), metadata, images, folder)
