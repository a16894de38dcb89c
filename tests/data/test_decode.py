"""Every kind of image file is either read correctly or refused with a reason."""

import ast
import io
import os
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dino_oct.data.decode import BadScan, GreyRange, RangeNeeded, choose_range, decode, measure_levels

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    return (np.linspace(0, 250, 60)[:, None] + rng.normal(0, 3, (60, 90))).clip(0, 255).astype(np.uint8)


def save(tmp_path, image, name, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(tmp_path / name, **options)
    return tmp_path / name


def decode_grey(path, **options):
    """The scan of a file; a deep one is read by the range of that file alone."""
    try:
        return decode(path, **options).scan
    except RangeNeeded:
        return decode(path, grey_range=choose_range([measure_levels(path)]), **options).scan


def test_grey_jpeg_is_bit_identical_to_pillow(tmp_path, scan):
    path = save(tmp_path, scan, "a.jpeg", quality=80)
    np.testing.assert_array_equal(decode_grey(path), np.asarray(Image.open(path).convert("L")))
    assert decode_grey(path).dtype == np.uint8


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_lossless_formats_are_exact(tmp_path, scan, name):
    np.testing.assert_array_equal(decode_grey(save(tmp_path, scan, name)), scan)


def test_format_is_told_by_content_not_by_suffix(tmp_path, scan):
    path = save(tmp_path, scan, "a.png")
    np.testing.assert_array_equal(decode_grey(path.rename(tmp_path / "mislabelled.jpeg")), scan)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_colour_modes_of_a_grey_scan_read_as_the_scan(tmp_path, scan, mode):
    grey = Image.fromarray(scan)
    image = grey.quantize(256) if mode == "P" else grey.convert("RGB").convert(mode)
    assert np.abs(decode_grey(save(tmp_path, image, "a.tif")).astype(int) - scan).max() <= (3 if mode == "P" else 1)


def test_cmyk_jpeg_is_not_inverted(tmp_path, scan):
    path = save(tmp_path, Image.fromarray(scan).convert("RGB").convert("CMYK"), "a.jpeg", quality=95)
    assert np.abs(decode_grey(path).astype(int) - scan).mean() < 3


def test_transparent_pixels_are_black(tmp_path, scan):
    alpha = np.full_like(scan, 255)
    alpha[:, :30] = 0
    path = save(tmp_path, np.stack([scan, scan, scan, alpha], axis=-1), "a.png")
    read = decode_grey(path)
    assert read[:, :30].max() == 0
    np.testing.assert_array_equal(read[:, 30:], scan[:, 30:])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(("full", "step"), [(65535, 257), (4095, 16), (255, 1)])
def test_16_bit_containers_use_their_own_range(tmp_path, scan, name, full, step):
    deep = np.minimum(scan.astype(np.uint16) * step, full)
    deep[0, 0] = full
    read = decode_grey(save(tmp_path, deep, name))
    assert read[0, 0] == 255
    assert np.abs(read[1:].astype(int) - scan[1:]).max() <= 1


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_float_scans_are_scaled(tmp_path, scan, full):
    read = decode_grey(save(tmp_path, (scan / 255 * full).astype(np.float32), "a.tif"))
    assert np.abs(read.astype(int) - scan).max() <= 1


def range_of(*files):
    return choose_range([measure_levels(file) for file in files])


def test_deep_images_need_a_range_and_values_above_it_are_white(tmp_path, scan):
    path = save(tmp_path, scan.astype(np.uint16) * 16, "a.png")
    with pytest.raises(RangeNeeded):
        decode(path)
    read = decode(path, grey_range=GreyRange(4095, 1))
    assert np.abs(read.scan.astype(int) - scan).max() <= 1
    assert read.remarks == {"integers"}
    clipped = decode(path, grey_range=GreyRange(1023, 1))
    np.testing.assert_array_equal(clipped.scan[scan >= 64], 255)
    assert clipped.remarks == {"integers", "clipped"}
    assert decode(save(tmp_path, scan, "b.png")).remarks == frozenset()  # 8 bits need none


@pytest.mark.parametrize(("bits", "full"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_integers_of_every_depth_and_a_bright_pixel_that_decides_nothing(tmp_path, scan, bits, full):
    deep = np.round(scan / 255 * full).astype(np.uint16)
    file = save(tmp_path, deep, "a.png")
    deep[30, 40] = 65535
    bright = save(tmp_path, deep, "b.tif")
    for given in ([file], [bright], [file, bright]):
        assert range_of(*given).integers == full
        read = decode_grey(given[0], grey_range=range_of(*given)).astype(int)
        difference = np.abs(read - scan)
        difference[30, 40] = 0
        assert difference.max() <= 1, bits


@pytest.mark.parametrize("full", [1, 255, 65535])
def test_floats_with_values_a_little_above_their_range(tmp_path, scan, full):
    values = (scan / 255 * full).astype(np.float32)
    values[30, 40] = 1.02 * full
    file = save(tmp_path, values, "a.tif")
    assert range_of(file) == GreyRange(255, full)
    difference = np.abs(decode_grey(file).astype(int) - scan)
    difference[30, 40] = 0
    assert difference.max() <= 1


def test_integers_and_floats_of_one_folder_have_a_range_each(tmp_path, scan):
    files = [save(tmp_path, scan.astype(np.uint16) * 16, "a.png"), save(tmp_path, (scan / 255).astype("f4"), "b.tif")]
    ranges = range_of(*files, save(tmp_path, scan, "c.png"), tmp_path / "missing.png")
    assert ranges == GreyRange(4095, 1)
    for file in files:
        assert np.abs(decode_grey(file, grey_range=ranges).astype(int) - scan).max() <= 1


def test_a_tiff_whose_white_is_zero_is_not_inverted(tmp_path, scan):
    for values in (255 - scan, 65535 - scan.astype(np.uint16) * 257, 1 - (scan / 255).astype(np.float32)):
        file = save(tmp_path, values, "a.tif", tiffinfo={262: 0})
        if values.dtype == np.uint8:  # Pillow turns these when it writes and when it reads
            continue
        assert np.abs(decode_grey(file).astype(int) - scan).max() <= 1


def test_lost_bits_of_colour_files_are_remarked(tmp_path, scan):
    header = b"\x89PNG\r\n\x1a\n"

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    deep = np.repeat(scan.astype(">u2")[..., None] * 257, 3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    size = scan.shape[1].to_bytes(4, "big") + scan.shape[0].to_bytes(4, "big")
    parts = ((b"IHDR", size + bytes([16, 2, 0, 0, 0])), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(header + b"".join(chunk(*part) for part in parts))
    read = decode(tmp_path / "a.png")
    assert read.remarks == {"upper 8 bits"}
    assert np.abs(read.scan.astype(int) - scan).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpeg", "a.png", "a.tif", "deep.png", "deep.tif"])
def test_exif_orientation_is_applied(tmp_path, scan, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, scan.astype(np.uint16) * 257 if "deep" in name else scan, name, exif=exif)
    read = decode(path, grey_range=GreyRange(65535, 1))
    stored = Image.fromarray(np.asarray(Image.open(path).convert("L")) if name == "a.jpeg" else scan)
    stored.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    if name == "a.jpeg":
        np.testing.assert_array_equal(read.scan, upright)
    else:
        assert np.abs(read.scan.astype(int) - upright).max() <= 1
    assert read.original_size == upright.shape
    assert ("turned" in read.remarks) == (orientation != 1)


def test_damaged_exif_turns_nothing(tmp_path, scan):
    path = save(tmp_path, scan, "a.jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_grey(path).shape == scan.shape


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.mpo"])
def test_of_several_pictures_the_first_is_read_and_that_is_remarked(tmp_path, scan, name):
    others = [Image.fromarray(255 - scan)] * 2
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path, scan, name, save_all=True, append_images=others, **options)
    read = decode(path.rename(tmp_path / "a.jpg"))
    assert read.remarks == {"first of several"}
    assert np.abs(read.scan.astype(int) - scan).mean() < 3


def test_no_program_runs_for_a_postscript_file(tmp_path, scan, monkeypatch):
    path = save(tmp_path, Image.fromarray(scan).convert("RGB"), "a.eps").rename(tmp_path / "a.jpeg")
    for start in ("system", "popen", "posix_spawn", "fork", "execv"):
        monkeypatch.setattr(os, start, lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(BadScan, match="not an image"):
        decode_grey(path)
    assert measure_levels(path) is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "link to a pipe"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / "x.jpg"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            server = socket.socket(socket.AF_UNIX)
            server.bind("x.jpg")
        case "folder":
            path.mkdir()
        case _:
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
    with pytest.raises(BadScan, match="not a regular file"):
        decode_grey(path)
    assert measure_levels(path) is None


def test_every_image_is_opened_by_named_formats():
    """Pillow tries every reader that it has where it is not told which."""
    calls = [
        (file.name, ast.unparse(node))
        for package in ("dino_oct", "evaluation", "supervised")
        for file in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert len(calls) >= 3
    assert [call for call in calls if "formats=" not in call[1]] == []


def test_larger_scans_are_scaled_down_without_aliasing(tmp_path):
    stripes = np.zeros((64, 3000), dtype=np.uint8)
    stripes[:, ::2] = 200
    read = decode_grey(save(tmp_path, stripes, "a.png"), max_side=1500)
    assert read.shape == (32, 1500)
    assert abs(int(read[:, 10:-10].mean()) - 100) < 3
    assert read[:, 10:-10].std() < 10


def write(content):
    def make(tmp_path, scan):
        (tmp_path / "bad.jpeg").write_bytes(content)
        return tmp_path / "bad.jpeg"

    return make


def truncated(image_format, share):
    def make(tmp_path, scan):
        whole = io.BytesIO()
        Image.fromarray(scan).save(whole, image_format)
        return write(whole.getvalue()[: int(share * len(whole.getvalue()))])(tmp_path, scan)

    return make


def with_nan(tmp_path, scan):
    values = scan.astype(np.float32)
    values[3, 3] = np.nan
    return save(tmp_path, values, "bad.tif")


def pages(tmp_path, scan):
    page = Image.fromarray(scan)
    return save(tmp_path, page, "bad.tif", save_all=True, append_images=[page, page])


BAD = {
    "empty file": (write(b""), "empty file"),
    "text": (write(b"<html>not found</html>" * 20), "not an image"),
    "truncated header": (truncated("JPEG", 0.05), "not an image|cannot be read"),
    "truncated jpeg": (truncated("JPEG", 0.6), "truncated"),
    "jpeg without its end": (truncated("JPEG", 0.999), "truncated"),
    "truncated png": (truncated("PNG", 0.6), "cannot be read"),
    "1x1": (lambda t, s: save(t, np.ones((1, 1), np.uint8), "bad.png"), "too small: 1 x 1"),
    "thin": (lambda t, s: save(t, s[:31], "bad.png"), "too small"),
    "ribbon": (lambda t, s: save(t, np.resize(s, (40, 9000)), "bad.png"), "too narrow"),
    "nan": (with_nan, "not numbers"),
    "negative": (lambda t, s: save(t, s.astype(np.float32) - 300, "bad.tif"), "grey values from"),
    "pages": (pages, "holds 3 images"),
    "blank": (lambda t, s: save(t, np.full((50, 50), 7, np.uint8), "bad.png"), "blank: every pixel is 7"),
    "missing": (lambda t, s: t / "missing.png", "cannot be read: .*No such file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_with_their_reason(tmp_path, scan, kind):
    make, reason = BAD[kind]
    with pytest.raises(BadScan, match=reason) as refusal:
        decode_grey(make(tmp_path, scan))
    assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_gigantic_images_are_refused_before_decoding(tmp_path):
    # A 1-bit image of 400 million pixels is a small file and would decode to 400 MB.
    path = save(tmp_path, Image.new("1", (20_000, 20_000)), "huge.png")
    with pytest.raises(BadScan, match="too large"):
        decode_grey(path)
    path = save(tmp_path, Image.new("1", (11_000, 11_000)), "large.png")
    with pytest.raises(BadScan, match="too large: 11000 x 11000"):
        decode_grey(path)
