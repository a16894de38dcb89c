"""Volumes without a header about the patient: multi-page TIFF, NumPy, MATLAB and NIfTI."""

import math
import zipfile
from pathlib import Path

import numpy as np

from dino_oct.data.decode import MIN_SIDE, BadScan, open_image
from dino_oct.data.volumes.volume import Volume, check_size, grey, library, silence, stack

_NAMES = ("images", "scans", "volume", "oct", "bscans", "data")  # of several arrays in a file, the one to read
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_MOST_HEADER = 10_000
_MATLAB_NUMBERS = frozenset({"uint8", "uint16", "int16", "int32", "uint32", "single", "double"})


def read_tiff(path: Path) -> list[Volume]:
    """Pages of a TIFF, (S, H, W) in their order."""
    with open_image(path) as image:
        if image.format != "TIFF":
            raise BadScan(f"a {image.format} picture, no TIFF")
        pages = image.n_frames
        if pages < 2:
            raise BadScan("one page: a picture, no volume")
        check_size(path, pages, image.height, image.width)
        scans = []
        for page in range(pages):
            image.seek(page)
            if scans and image.size != scans[0].shape[::-1] and image.size != scans[0].shape:
                raise BadScan("its B-scans differ in size")
            values = grey(image)
            if values.dtype != np.uint8 and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
                values = (65535 if values.dtype.kind in "iu" else 1) - values  # Pillow turns those of 8 bits only
            scans.append(values)
        return [Volume(stack(scans))]


def count_pages(path: Path) -> int:
    """Pages of a TIFF, from its directories; 0 where it is none."""
    try:
        with open_image(path) as image:
            return image.n_frames if image.format == "TIFF" else 0
    except BadScan:
        return 0


def read_npy(path: Path) -> list[Volume]:
    """One array (S, H, W) of integers or floats; objects are not unpickled."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return [Volume(_slices_first(path, mapped))]


def read_npz(path: Path) -> list[Volume]:
    """The stack (S, H, W) among the arrays of an archive; objects are not unpickled."""
    name = _choose(_arrays_in(path))
    with np.load(path, allow_pickle=False) as archive:
        return [Volume(_slices_first(path, archive[name]))]


def holds_stack(path: Path) -> bool:
    """Whether the headers of a NumPy or MATLAB file name one stack of grey scans."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                shape, dtype = _header(file)
            return _is_stack(shape, dtype)
        with silence():
            _choose(_arrays_in(path) if path.suffix.lower() == ".npz" else _variables_in(path))
    except Exception:  # zipfile, NumPy and SciPy raise almost anything on damaged files
        return False
    return True


def read_mat(path: Path) -> list[Volume]:
    """The stack (H, W, S) among the variables of a MATLAB file up to version 7."""
    from scipy.io import loadmat

    with silence():
        name = _choose(_variables_in(path))
        values = loadmat(path, variable_names=[name])[name]
    return [Volume(stack(np.moveaxis(values, -1, 0)))]


def read_nifti(path: Path) -> list[Volume]:
    """A NIfTI image with axes column, row, slice; sizes of a voxel from its header, where it gives millimetres."""
    nibabel = library("nibabel")
    with silence():
        image = nibabel.load(path)
        if len(image.shape) != 3:
            raise BadScan(f"{len(image.shape)} axes instead of column, row, slice")
        width, height, slices = image.shape
        is_packed = path.suffix.lower() == ".gz"
        check_size(path, slices, height, width, 0 if is_packed else image.get_data_dtype().itemsize)
        values = np.asanyarray(image.dataobj).transpose(2, 1, 0)
        zooms, unit = image.header.get_zooms()[:3], image.header.get_xyzt_units()[0]
    column, row, step = (1000 * float(size) for size in zooms)
    if unit != "mm" or column == row == step:  # 1 mm each is what writers leave there
        return [Volume(stack(values))]
    return [Volume(stack(values), pixel_um=(row, column), spacing_um=step)]


def _slices_first(path: Path, values: np.ndarray) -> np.ndarray:
    if values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 3:
        check_size(path, *values.shape)
    return stack(values)


def _is_stack(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    if len(shape) == 4 and shape[-1] == 1:
        shape = shape[:3]
    return len(shape) == 3 and dtype.kind in "iuf" and min(shape[1:]) >= MIN_SIDE and shape[0] > 0


def _choose(shapes: dict[str, bool]) -> str:
    """The name of the one stack among named arrays."""
    stacks = [name for name, is_stack in shapes.items() if is_stack]
    named = [name for name in stacks if name.lower() in _NAMES]
    for names in (stacks, named):
        if len(names) == 1:
            return names[0]
    if not stacks:
        raise BadScan("holds no array of slices, rows and columns")
    raise BadScan(f"holds {len(stacks)} arrays of three axes; name the scans {' or '.join(_NAMES[:3])}")


def _arrays_in(path: Path) -> dict[str, bool]:
    """Arrays of an archive → whether it is a stack, from the headers, which are checked against the archive's sizes."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as file:
                shape, dtype = _header(file)
            name = entry.filename.removesuffix(".npy")
            arrays[name] = _is_stack(shape, dtype) and math.prod(shape) * dtype.itemsize <= entry.file_size
            if arrays[name]:
                check_size(path, *shape[:3])
    return arrays


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=_MOST_HEADER)
    return shape, dtype


def _variables_in(path: Path) -> dict[str, bool]:
    """Variables of a MATLAB file → whether it is a stack with the slices last."""
    from scipy.io import whosmat

    with path.open("rb") as file:
        if file.read(10) == b"MATLAB 7.3":
            raise BadScan("a MATLAB 7.3 file; save it with -v7 or as .npy")
    variables = {}
    for name, shape, kind in whosmat(path):
        is_grey = kind in _MATLAB_NUMBERS and len(shape) == 3
        variables[name] = is_grey and _is_stack((shape[-1], *shape[:2]), np.dtype(np.uint8))
        if variables[name]:
            check_size(path, shape[-1], *shape[:2])
    return variables
