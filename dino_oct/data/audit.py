"""Audit of a folder of scans: what is in it, what is broken, and what would flatter a result.

    python dino_oct/data/audit.py DIR --json FILE
    python dino_oct/data/audit.py DIR --fix DIR/fixed.csv

Counts per class, patient, eye, visit, volume, device and split, image sizes, files left out, labels that differ within
an eye, exact copies, near-duplicates across patients, patients shared between splits or classes, and how well the class
is told by what is no anatomy. ``--fix`` writes a table without the leaks.
"""

import json
import sys
from dataclasses import dataclass, field

import tyro

from dino_oct.cli import run_command
from dino_oct.data.index import DatasetConfig
from dino_oct.errors import InputError
from dino_oct.files import write_whole
from dino_oct.limits import Name, NewPath
from dino_oct.words import counted


@dataclass
class Options:
    """Check a folder of scans: counts, bad files, duplicates, leaks between splits, shortcuts."""

    folder: tyro.conf.Positional[Name]
    """OCT2017-style tree, any folder of images, a table of scans, or one volume."""
    json: NewPath | None = None
    """Also write all numbers and lists to this file."""
    fix: NewPath | None = None
    """Also write a table (.csv, .tsv or .parquet) in which nobody is in two splits: people with copies of each other
    are one patient. Give it with --data FILE."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


def main(options: Options) -> None:
    """Print the report and, if asked, write it as JSON and write the corrected table."""
    from dino_oct.data.audit_text import render
    from dino_oct.data.cache import open_cache
    from dino_oct.data.checks import audit_scans
    from dino_oct.data.fix import fixed_table
    from dino_oct.data.index import index_scans
    from dino_oct.data.table import check_suffix, write_table

    if options.fix:
        check_suffix(options.fix, "--fix")
        if options.dataset.anonymise:
            raise InputError("--fix: a table needs the files' own names; leave --dataset.anonymise out")
    index, cache = open_cache(index_scans(options.folder, options.dataset), options.dataset)
    report = {**audit_scans(index, cache, options.dataset), "folder": str(options.folder)}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.json, json.dumps(report, indent=1))
    # File names may hold bytes that no encoding explains; they are shown escaped.
    print(render(report).encode(errors="backslashreplace").decode())
    if options.json:
        print(f"\nall numbers: {options.json}")
    if options.fix:
        fixed = fixed_table(index, cache, options.fix.parent, progress=True)
        write_table(options.fix, fixed.columns)
        for file, reason in fixed.left_out:
            print(f"left out: {file}: {reason}".encode(errors="backslashreplace").decode(), file=sys.stderr)
        print("", *(fixed.changes or ("nothing to correct",)), sep="\n")
        print(f"{options.fix}: {counted(len(fixed.columns['file']), 'scan')}; use it with --data {options.fix}")


if __name__ == "__main__":
    run_command(main, Options)
