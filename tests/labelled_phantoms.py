"""Phantoms with a table of what their classes show: several labels a scan, some unknown, and numbers to predict."""

from pathlib import Path

from dino_oct.data.index import index_scans
from dino_oct.data.phantom import PhantomConfig, write_phantoms

FINDINGS = {"CNV": {"fluid", "thickening"}, "DME": {"fluid", "thickening", "cysts"}, "DRUSEN": {"drusen"}, "NORMAL": {}}
NAMES = ("cysts", "drusen", "fluid", "thickening")


def write_labelled(folder: Path, wide: bool = True) -> Path:
    """Draw 32 patients and write their table: labels in a column each, beside one that no scan has, or in one cell.

    In columns, fluid of every fourth scan is not known, nor its thickness.
    """
    write_phantoms(folder, PhantomConfig(patients=32, scans_per_patient=2, size=(32, 40)))
    index = index_scans(folder)
    columns = ("file", "patient", "split", *((*NAMES, "hole", "thickness") if wide else ("label",)))
    lines = [",".join(columns)]
    for i, file in enumerate(index.files):
        shown = FINDINGS[index.class_names[index.labels[i]]]
        row = {"file": file, "patient": index.patients[i], "split": index.splits[i], "hole": "0"}
        row |= {name: str(int(name in shown)) for name in NAMES} | {"label": ";".join(sorted(shown)) or "none"}
        row["thickness"] = f"{3 + len(shown) + i % 5 / 10:.1f}"
        if i % 4 == 0:
            row |= {"fluid": "", "thickness": ""}
        lines.append(",".join(row[name] for name in columns))
    table = folder / ("wide.csv" if wide else "ragged.csv")
    table.write_text("\n".join(lines) + "\n")
    return table


COLUMNS = ("--dataset.columns", f"labels={','.join(NAMES)},hole", "targets=thickness")
