"""The table of a folder's scans, to be corrected instead of renaming files.

    python dino_oct/data/table.py DIR --out scans.csv

writes what the toolkit understands of each scan. Correct it, then give it beside the folder: ``--data DIR
--dataset.table scans.csv``; or put it into the folder and give it alone: ``--data DIR/scans.csv``.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from dino_oct.cli import run_command
from dino_oct.data.index import DatasetConfig, ScanIndex, index_scans, is_own_patient
from dino_oct.data.rows import COLUMNS, FACTS
from dino_oct.errors import InputError
from dino_oct.files import write_whole
from dino_oct.limits import Name, NewPath


@dataclass
class TableOptions:
    """Write the table of a folder's scans: file, label, patient, eye, visit, volume, slice, device, split."""

    folder: tyro.conf.Positional[Name]
    """Folder of scans, or a table of them."""
    out: NewPath = Path("scans.csv")
    """File to write: .csv, .tsv or .parquet."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


def table_of(index: ScanIndex) -> dict[str, list[str]]:
    """Name of ``rows.COLUMNS`` → values, as ``columns.read_table`` reads them. The split is the published one; a
    patient that is the file itself is not known and stays empty."""
    names = [*index.class_names, ""]  # UNLABELLED is the last
    patients = np.where(is_own_patient(index), "", index.patients)
    values = {
        "file": list(index.files),
        "label": [names[label] for label in index.labels.tolist()],
        "patient": patients.tolist(),
        "split": index.folder_splits.tolist(),
        **{name: index.fact(name).tolist() for name in FACTS},
    }
    return {name: values[name] for name in COLUMNS}


def main(options: TableOptions) -> None:
    """Write the table; say how the folder was read and what is in it."""
    import pandas as pd

    suffix = options.out.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"--out {options.out}: a table ends in .csv, .tsv or .parquet")
    index = index_scans(options.folder, options.dataset)
    frame = pd.DataFrame(table_of(index))
    if suffix == ".parquet":
        content = frame.to_parquet(index=False)
    else:
        content = frame.to_csv(index=False, sep="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, content)
    print(f"layout: {index.how}")
    for note in index.notes:
        print(f"note: {note}".encode(errors="backslashreplace").decode())
    known = ", ".join(f"{name} {int((frame[name] != '').sum()):,}" for name in COLUMNS if (frame[name] != "").any())
    print(f"{options.out}: {len(index):,} scans; known of: {known}")


if __name__ == "__main__":
    run_command(main, TableOptions)
