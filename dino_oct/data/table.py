"""The table of a folder's scans, to be corrected instead of renaming files.

    python dino_oct/data/table.py DIR --out scans.csv

writes what the toolkit understands of each scan. Correct it, then give it beside the folder: ``--data DIR
--dataset.table scans.csv``; or put it into the folder and give it alone: ``--data DIR/scans.csv``.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

from dino_oct.cli import run_command
from dino_oct.data.columns import is_table
from dino_oct.data.index import DatasetConfig, ScanIndex, index_scans, is_own_patient
from dino_oct.data.rows import COLUMNS, FACTS
from dino_oct.errors import InputError
from dino_oct.files import write_whole
from dino_oct.limits import Name, NewPath
from dino_oct.words import counted


@dataclass
class Options:
    """Write the table of a folder's scans: file, label, patient, eye, visit, volume, slice, device, split."""

    folder: tyro.conf.Positional[Name]
    """Folder of scans, a table of them, or one volume."""
    out: NewPath = Path("scans.csv")
    """File to write: .csv, .tsv or .parquet."""
    identities: NewPath | None = None
    """Also write who the pseudonyms are, as CSV: for the owner of the scans alone, do not pass it on."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


def table_of(index: ScanIndex) -> dict[str, list[str]]:
    """Name of ``rows.COLUMNS`` → values, as ``columns.read_table`` reads them, then those of several labels and of
    targets. The split is the published one; a patient that is the file itself is not known and stays empty."""
    names = [*index.class_names, ""]  # UNLABELLED is the last
    patients = np.where(is_own_patient(index), "", index.patients)
    values = {
        "file": list(index.files),
        "label": [names[label] for label in index.labels.tolist()],
        "patient": patients.tolist(),
        "split": index.folder_splits.tolist(),
        **{name: index.fact(name).tolist() for name in FACTS},
    }
    if index.multilabels:
        del values["label"]
    return {name: values[name] for name in COLUMNS if name in values} | index.further_columns()


def write_table(file: Path, columns: dict[str, list[str]]) -> None:
    """Write a table of scans, whole or not at all.

    Args:
        file: CSV, TSV or Parquet by its suffix (``check_suffix``).
        columns: as ``table_of`` gives them.
    """
    import pandas as pd

    frame, suffix = pd.DataFrame(columns), file.suffix.lower()
    if suffix == ".parquet":
        content = frame.to_parquet(index=False)
    else:
        content = frame.to_csv(index=False, sep="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)


def check_suffix(file: Path, option: str) -> None:
    """Raise InputError unless a file is named as a table."""
    if not is_table(file):
        raise InputError(f"{option} {file}: a table ends in .csv, .tsv or .parquet")


def main(options: Options) -> None:
    """Write the table; say how the folder was read and what is in it."""
    check_suffix(options.out, "--out")
    if options.out.exists():
        raise InputError(f"--out {options.out}: is there, and labels may be filled in; give another name or remove it")
    index = index_scans(options.folder, options.dataset)
    columns = table_of(index)
    write_table(options.out, columns)
    if options.identities:
        from dino_oct.data.owner import write_identities

        named = index_scans(options.folder, replace(options.dataset, anonymise=False))
        count = write_identities(options.identities, named, options.dataset)
        print(f"{options.identities}: {count:,} names behind pseudonyms; keep it secret")
    print(f"layout: {index.how}")
    for note in index.notes:
        print(f"note: {note}".encode(errors="backslashreplace").decode())
    counts = {name: sum(map(bool, values)) for name, values in columns.items()}
    known = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    print(f"{options.out}: {counted(len(index), 'scan')}; known of: {known}")


if __name__ == "__main__":
    run_command(main, Options)
