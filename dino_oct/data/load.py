"""One way from ``--data`` to scans: folder or phantoms → index → cache."""

from collections.abc import Callable, Sequence
from typing import Any

from dino_oct.data.cache import ScanCache, open_cache
from dino_oct.data.index import DatasetConfig, ScanIndex, cache_root, index_scans
from dino_oct.data.phantom import TABLE, PhantomConfig, damaged_files, phantom_folder
from dino_oct.data.run_table import ScanRow, by_table, without_copies_of_held_out
from dino_oct.files import remove
from dino_oct.words import counted


def find_scans(data: str, dataset: DatasetConfig, phantom: PhantomConfig) -> ScanIndex:
    """Index a folder (or draw the phantoms) without decoding; arguments and errors as ``load_scans``."""
    if data != "phantom":
        return index_scans(data, dataset)
    folder = phantom_folder(phantom, cache_root(dataset))
    return index_scans(folder / TABLE if phantom.has_volumes else folder, dataset)


def load_scans(
    data: str,
    dataset: DatasetConfig,
    phantom: PhantomConfig,
    say: Callable[[str], None],
    table: Sequence[ScanRow] | None = None,
    index: ScanIndex | None = None,
) -> tuple[ScanIndex, ScanCache]:
    """Index a folder (or draw the phantoms), decode it once, and say what was found and left out.

    Args:
        data: an OCT2017-style folder, any folder of images, a table, one volume, or ``phantom``.
        table: of a run, whose splits hold (``by_table``); None: the settings' splits.
        index: from ``find_scans`` with the same settings; None: it is made here.

    Raises:
        InputError: missing or empty folder, or no readable scan in it.
    """
    index, scans = open_cache(index or find_scans(data, dataset, phantom), dataset)
    folder = index.root
    if data == "phantom" and (damaged := damaged_files(folder, index.files, scans.file_digests)):
        say(f"note: phantoms damaged, drawing again: {folder}/{damaged[0]} and {len(damaged) - 1} more")
        remove(folder)
        index, scans = open_cache(find_scans(data, dataset, phantom), dataset)
    index = without_copies_of_held_out(index, scans.digests)
    changes: list[str] = []
    if table is not None:
        index, changes = by_table(index, scans.file_digests, table)
    for note in index.notes:
        say(f"note: {note}")
    for change in changes:
        say(f"warning: {change}")
    if data != "phantom":
        say(f"layout: {index.how}")
    say(f"data: {'PHANTOMS (synthetic scans)' if data == 'phantom' else data} · {scans.summary()}")
    counts = {split: index.positions(split) for split in ("train", "val", "test")}
    patients = {split: len(set(index.patients[positions])) for split, positions in counts.items()}
    say(f"split: {index.split_rule}")
    say(
        "splits: "
        + " · ".join(f"{s} {counted(len(p), 'scan')} of {counted(patients[s], 'patient')}" for s, p in counts.items())
    )
    return index, scans


def scan_settings(dataset: DatasetConfig) -> dict[str, Any]:
    """What is done to a scan between its file and the image that a network gets, beside the resize: plain values."""
    return {
        "neutralise_borders": dataset.neutralise_borders,
        "max_side": dataset.max_side,
        "grey_range": dataset.grey_range,
    }
