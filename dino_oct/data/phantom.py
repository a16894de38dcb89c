"""Phantoms: synthetic OCT B-scans with exact lesion masks, layer boundaries and a severity for each scan.

They let everything run and be tested without patient data. Nothing but the lesion, and the swelling it causes, depends
on the class: anatomy, position, tilt, gain, noise and size are drawn from generators that do not know the label.

    python dino_oct/data/phantom.py --out DIR --patients N --scans-per-patient M --size H W --seed S
    python dino_oct/data/phantom.py --out DIR --patients N --slices M --eyes 2 --visits V --size H W --seed S
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dino_oct.cli import run_command
from dino_oct.data.phantom_anatomy import LAYERS
from dino_oct.data.phantom_config import PhantomConfig, drawn_by, patient_plan
from dino_oct.data.phantom_draw import CLASSES
from dino_oct.data.phantom_volume import DEPTH_MM, FIELD_MM
from dino_oct.data.phantom_worker import LESION_VALUE, RETINA_VALUE, PatientJob, write_patients
from dino_oct.data.splits import SPLITS
from dino_oct.errors import InputError
from dino_oct.files import naming, private_folder, read_json, remove, scratch_folder, share_as
from dino_oct.limits import NewPath, check_settings
from dino_oct.words import counted

# Raise it with every change that alters a picture, a mask or a file: cached folders are named by it.
PHANTOM_VERSION = 2

_ABOUT, _DIGESTS, TABLE = "phantom.json", "digests.json", "scans.csv"
_COLUMNS = ("file", "label", "patient", "eye", "visit", "volume", "slice", "split", "mask", "severity")


def write_phantoms(out: str | Path, config: PhantomConfig, progress: bool = True) -> Path:
    """Draw a folder of phantoms in OCT2017's shape.

    `OUT/{train,val,test}/CLASS/CLASS-PATIENT-N.jpeg` (grey), `OUT/masks/SPLIT/CLASS/CLASS-PATIENT-N.png` (0 outside,
    128 retina, 255 lesion), `OUT/layers.npz` (`files` (N,), `names` (L,), `rows` (N, L, W) float32 px) and
    `OUT/phantom.json` (version, settings, one record a scan with its severity). Patient and scan number of a file are
    those of `draw_phantom`. An earlier phantom in `out` is replaced; files that it did not write stay.

    Volumes are written in the same shape: CLASS is that of the eye, and N counts through the slices, visits and eyes of
    a patient. A record then also has `eye`, `visit`, `volume`, `slice` and `eye_severity`, phantom.json the size of a
    pixel, and `OUT/scans.csv` lists the scans.

    Raises:
        InputError: settings out of range, or `out` holds anything but an earlier phantom.
    """
    out = Path(out)
    check_settings(config)
    earlier = _earlier_phantom(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming(out), scratch_folder(out) as staging:
        _fill(staging, config, progress)
        if earlier is None:
            if out.is_dir():
                out.rmdir()
            staging.chmod(0o777 & ~_mask())
            staging.rename(out)
        else:
            _replace(out, earlier, staging)
    return out


def phantom_folder(config: PhantomConfig, cache_root: str | Path) -> Path:
    """The folder of these phantoms below `cache_root`, drawn at the first call, and again where it is damaged.

    Its name holds the version and a hash of the settings. It appears complete or not at all; processes that ask at
    once may each draw it, and the first one finished wins.

    Raises:
        InputError: settings out of range, or something else stands in its place.
    """
    check_settings(config, "phantom.")
    settings = json.dumps(drawn_by(config), sort_keys=True)
    key = hashlib.sha256(settings.encode()).hexdigest()[:12]
    folder = Path(cache_root) / f"phantom-v{PHANTOM_VERSION}-{key}"
    if _is_sound(folder, config):
        return folder
    if os.path.lexists(folder):
        print(f"phantoms damaged, drawing again: {folder}", file=sys.stderr, flush=True)
    private_folder(folder.parent)
    with naming(folder), scratch_folder(folder) as staging:
        _fill(staging, config, progress=True)
        share_as(staging, folder.parent)
        if not _is_sound(folder, config):
            remove(folder)
            with contextlib.suppress(OSError):  # another process was first, or its place cannot be cleared
                staging.rename(folder)
    if not _is_sound(folder, config):
        raise InputError(f"{folder}: holds something else than the cached phantoms; remove it")
    return folder


def damaged_files(folder: str | Path, files: Sequence[str], digests: np.ndarray) -> list[str]:
    """Scans of drawn phantoms that are gone or not as they were written.

    Args:
        files: those that could be read, and digests: of their bytes (`ScanCache.file_digests`).
    """
    try:
        written = read_json(Path(folder) / _DIGESTS)
    except InputError:
        return [_DIGESTS]
    present = dict(zip(files, digests.astype(str).tolist(), strict=True))
    return [file for file, digest in written.items() if present.get(file) != digest]


def _is_sound(folder: Path, config: PhantomConfig) -> bool:
    """Whether a folder holds these phantoms, every file of them."""
    try:
        about = read_json(folder / _ABOUT)
        files = [folder / record[kind] for record in about["scans"] for kind in ("file", "mask")]
        np.array([record["severity"] for record in about["scans"]], dtype=float)
        is_same = (about["version"], about["config"]) == (PHANTOM_VERSION, drawn_by(config))
        is_whole = len(files) == 2 * config.total_scans
        files += [folder / _DIGESTS, folder / "layers.npz", *([folder / TABLE] if config.has_volumes else [])]
        return is_same and is_whole and all(file.stat().st_size for file in files)
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return False


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _fill(folder: Path, config: PhantomConfig, progress: bool) -> None:
    jobs = [PatientJob.of(config, folder, *patient) for patient in patient_plan(config.patients)]
    # None shows the bar on a terminal only.
    with tqdm(
        total=config.total_scans, desc="drawing phantoms", unit="scan", disable=None if progress else True
    ) as bar:
        records = write_patients(jobs, bar.update)
    # Sixteenths of a pixel are finer than the drawing and pack well.
    rows = np.concatenate([np.round(np.load(job.layers_file) * 16.0) / 16.0 for job in jobs]).astype(np.float32)
    shutil.rmtree(jobs[0].layers_file.parent)
    files = np.array([record["file"] for record in records])
    np.savez_compressed(folder / "layers.npz", files=files, names=np.array(LAYERS), rows=rows)
    about = {
        "synthetic": True,
        "version": PHANTOM_VERSION,
        "config": drawn_by(config),
        "layers": list(LAYERS),
        "mask_values": {"outside": 0, "retina": RETINA_VALUE, "lesion": LESION_VALUE},
        **({"pixel": _pixel(config)} if config.has_volumes else {}),
        "scans": records,
    }
    if config.has_volumes:
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, _COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(records)
    digests = {file: _digest(folder / file) for file in files.tolist()}
    (folder / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    (folder / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")


def _pixel(config: PhantomConfig) -> dict[str, float]:
    """Distance of two rows, of two columns and of two slices."""
    height, width = config.size
    um = {
        "axial_um": 1000.0 * DEPTH_MM * config.depth / height,
        "lateral_um": 1000.0 * FIELD_MM / width,
        "spacing_um": 1000.0 * FIELD_MM / config.slices,
    }
    return {name: round(value, 3) for name, value in um.items()}


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _earlier_phantom(out: Path) -> dict | None:
    """What an earlier phantom in `out` says about itself; None where there is nothing yet."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the phantoms")
    if not any(out.iterdir()):
        return None
    try:
        about = read_json(out / _ABOUT)
        written = [record[kind] for record in about["scans"] for kind in ("file", "mask")]
        # Only ever remove what lies inside the folder.
        if about["synthetic"] is True and all((out / name).resolve().is_relative_to(out.resolve()) for name in written):
            return about
    except (InputError, OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{out}: is not empty and holds no earlier phantom; choose a new or empty folder")


def _replace(out: Path, earlier: dict, staging: Path) -> None:
    for record in earlier["scans"]:
        for kind in ("file", "mask"):
            (out / record[kind]).unlink(missing_ok=True)
    if any("volume" in record for record in earlier["scans"]):
        (out / TABLE).unlink(missing_ok=True)
    for folder in sorted((path for path in out.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    # phantom.json last: it describes what is there.
    for file in sorted((p for p in staging.rglob("*") if p.is_file()), key=lambda path: path.name == _ABOUT):
        target = out / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


@dataclass(frozen=True, kw_only=True)
class Options(PhantomConfig):
    """Draw synthetic OCT scans (phantoms) with lesion masks, layer boundaries and severities."""

    out: NewPath
    """Folder to write: new, empty, or an earlier phantom, which is replaced."""


def main(options: Options) -> None:
    """Write the folder and say what it holds."""
    out = write_phantoms(options.out, options)
    plan = patient_plan(options.patients)
    splits = Counter(split for _, _, split in plan)
    counts = ", ".join(f"{split} {counted(splits[split], 'patient')}" for split in SPLITS if splits[split])
    height, width = options.size
    total, volumes = options.total_scans, options.total_scans // options.slices
    what = f"{total} SYNTHETIC scans (phantoms, not patient data)"
    if options.has_volumes:
        scans = "scan" if options.slices == 1 else "scans"
        what += (
            f" in {counted(volumes, 'volume')} of {options.slices} {scans}, {options.eyes} x {options.visits} a patient"
        )
        what += " (eyes x visits)"
    print(f"{out}: {what}, {height} x {width} px, {len(CLASSES)} classes; {counts}")


if __name__ == "__main__":
    run_command(main, Options)
