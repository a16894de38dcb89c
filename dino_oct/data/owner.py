"""Who the pseudonyms are, for the owner of the scans alone."""

import csv
import io
import os
from pathlib import Path, PurePosixPath

from dino_oct.data.anonymising import shown_file
from dino_oct.data.decode import BadScan
from dino_oct.data.identity import identity_key, pseudonym
from dino_oct.data.index import DatasetConfig, ScanIndex, cache_root, is_own_patient
from dino_oct.data.rows import holder
from dino_oct.data.volumes import group_series, holds_volume, read_volumes
from dino_oct.files import write_whole

COLUMNS = ("pseudonym", "stands_for", "name")


def write_identities(file: Path, index: ScanIndex, config: DatasetConfig) -> int:
    """Write a CSV file, for its owner alone, of the pseudonyms of an index and what they stand for.

    Of volumes' headers: number, names and birth date as they are there. With ``anonymise`` in use elsewhere: files and
    patients as they are named.

    Args:
        index: of these settings without ``anonymise``.

    Returns:
        Number of rows.
    """
    key = identity_key(cache_root(config))
    rows: dict[tuple[str, str, str], None] = {}
    holders = list(dict.fromkeys(map(holder, index.files)))
    volumes = [name for name in holders if holds_volume(index.root / name)]
    for group in group_series(index.root / name for name in volumes):
        try:
            found = read_volumes(group)
        except BadScan:
            continue
        for volume in found:
            if volume.identity:
                who = " ".join(volume.identity.split("\x1f")).strip()
                rows[pseudonym(volume.identity, key), "patient", who] = None
    for name in holders:
        rows[shown_file(PurePosixPath(name), key), "file", name] = None
    own = is_own_patient(index)
    for name in dict.fromkeys(index.patients[~own].tolist()):
        rows[pseudonym(name, key), "patient", name] = None
    with io.StringIO(newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        content = stream.getvalue()
    file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    write_whole(file, content)
    file.chmod(0o600)
    return len(rows)
