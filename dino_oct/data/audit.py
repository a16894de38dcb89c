"""Audit of a folder of scans: what is in it, what is broken, and what would flatter a result.

    python dino_oct/data/audit.py DIR --json FILE

Counts per class, patient and split, image sizes, files left out, exact and near duplicates, patients shared between
splits or classes, and how well image size, white border or brightness alone predict the class.
"""

import json
from dataclasses import dataclass, field

import tyro

from dino_oct.cli import run_command
from dino_oct.data.index import DatasetConfig
from dino_oct.files import write_whole
from dino_oct.limits import Name, NewPath


@dataclass
class AuditOptions:
    """Check a folder of scans: counts, bad files, duplicates, patient leaks, shortcuts."""

    folder: tyro.conf.Positional[Name]
    """OCT2017-style tree, or any folder of images."""
    json: NewPath | None = None
    """Also write all numbers and lists to this file."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


def main(options: AuditOptions) -> None:
    """Print the report and, if asked, write it as JSON."""
    from dino_oct.data.checks import audit, render

    report = audit(options.folder, options.dataset)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.json, json.dumps(report, indent=1))
    # File names may hold bytes that no encoding explains; they are shown escaped.
    print(render(report).encode(errors="backslashreplace").decode())
    if options.json:
        print(f"\nall numbers: {options.json}")


if __name__ == "__main__":
    run_command(main, AuditOptions)
