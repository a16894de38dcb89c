"""One way from ``--data`` to scans: folder or phantoms → index → cache."""

from collections.abc import Callable

from dino_oct.data.cache import ScanCache, cache_root, open_cache
from dino_oct.data.index import DatasetConfig, ScanIndex, index_scans
from dino_oct.data.phantom import PhantomConfig, phantom_folder


def load_scans(
    data: str, dataset: DatasetConfig, phantom: PhantomConfig, say: Callable[[str], None]
) -> tuple[ScanIndex, ScanCache]:
    """Index a folder (or draw the phantoms), decode it once, and say what was found and left out.

    Args:
        data: an OCT2017-style folder, any folder of images, or ``phantom``.

    Raises:
        InputError: missing or empty folder, or no readable scan in it.
    """
    folder = phantom_folder(phantom, cache_root(dataset)) if data == "phantom" else data
    index = index_scans(folder, dataset)
    for note in index.notes:
        say(f"note: {note}")
    index, scans = open_cache(index, dataset)
    for note in scans.notes:
        say(f"note: {note}")
    say(f"data: {'PHANTOMS (synthetic scans)' if data == 'phantom' else data} · {scans.summary()}")
    counts = {split: index.positions(split) for split in ("train", "val", "test")}
    patients = {split: len(set(index.patients[positions])) for split, positions in counts.items()}
    say("splits: " + " · ".join(f"{s} {len(p):,} scans of {patients[s]:,} patients" for s, p in counts.items()))
    return index, scans
