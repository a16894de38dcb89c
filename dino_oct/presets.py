"""Files of settings that come with the toolkit: ``configs/`` of a clone, ``dino_oct/configs`` of an installation."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
PRESETS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())


def find_preset(name: str | Path) -> Path:
    """A file of settings as it is named, else the preset ``configs/small_cpu.yaml`` or ``small_cpu``, else the name."""
    file = Path(name)
    if file.is_file():
        return file
    if file.parts[:1] == ("configs",) and PRESETS.joinpath(*file.parts[1:]).is_file():
        return PRESETS.joinpath(*file.parts[1:])
    return next((path for path in sorted(PRESETS.rglob("*.yaml")) if path.stem == str(name)), file)


def preset_names(section: str = "") -> list[str]:
    """The presets of a section (supervised, search), by paths that ``find_preset`` takes."""
    return sorted(f"configs/{path.relative_to(PRESETS).as_posix()}" for path in (PRESETS / section).glob("*.yaml"))
