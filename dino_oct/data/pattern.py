"""File names read by a regular expression with named groups."""

import re
from pathlib import PurePosixPath

from dino_oct.data.rows import COLUMNS, OF_LABEL, ScanRows, examples, read_value
from dino_oct.errors import InputError
from dino_oct.words import counted


def by_pattern(rows: ScanRows, pattern: str) -> ScanRows:
    """Rows of the files whose names fit a pattern; what its groups name replaces what folders said.

    Args:
        pattern: must fit a whole name, with or without its suffix; one with a slash, the whole path below the folder.

    Raises:
        InputError: not a regular expression, no group or an unknown one, no name that fits, or a value that a column
            cannot have.
    """
    option, names = f"--dataset.pattern '{pattern}'", [name for name in COLUMNS if name != "file"]
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{option}: not a regular expression: {error}") from None
    groups = list(expression.groupindex)
    if not groups or not set(groups) <= set(names):
        wrong = ", ".join(sorted(set(groups) - set(names))) or "none"
        raise InputError(f"{option}: its named groups (?P<NAME>…) must be among {', '.join(names)}; found {wrong}")
    replaced = {name for name in rows.columns if name.startswith(OF_LABEL)} if "label" in groups else set()
    kept = {name: [] for name in rows.columns if name not in replaced}
    fitting = ScanRows(kept, splits_from=rows.splits_from, notes=rows.notes, left_out=rows.left_out)
    fitting.is_told = rows.is_told and "patient" not in groups
    if "split" in groups:
        fitting.splits_from = "the splits in the names"
    unfitting = []
    for i, file in enumerate(rows["file"]):
        path = PurePosixPath(file)
        texts = (str(path.with_suffix("")), file) if "/" in pattern else (path.stem, path.name)
        match = next(filter(None, map(expression.fullmatch, texts)), None)
        if match is None:
            unfitting.append((file, "its name does not fit the pattern"))
            continue
        known = {name: rows[name][i] for name in kept if name != "file"}
        for name in groups:
            try:
                known[name] = read_value(name, match[name] or "")
            except ValueError as error:
                raise InputError(f"{option}: {file}: {name} {error}") from None
        fitting.add(file, **known)
    if not len(fitting):
        raise InputError(f"{option}: none of {len(unfitting):,} names fits it, such as {examples([unfitting[0][0]])}")
    fitting.how = f"{rows.how}; {', '.join(groups)} from the names"
    fitting.left_out += unfitting
    if unfitting:
        fitting.notes.append(
            f"{counted(len(unfitting), 'image')} left out, {unfitting[0][1]}: {examples([f for f, _ in unfitting])}"
        )
    return fitting
