"""Names of files, folders and people taken for identities: pseudonyms in their place."""

import re
from pathlib import Path, PurePosixPath

from dino_oct.data.identity import pseudonym
from dino_oct.data.rows import ScanRows, holder, plain

_LIST = re.compile(r"\([^()]*\)|: [^:]*$")  # where notes give examples
_ITEM = re.compile(r"[^(),;:\s]([^(),;:]*[^(),;:\s])?")
_FILE = re.compile(r"[^.]/|\w\.\w{1,8}$")


def anonymised(rows: ScanRows, root: Path, key: bytes) -> ScanRows:
    """Rows that name no file, folder, patient, visit or group as the user does; classes, splits and devices stay.

    A file becomes ``PSEUDONYM.SUFFIX``; visits and volumes are numbered within a patient in the order of their names.
    Masks are forgotten: they are found by names.
    """
    hidden: dict[str, str] = {}  # what the user wrote → what notes show

    def hide(text: str) -> str:
        shown = pseudonym(text, key) if text else ""
        hidden.setdefault(text, shown)
        return shown

    def hide_file(file: str) -> str:
        whole = PurePosixPath(holder(file))
        shown = shown_file(whole, key)
        for name in (str(whole), whole.name, whole.stem):
            hidden.setdefault(name, shown)
        for folder in set(whole.parts[:-1]) - keep:
            hide(folder)
        return shown + file.removeprefix(holder(file))

    keep = set(rows["label"]) | set(rows["split"])
    result = ScanRows(rows.no_columns(), how=rows.how, splits_from=rows.splits_from, is_told=rows.is_told)
    visits, volumes = _numbers(rows, "visit"), _numbers(rows, "volume")
    for i, file in enumerate(rows["file"]):
        row = {name: values[i] for name, values in rows.columns.items()}
        row["file"], row["group"], row["mask"] = hide_file(file), hide(row["group"]), ""
        is_own = row["patient"] == plain(holder(file))
        row["patient"] = plain(holder(row["file"])) if is_own else hide(row["patient"])
        row["visit"], row["volume"] = visits[i], volumes[i]
        result.add(**row)
        result.stored[row["file"]] = rows.stored.get(file, root / file)
    result.mislabelled = [hide_file(file) for file in rows.mislabelled]
    result.left_out = [(hide_file(file), reason) for file, reason in rows.left_out]
    names = sorted((name for name in hidden if re.search(r"[^\W\d]", name)), key=len, reverse=True)

    def hide_in(note: str) -> str:
        for name in names:
            if name in note:
                note = note.replace(name, hidden[name])
        return _LIST.sub(lambda found: _ITEM.sub(lambda item: hide_item(item[0]), found[0]), note)

    def hide_item(item: str) -> str:
        return hidden.get(item) or (pseudonym(item, key) + PurePosixPath(item).suffix if _FILE.search(item) else item)

    result.notes, result.about_people = map(hide_in, rows.notes), map(hide_in, rows.about_people)
    result.notes, result.about_people = list(result.notes), list(result.about_people)
    return result


def shown_file(file: PurePosixPath, key: bytes) -> str:
    """What stands for a file, by its path below the folder."""
    return pseudonym(str(file), key, 16) + file.suffix.lower()


def _numbers(rows: ScanRows, column: str) -> list[str]:
    """Numbers in place of the values of a column, from 1 within each patient; "" stays."""
    pairs = list(zip(rows["patient"], rows[column], strict=True))
    number: dict[tuple[str, str], str] = {}
    count: dict[str, int] = {}
    for patient, value in sorted(set(pairs), key=lambda pair: (pair[0], len(pair[1]), pair[1])):
        if value:
            count[patient] = count.get(patient, 0) + 1
            number[patient, value] = str(count[patient])
    return [number.get(pair, "") for pair in pairs]
