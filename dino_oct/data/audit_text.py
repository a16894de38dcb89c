"""What ``dino_oct/data/audit.py`` finds, as text."""

from collections import Counter
from typing import Any

from dino_oct.data.checks import SPREAD
from dino_oct.data.splits import SPLITS
from dino_oct.scores.bootstrap import FEW_PATIENTS
from dino_oct.words import counted

_SHOWN = 10  # examples printed of each finding; --json holds all
_GIVES_AWAY = {
    "brightness": "Brightness alone (mean, contrast and percentiles of a scan) gives the class away: a model could "
    "read the device or the exposure of each class. Lesions and swelling change it, too.",
    "noise": "Noise alone gives the class away: another device or averaging for each class. Compression counts, too.",
    "device": "The device alone gives the class away: judge each device apart.",
    "position": "The slice's number alone gives the class away: classes were taken from other places of the eye.",
}


def render(report: dict[str, Any]) -> str:
    """The findings of ``audit`` as readable text."""
    sections = [
        [f"{report['folder']}: {counted(report['scans']['found'], 'image')}, {report['scans']['usable']:,} usable"],
        _listed("left out", [f"{entry['file']}: {entry['reason']}" for entry in report["left_out"]]),
        _listed("named after another class than their folder (folder's class used)", report["mislabelled"]),
        [f"note: {note}" for note in report["notes"]],
        *(_split_table(name, counts) for name, counts in report["splits"].items()),
        _label_table(report["multilabels"]),
        _target_table(report["targets"]),
        _size_table(report["sizes"]),
        _border_table(report["borders"]),
        _listed("seem inverted (bright background, dark retina)", report["inverted"]),
        _patient_lines(report["units"], report["patients"], bool(report["multilabels"])),
        _device_table(report["devices"]),
        _eye_lines(report["eyes"]),
        _duplicate_lines(report["duplicates"]),
        (_label_shortcuts if report["multilabels"] else _shortcut_lines)(report["shortcut"], report["borders"]),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _listed(title: str, entries: list[str]) -> list[str]:
    more = [f"  … and {len(entries) - _SHOWN:,} more"] if len(entries) > _SHOWN else []
    return [f"{title}: {len(entries):,}", *(f"  {entry}" for entry in entries[:_SHOWN]), *more]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for row in [head, *rows]
        for cells in [list(zip(row, widths, strict=True))]
    ]


def _split_table(name: str, counts: dict) -> list[str]:
    what = "published folders" if name == "published" else "split used"
    rows = [
        [label, *(f"{parts[part]['scans']:,} ({parts[part]['patients']:,})" for part in (*SPLITS, "all"))]
        for label, parts in counts.items()
    ]
    return [f"scans (patients), {what}", *_table(["", *SPLITS, "all"], rows)]


def _label_table(labels: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    if not labels:
        return []
    rows = [
        [name, *(f"{count['scans']:,} ({count['patients']:,})" for count in counts.values())]
        for name, counts in labels.items()
    ]
    lines = ["scans (patients) of each label; a scan may have several", *_table(["", "yes", "no", "not known"], rows)]
    for kind, words in (("with", "with it"), ("without", "without it")):
        few = [name for name, counts in labels.items() if counts[kind]["patients"] < FEW_PATIENTS]
        if few:
            lines.append(f"  fewer than {FEW_PATIENTS} patients {words}: {', '.join(few)}")
    return lines


def _target_table(targets: dict[str, dict[str, Any]]) -> list[str]:
    if not targets:
        return []
    rows = [
        [name, f"{t['scans']:,} ({t['patients']:,})", *("–" if t[k] is None else f"{t[k]:.4g}" for k in SPREAD)]
        for name, t in targets.items()
    ]
    return ["targets, where known", *_table(["", "scans (patients)", *SPREAD], rows)]


def _size_table(sizes: dict[str, dict[str, int]]) -> list[str]:
    total: Counter[str] = Counter()
    for counts in sizes.values():
        total.update(counts)
    shown = [size for size, _ in total.most_common(6)]
    rows = [
        [
            label,
            *(f"{counts.get(size, 0):,}" for size in shown),
            f"{sum(n for s, n in counts.items() if s not in shown):,}",
        ]
        for label, counts in sizes.items()
    ]
    return ["image sizes (width x height)", *_table(["", *shown, "other"], rows)]


def _border_table(borders: dict[str, Any]) -> list[str]:
    rows = [
        [label, f"{n['with_border']:,} of {n['scans']:,}", f"{n['mean_area']:.1%}"]
        for label, n in borders["per_class"].items()
    ]
    lines = ["white borders in the files", *_table(["", "scans with one", "mean share of the image"], rows)]
    if borders["neutralised"]:
        lines.append(
            f"  after neutralising: {borders['left_after']:,} of {counted(borders['looked_at_after'], 'scan')} with one"
        )
    else:
        lines.append("  not neutralised (neutralise_borders is off)")
    return lines


def _range(each: dict[str, Any]) -> str:
    """Scans of each patient, eye or volume."""
    if each["least"] == each["most"]:
        return f"{each['least']:,} scan{'' if each['least'] == 1 else 's'} each"
    return f"{each['least']:,} to {each['most']:,} scans each (median {each['median']:g})"


def _patient_lines(units: dict[str, Any], patients: dict[str, Any], has_several_labels: bool) -> list[str]:
    lines = []
    for name, counts in units.items():
        each = counts["scans_each"]
        some = (
            f", known of {counted(counts['of_scans'], 'scan')}"
            if counts["of_scans"] < units["patients"]["of_scans"]
            else ""
        )
        lines.append(
            f"{name}: {counts['count']:,}, with {_range(each)}{some}; "
            + ", ".join(f"{part} {count:,}" for part, count in counts["splits"].items())
        )
    several = patients["in_several_classes"]
    if not has_several_labels:
        lines.append(f"  patients in more than one class: {len(several):,}{_some(several)}")
    for where, shared in patients["shared_between_splits"].items():
        count = len(shared["patients"])
        scans = ", ".join(f"{n:,} {part}" for part, n in shared["scans"].items())
        lines.append(
            f"  shared, {where}: {count:,}" + (f", with {scans} scans{_some(shared['patients'])}" if count else "")
        )
    return lines


def _device_table(devices: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    if not devices:
        return []
    names = list(next(iter(devices.values())))
    rows = [
        [label, *(f"{counts[name]['scans']:,} ({counts[name]['patients']:,})" for name in names)]
        for label, counts in devices.items()
    ]
    return ["scans (patients) of each device", *_table(["", *(name or "not known" for name in names)], rows)]


def _eye_lines(eyes: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for key, title in (
        ("at_one_visit", "labels differ within an eye at one visit"),
        ("over_visits", "labels differ within an eye over visits, as disease may"),
    ):
        if eyes[key]:
            lines += _listed(title, [_eye_line(entry) for entry in eyes[key]])
    return lines


def _eye_line(entry: dict[str, Any]) -> str:
    visit = f", visit {entry['visit']}" if "visit" in entry else ""
    labels = ", ".join(f"{label} {n:,} ({entry['files'][label]})" for label, n in entry["labels"].items())
    return f"patient {entry['patient']}, {entry['eye']}{visit}: {labels}"


def _some(names: list[str], most: int = 5) -> str:
    return f" ({', '.join(names[:most])}{', …' if len(names) > most else ''})" if names else ""


def _duplicate_lines(duplicates: dict[str, Any]) -> list[str]:
    exact, near = duplicates["exact"], duplicates["near"]
    groups, surplus = counted(len(exact["groups"]), "group"), counted(exact["surplus_scans"], "scan")
    lines = [f"exact duplicates: {groups}, {surplus} too many"]
    lines += _relation_lines(exact)
    lines += _listed(
        "near-duplicates of different patients (one place of one eye), pairs",
        [f"{first}  =  {second}  {correlation:.2f}" for first, second, correlation in near["pairs"]],
    )
    return lines + _relation_lines({name: pairs for name, pairs in near.items() if name != "across_patients"})


def _relation_lines(relations: dict[str, Any]) -> list[str]:
    lines = []
    for name, pairs in relations.items():
        if name.startswith("across_") and pairs:
            lines.append(f"  {name.replace('_', ' ')}: {counted(len(pairs), 'pair')}")
            lines += [f"    {first}  =  {second}" for first, second in pairs[:3]]
    return lines


def _label_shortcuts(shortcut: dict[str, Any], borders: dict[str, Any]) -> list[str]:
    lines = ["shortcut check: each label told without the shape of the retina (balanced accuracy, unseen patients)"]
    if shortcut["results"]:
        features = list(dict.fromkeys(r["features"] for r in shortcut["results"]))
        of_label: dict[str, dict[str, dict]] = {}
        for row in shortcut["results"]:
            of_label.setdefault(row["label"], {})[row["features"]] = row
        cells = [
            [name, *(_shortcut_cell(rows[f]) if f in rows else "" for f in features)] for name, rows in of_label.items()
        ]
        lines += [line.rstrip() for line in _table(["from", *features], cells)]
        told = [f"{r['label']} from {r['features']}" for r in shortcut["results"] if r["better_than_chance"]]
        lines.append(f"  * better than chance (50 %), by the 95 % interval: {', '.join(told) or 'none'}")
        if borders["neutralised"] and any("border" in words for words in told):
            lines.append("  White borders are neutralised here.")
    if shortcut["classes_left_out"]:
        lines.append(
            f"  not possible for {', '.join(shortcut['classes_left_out'])}: it takes five patients with it and five "
            "without"
        )
    return lines


def _shortcut_cell(row: dict[str, Any]) -> str:
    return f"{row['balanced_accuracy']:.0%}{'*' if row['better_than_chance'] else ' '}"


def _shortcut_lines(shortcut: dict[str, Any], borders: dict[str, Any]) -> list[str]:
    title = "shortcut check: the class predicted without the shape of the retina (balanced accuracy, unseen patients)"
    if not shortcut["results"]:
        return [title, "  not possible: it takes two classes with at least five patients each"]
    rows = [
        [
            r["features"],
            f"{r['balanced_accuracy']:.1%}",
            "none" if r["low"] is None else f"{r['low']:.1%} to {r['high']:.1%}",
            f"{r['chance']:.1%}",
        ]
        for r in shortcut["results"]
    ]
    lines = [title, *_table(["from", "accuracy", "95 % interval", "chance"], rows)]
    if shortcut["classes_left_out"]:
        lines.append(f"  without {', '.join(shortcut['classes_left_out'])}: fewer than five patients")
    usable = {r["features"] for r in shortcut["results"] if r["better_than_chance"]}
    if "border" in usable:
        cure = "it is neutralised here" if borders["neutralised"] else "switch neutralise_borders on"
        lines.append(f"  The white border gives the class away: a model could read it instead of the retina; {cure}.")
    if "size" in usable:
        lines.append(
            "  Image size gives the class away. Crops resized to one size hide the number of pixels, "
            "but not the stretch of the retina that comes with another aspect."
        )
    if usable == {"size + border"}:
        lines.append("  Only size and border together give the class away.")
    lines += [f"  {_GIVES_AWAY[name]}" for name in _GIVES_AWAY if name in usable]
    if not usable:
        names = [r["features"] for r in shortcut["results"] if "+" not in r["features"]]
        lines.append(f"  None predicts the class better than chance: {', '.join(names)}.")
    return lines
