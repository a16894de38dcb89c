"""Every kind of image file is either read correctly or refused with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from dino_oct.data.decode import BadScan, decode_grey


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    return (np.linspace(0, 250, 60)[:, None] + rng.normal(0, 3, (60, 90))).clip(0, 255).astype(np.uint8)


def save(tmp_path, image, name, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(tmp_path / name, **options)
    return tmp_path / name


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


def test_exif_orientation_does_not_turn_a_scan(tmp_path, scan):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, scan, "a.jpeg", exif=exif)
    assert decode_grey(path).shape == scan.shape


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
