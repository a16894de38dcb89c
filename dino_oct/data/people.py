"""Patients of scans by what folders, tables and names say."""

import datetime
import re
from collections import Counter
from pathlib import PurePosixPath

from dino_oct.data.rows import ScanRows, examples, holder, number, plain

# CLASS-PATIENT-N; the patient is the number alone: CNV-53018-1 and DRUSEN-53018-2 come from one person.
_SCAN_NAME = re.compile(r"^(?P<label>[^-/]+)-(?P<patient>\d+)-\d+$")
_DATES = ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%y%m%d", "%d%m%y")  # 8 digits, then 6
_YEARS = range(1990, 2040)  # of plausible dates


def name_people(rows: ScanRows) -> None:
    """Give each scan its patient (else the file's own path) and list the files named after another class.

    Puts ``rows.about_people``: what a user should know about how patients were told.
    """
    files, given = rows["file"], [number(name) for name in rows["patient"]]
    patients = [name or patient_of(file) for file, name in zip(files, given, strict=True)]
    numbers = {file: match["patient"] for file in files if (match := _match(file))}
    dated = {file for file, name in zip(files, given, strict=True) if not name and file in numbers}
    are_dates = _are_dates({numbers[file] for file in dated}, len(dated))
    if are_dates:  # every number is a date, six digits and years included
        patients = [plain(holder(file)) if file in dated else name for file, name in zip(files, patients, strict=True)]
    of_their_own = {holder(file) for file, name in zip(files, patients, strict=True) if name == plain(holder(file))}
    dated = {holder(file) for file in dated} & of_their_own
    n_files = len(set(map(holder, files)))
    own = "each such file counts as a patient of its own, so one person's scans may be in several splits"
    notes = []
    if dated:
        shown = examples(sorted({match["patient"] for file in dated if (match := _match(file))}))
        notes.append(
            f"{len(dated):,} of {n_files:,} file names have a date ({shown}) where CLASS-PATIENT-N has the "
            f"patient's number: {own}"
        )
    if len(of_their_own) > len(dated):
        notes.append(
            f"{len(of_their_own) - len(dated):,} of {n_files:,} file names carry no patient number (CLASS-PATIENT-N): "
            f"{own}"
        )
    rows.columns["patient"] = patients
    rows.about_people = notes + ([] if rows.is_told else _restart_notes(rows))
    classes = {label.casefold() for label in rows["label"]} - {""}
    for file, label in zip(files, rows["label"], strict=True):
        named = match["label"].strip().casefold() if label and (match := _match(file)) else label.casefold()
        if named in classes and named != label.casefold():
            rows.mislabelled.append(file)


def patient_of(file: str) -> str:
    """Patient of a file by its name: the number in `CLASS-PATIENT-N`, else the path itself (a patient of its own).

    An eight-digit date is no patient number. The B-scans of a volume have the volume's name.
    """
    match = _match(file)
    if match and not (len(match["patient"]) == 8 and _is_date(match["patient"])):
        return str(int(match["patient"]))
    return plain(holder(file))


def _match(file: str) -> re.Match[str] | None:
    return _SCAN_NAME.match(PurePosixPath(file).stem)


def _is_date(digits: str) -> bool:
    """Whether digits are a plausible date."""
    return any(_parses(digits, form) for form in _DATES)


def _parses(digits: str, form: str) -> bool:
    if len(digits) != (8 if "%Y" in form else 6):
        return False
    try:
        return datetime.datetime.strptime(digits, form).year in _YEARS
    except ValueError:
        return False


def _are_dates(numbers: set[str], n_files: int) -> bool:
    """Whether all numbers are dates of one form, or a few years over many files; one number alone may be either."""
    if not numbers:
        return False
    if all(len(number) == 4 for number in numbers):
        return len(numbers) <= 8 and n_files >= 10 * len(numbers) and all(int(number) in _YEARS for number in numbers)
    return any(all(_parses(number, form) for number in numbers) for form in _DATES)


def _restart_notes(rows: ScanRows) -> list[str]:
    """A note where patient numbers begin anew in every class, so that a number may stand for several people."""
    of_name: dict[str, set[int]] = {}
    for label, patient in zip(rows["label"], rows["patient"], strict=True):
        if label and patient.isdecimal():
            of_name.setdefault(label.casefold(), set()).add(int(patient))
    of_class = [numbers for numbers in of_name.values() if len(numbers) > 2]
    if len(of_class) < 2:
        return []
    counts = Counter(number for numbers in of_class for number in numbers)
    repeated = sum(count > 1 for count in counts.values())
    is_dense = all(max(numbers) - min(numbers) < 3 * len(numbers) for numbers in of_class)
    if not is_dense or repeated < 0.5 * min(map(len, of_class)):
        return []
    return [
        f"{repeated:,} patient numbers occur in several classes and numbers follow each other closely, as if numbering "
        "began anew in each class: equal numbers count as one person; if they are not, put the class into the number "
        "(CNV 17 as 100017) or the scans of a patient into a folder CLASS/PATIENT/"
    ]
