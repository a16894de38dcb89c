"""Sets of OCT scans whose folders do not say all that is known, and the names of those whose folders do.

- A folder that ``dino_oct/data/export.py`` wrote: its table.
- OCTDL (Kulyabin et al. 2024): class folders, and a CSV file with patient and eye of each name.
- OLIVES (Prabhushankar et al. 2022): trial/[arm/]patient/visit/eye/slice; Prime is diabetic retinopathy, TREX is DME.
"""

import re
from collections import Counter
from pathlib import Path, PurePosixPath

from dino_oct.data.columns import column_names, read_cells, read_table
from dino_oct.data.layout import image_files, read_layout
from dino_oct.data.rows import SIZES, ScanRows, eye_of, number
from dino_oct.errors import InputError
from dino_oct.words import counted

_OCTDL = {"file_name", "disease", "patient_id", "eye"}  # columns of its CSV file
_OLIVES = {"prime_full": "DR", "trex dme": "DME"}  # its trials → class
_OLIVES_VISIT = re.compile(r"[wv]\d+", re.I)
_CLASSES = {
    "OCT2017": {"cnv", "dme", "drusen", "normal"},
    "OCTID": {"normal", "amrd", "csr", "dr", "mh"},
    "NEH": {"cnv", "drusen", "normal"},
    "Srinivasan et al. 2014": {"amd", "dme", "normal"},
}


def read_folder(folder: Path) -> ScanRows:
    """Rows of a folder, by what its published set keeps beside the folders where it is one of these.

    Raises:
        InputError: as ``read_layout``.
    """
    if folder.is_dir():
        if (exported := folder / "scans.csv").is_file() and {"volume", *SIZES[:2]} <= set(column_names(exported)):
            return read_table(exported, folder, ())
        if names := _olives(folder):
            return names
        rows = read_layout(folder)
        return _with_octdl_table(folder, rows) or _named(rows)
    return read_layout(folder)


def _named(rows: ScanRows) -> ScanRows:
    """Rows with the name of the set that has this tree and these classes."""
    classes = {label.casefold() for label in rows["label"]} - {""}
    is_numbered = sum(bool(re.match(r"[^-/]+-\d+-\d+$", PurePosixPath(file).stem)) for file in rows["file"])
    if classes == _CLASSES["OCT2017"] and is_numbered > 0.8 * len(rows):
        name = "OCT2017"
    elif len(classes & _CLASSES["OCTID"]) >= 4 and classes <= _CLASSES["OCTID"]:
        name = "OCTID"
    elif classes == _CLASSES["NEH"] and all(rows["patient"]):
        name = "NEH"
    elif classes == _CLASSES["Srinivasan et al. 2014"] and all(rows["patient"]):
        name = "Srinivasan et al. 2014"
    elif classes and any(rows["split"]):
        name = "a split tree, as of MIRAGE and RETFound"
    else:
        return rows
    rows.how = f"{name}: {rows.how}"
    return rows


def _with_octdl_table(folder: Path, rows: ScanRows) -> ScanRows | None:
    """Rows with patient and eye of OCTDL's CSV file, in the folder or beside it."""
    for table in sorted([*folder.glob("*.csv"), *folder.parent.glob("OCTDL*.csv")]):
        if not set(column_names(table)) >= _OCTDL:
            continue
        cells = read_cells(table)
        known = {
            PurePosixPath(name).stem: (number(patient.strip()), eye_of(eye))
            for name, patient, eye in zip(cells["file_name"], cells["patient_id"], cells["eye"], strict=True)
        }
        missing = 0
        for i, file in enumerate(rows["file"]):
            stem = PurePosixPath(file).stem
            missing += stem not in known
            rows["patient"][i], rows["eye"][i] = known.get(stem, ("", ""))
        if missing == len(rows):
            continue
        rows.how = f"OCTDL: {rows.how}; patient and eye from {table.name}"
        if missing:
            rows.notes.append(f"{counted(missing, 'image')} not in {table.name}")
        return rows
    return None


def _olives(folder: Path) -> ScanRows | None:
    """Rows of OLIVES' tree; None where the folder has none of its trials."""
    tops = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    if not tops & _OLIVES.keys():
        return None
    files, notes = image_files(folder)
    rows = ScanRows(notes=notes)
    for file in files:
        trial, *between, name = PurePosixPath(file).parts
        stem = PurePosixPath(name).stem
        digits = re.search(r"\d+$", stem)
        if trial.lower() not in _OLIVES:
            rows.left_out.append((file, "outside OLIVES' trials"))
        elif "fundus" in stem.lower() or not digits:
            rows.left_out.append((file, "no B-scan"))
        elif len(between) < 3 or not eye_of(between[-1]) or not _OLIVES_VISIT.fullmatch(between[-2]):
            rows.left_out.append((file, "not in a folder PATIENT/VISIT/EYE"))
        else:
            patient, visit, eye = between[-3], between[-2], eye_of(between[-1])
            person = f"{trial.split()[0].split('_')[0]} {patient}"
            rows.add(
                file, label=_OLIVES[trial.lower()], patient=person, eye=eye, visit=visit, slice=number(digits[0]),
                volume=f"{person} {visit} {eye}",
            )  # fmt: skip
    if not len(rows):
        raise InputError(f"{folder}: no images of OLIVES' tree (TRIAL/PATIENT/VISIT/EYE/FILE); "
                         f"--dataset.layout folders reads it as any other folder")  # fmt: skip
    rows.how = f"OLIVES: {', '.join(sorted(Counter(rows['label'])))} by trial; patient, visit and eye from folders"
    rows.note_left_out()
    return rows
