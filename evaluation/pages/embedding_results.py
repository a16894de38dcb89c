"""What the UMAP evaluation leaves: the printed table, figure, page, animation, projector export and JSON."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.index import UNLABELLED
from dino_oct.features import resize_all
from dino_oct.files import replacing, write_whole
from dino_oct.models.frozen import Weights
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import Interval, PatientBootstrap
from dino_oct.scores.paired import MODEL, ScanSet
from dino_oct.scores.text import Evaluation, closing, heading, show, table, write_json
from dino_oct.scores.units import group, left_out
from dino_oct.streams import generator
from dino_oct.words import counted
from evaluation.pages.embedding_figures import Frame, Mark, Panel, animate, draw_panels, marks
from evaluation.pages.embedding_page import page, page_data, thumbnails
from evaluation.pages.projector import write_projector

MOST_SHOWN = 5000  # scans on the page and in the projector
_SPRITE = 48  # pixels per side of a scan in the projector


@dataclass(frozen=True)
class Points:
    """The points of a map: scans, or units by the mean of their scans.

    Attributes:
        scans: (M,) positions in the data; point_of_scan: (M,) the point of each, from 0 on.
        chosen: (N,) the scan that stands for each point: itself, or the middle one of the unit.
        unit: what a point is.
    """

    scans: np.ndarray
    point_of_scan: np.ndarray
    chosen: np.ndarray
    unit: str = "scan"

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def of_scans(cls, positions: np.ndarray) -> "Points":
        """A point for each scan."""
        return cls(positions, np.arange(len(positions)), positions)

    @classmethod
    def of_units(cls, data: ScanData, positions: np.ndarray, unit: str) -> tuple["Points", list[str]]:
        """A point for each volume, eye or patient of one class, and notes on what is left out."""
        scans = ScanSet(data.index.labels[positions], data.index.patients[positions])
        grouped = group(data.unit_keys()[unit][positions], scans)
        kept = grouped.unit_of_scan >= 0
        numbers = np.array([int(number or 0) for number in data.index.fact("slice")[positions[kept]]])
        order = np.lexsort((numbers, grouped.unit_of_scan[kept]))
        members, point_of_scan = positions[kept][order], grouped.unit_of_scan[kept][order]
        counts = np.bincount(point_of_scan)
        chosen = members[np.cumsum(counts) - counts + counts // 2] if len(members) else members
        return cls(members, point_of_scan, chosen, unit), left_out(unit, grouped)

    def subset(self, kept: np.ndarray) -> "Points":
        """The points at some ascending places."""
        inside = np.isin(self.point_of_scan, kept)
        places = np.searchsorted(kept, self.point_of_scan[inside])
        return Points(self.scans[inside], places, self.chosen[kept], self.unit)

    def means(self, features: np.ndarray) -> np.ndarray:
        """Features (N, D) of the points from those (M, D) of their scans."""
        if self.unit == "scan":
            return features
        sums = np.zeros((len(self), features.shape[1]))
        np.add.at(sums, self.point_of_scan, features)
        return (sums / np.bincount(self.point_of_scan)[:, None]).astype(features.dtype)

    def words(self, data: ScanData) -> list[str]:
        """Where each point was taken, in words, as far as it is known; of a unit also how many scans it has."""
        if self.unit == "scan":
            return [data.place(i) for i in self.chosen]
        facts = {"volume": ("eye", "visit", "volume"), "eye": ("eye",), "patient": ()}[self.unit]
        counts = np.bincount(self.point_of_scan)
        return [
            " · ".join([*filter(None, [data.place(i, facts)]), counted(int(count), "scan")])
            for i, count in zip(self.chosen, counts, strict=True)
        ]


@dataclass(frozen=True)
class Maps:
    """What the figures are made of; everything is in the order of ``points``.

    Attributes:
        features: row → (N, D).
        by_row: row → (seeds, N, 2).
        comparable: (N,) bool, points that silhouette and purity are measured on.
        k: neighbours; 0 where there is one patient only.
        near: row → (N, k) nearest points of other patients by features; empty without neighbours.
        bootstrap: of the comparable scans; None without any.
        frames: training state → (N, 2), aligned; empty without an animation.
    """

    data: ScanData
    points: Points
    comparable: np.ndarray
    features: dict[str, np.ndarray]
    by_row: dict[str, np.ndarray]
    k: int
    near: dict[str, np.ndarray]
    bootstrap: PatientBootstrap | None
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def chosen(self) -> np.ndarray:
        """(N,) positions in ``data`` of the scans that stand for the points."""
        return self.points.chosen

    @property
    def labels(self) -> np.ndarray:
        """(N,) classes, or ``UNLABELLED``."""
        return self.data.index.labels[self.chosen]

    @property
    def patients(self) -> np.ndarray:
        """(N,) patients."""
        return self.data.index.patients[self.chosen]


@dataclass(frozen=True)
class MapRow:
    """What is measured of a row's features and maps; None where it cannot be.

    Attributes:
        silhouette: −1 to 1; purity, map_purity: of the features and of the map, per cent.
        trustworthiness: of the map, 0 to 1; stability: ``scores.embeddings.agreement`` of several seeds.
    """

    silhouette: Interval | None
    purity: Interval | None
    map_purity: Interval | None
    trustworthiness: float
    stability: dict[str, tuple[float, float, float]] | None


@dataclass(frozen=True)
class FeatureDifference:
    """The model's features less those of a row, paired by scan; in the units of ``MapRow``."""

    silhouette: Interval
    purity: Interval


@dataclass(frozen=True)
class TrainingState:
    """A checkpoint, and the purity of its features in per cent; None where it cannot be measured."""

    weights: Weights
    purity: Interval | None


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap(Evaluation):
    """What ``embedding_map.json`` holds; chance: the purity of random neighbours, per cent."""

    evaluation: str = "embedding_map"
    rows: dict[str, MapRow]
    differences: dict[str, FeatureDifference]
    chance: float | None
    training: dict[str, TrainingState]
    verdicts: list[str]

    def as_json(self) -> dict[str, Any]:
        """Without what could not be measured."""
        values = super().as_json()
        for part in ("rows", "training"):
            values[part] = {
                name: {key: value for key, value in row.items() if value is not None}
                for name, row in values[part].items()
            }
        return values

    @property
    def scans(self) -> str:
        """In words, how many."""
        counts, split = self.data["sets"]["scans"], self.data["split"]
        which = "all splits" if split == "all" else f"{split} split"
        patients = f"{counts['patients']:,} patient{'' if counts['patients'] == 1 else 's'}"
        if points := self.data["sets"].get("points"):
            units = counted(points["scans"], self.settings["unit"])
            return f"{which}, {units} (means of {counted(counts['scans'], 'scan')}) of {patients}"
        return f"{which}, {counted(counts['scans'], 'scan')} of {patients}"


def report(result: EmbeddingMap) -> str:
    """The result as text: what was used, one table, and what it does not let one say."""
    data, settings = result.data, result.settings
    umap, seeds, resamples = settings["umap"], len(settings["seeds"]), settings["bootstrap"]["resamples"]
    counts = data["sets"].get("points", data["sets"]["scans"])["classes"]
    classes = ", ".join(f"{name} {count['scans']}" for name, count in counts.items() if count["scans"])
    lines = [
        *heading("UMAP of features", result),
        f"data: {data['folder']} · {result.scans}" + (f" ({classes})" if classes else ""),
        f"UMAP: n_neighbors {umap['n_neighbors']}, min_dist {umap['min_dist']:g}, {umap['metric']}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        "",
    ]
    purity = f"{settings['k']}-NN purity %"
    measures = ["silhouette", purity, "map's purity %", "trustworthiness", "overlap of seeds %", "Procrustes of seeds"]
    rows = []
    for name, row in result.rows.items():
        measured = [show(row.silhouette, 3), show(row.purity), show(row.map_purity), f"{row.trustworthiness:.3f}"]
        stability = ["", ""]
        if row.stability:
            overlap = [100 * value for value in row.stability["overlap"]]
            stability = ["{:.0f} ({:.0f}–{:.0f})".format(*overlap)]
            stability.append("{:.2f} ({:.2f}–{:.2f})".format(*row.stability["procrustes"]))
        rows.append([name, *measured, *stability])
    if result.chance is not None:
        rows.append(["chance", "", f"{result.chance:.1f}", "", "", "", ""])
    for name, row in result.differences.items():
        rows.append([name, show(row.silhouette, 3, signed=True), show(row.purity, signed=True), "", "", "", ""])
    lines.append(table(["", *measures], rows))
    if resamples and result.differences:
        lines.append(f"[95 % interval, {resamples} resamples of patients]  (lowest–highest of pairs of seeds)")
    if trained := [[name, show(state.purity)] for name, state in result.training.items() if state.purity]:
        lines += ["", table(["training", purity], trained)]
    return "\n".join([*lines, *closing(result, result.verdicts)])


def write_results(result: EmbeddingMap, maps: Maps, folder: Path, projector: Path | None) -> list[str]:
    """Write figure, page, coordinates, animation, projector export and ``embedding_map.json`` into a folder.

    ``maps.npz`` holds ``row0`` … in the order of the JSON file's ``rows``, each (seeds, N, 2); ``frame0`` … (N, 2) in
    the order of ``training``; and ``files``, ``labels`` (−1 without a class) and ``patients`` of the N scans, those in
    the middle where points are units.

    Args:
        projector: folder of the export for TensorBoard's projector; None: there is none.

    Returns:
        the names of what was written.
    """
    index, k = maps.data.index, maps.k
    unlabelled = maps.labels == UNLABELLED
    marked = marks(index.class_names, bool(unlabelled.any()))
    labels = np.where(unlabelled, len(index.class_names), maps.labels)
    title, written = f"{result.data['folder'].name}, {result.scans}", ["maps.png"]
    panels = []
    for name, drawn in maps.by_row.items():
        purity = result.rows[name].purity
        caption = f"{k}-NN purity of the features {show(purity)} %" if purity else ""
        shown = f"{name}: {result.model['source']}" if name == MODEL else name
        panels.append(Panel(shown, (Frame(caption, drawn[0]),), maps.near.get(name)))
    draw_panels(panels, marked, labels, result.notice + title, folder / "maps.png")
    if maps.frames:
        purities = [result.training[name].purity for name in maps.frames]
        captions = [f" · {k}-NN purity {purity.point:.1f} %" if purity else "" for purity in purities]
        frames = zip(maps.frames.items(), captions, strict=True)
        training = Panel("over training", tuple(Frame(name + text, points) for (name, points), text in frames))
        animate(training, marked, labels, result.notice + title, folder / "training.gif")
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
        keep = _shown(len(labels))
        images = resize_all((maps.data.scans[i] for i in maps.chosen[keep]), (_SPRITE, _SPRITE))[:, 0].numpy()
        classes = [marked[label].name for label in labels]
        metadata = np.stack([classes, maps.patients, index.splits[maps.chosen], files], axis=1)[keep].tolist()
        features = {name: rows[keep] for name, rows in maps.features.items()}
        columns = ("class", "patient", "split", "file")
        result.notes.extend(write_projector(features, columns, metadata, images, projector))
    write_json(result, folder / "embedding_map.json")
    return [*written, "embedding_map.json"]


def _shown(n: int) -> np.ndarray:
    """Positions of the scans that fit on a page: all, or ``MOST_SHOWN`` drawn at random."""
    return np.sort(generator("scans of a page").permutation(n)[:MOST_SHOWN])


def _page(
    result: EmbeddingMap, maps: Maps, panels: list[Panel], marked: list[Mark], labels: np.ndarray, title: str
) -> str:
    index, notes, keep = maps.data.index, [*result.verdicts, *result.notes], _shown(len(labels))
    unit = maps.points.unit
    if len(keep) < len(labels):
        notes.append(f"{len(keep):,} of {len(labels):,} {unit}s are on this page, and no nearest ones")
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
    if any(places := maps.points.words(maps.data)):
        scans["place"] = [places[i] for i in keep]
    data = page_data(panels, marked, labels[keep], maps.k, scans, unit)
    return page(f"UMAP · {title}", result.data["notice"], notes, data)
