"""The cache gives back what was decoded, survives bad files, damage and two builders at once."""

import dataclasses
import fcntl
import multiprocessing
import os
import pickle
import shutil
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dino_oct import files
from dino_oct.data import building
from dino_oct.data.borders import find_borders
from dino_oct.data.cache import ScanCache, cache_root, open_cache
from dino_oct.data.decode import decode
from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.errors import InputError


def write_scans(folder, count=12, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        size = (int(rng.integers(40, 80)), int(rng.integers(40, 120)))
        Image.fromarray(rng.integers(0, 200, size, dtype=np.uint8)).save(folder / f"CNV-{i}-1.png")


@pytest.fixture
def config(tmp_path):
    return DatasetConfig(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def scans(tmp_path):
    write_scans(tmp_path / "scans")
    return tmp_path / "scans"


def opened(folder, config):
    return open_cache(index_scans(folder, config), config, progress=False)


def test_round_trip_at_native_size(scans, config):
    index, cache = opened(scans, config)
    assert len(index) == len(cache) == 12
    for i in range(len(index)):
        np.testing.assert_array_equal(cache[i], decode(index.path(i)).scan)
        assert cache[i].shape == tuple(cache.sizes[i]) == tuple(cache.original_sizes[i])
    np.testing.assert_array_equal(cache[-1], cache[11])
    with pytest.raises(IndexError):
        cache[12]
    with pytest.raises(ValueError, match="read-only"):
        cache[0][0, 0] = 1
    assert cache.tissue.shape == (12, 16, 16)
    assert cache.border.shape == (12, 9)
    assert "12 scans cached" in cache.summary()
    assert "0 left out" in cache.summary()


def test_bad_files_are_left_out_listed_and_the_rest_stays_aligned(scans, config):
    (scans / "CNV-3-1.png").write_bytes(b"")
    (scans / "CNV-5-1.png").write_bytes((scans / "CNV-6-1.png").read_bytes()[:300])
    Image.new("L", (1, 1)).save(scans / "CNV-7-1.png")
    (scans / "CNV-99-1.jpeg").symlink_to(scans / "nowhere.jpeg")
    index, cache = opened(scans, config)
    assert len(index) == len(cache) == 9
    reasons = dict(cache.skipped)
    assert set(reasons) == {"CNV-3-1.png", "CNV-5-1.png", "CNV-7-1.png", "CNV-99-1.jpeg"}
    assert reasons["CNV-3-1.png"] == "empty file"
    assert "4 left out: " in cache.summary()
    for i in range(len(index)):
        np.testing.assert_array_equal(cache[i], decode(index.path(i)).scan)


def test_no_usable_file_is_a_one_line_error(tmp_path, config):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 1 images can be used; first: a\.png"):
        opened(tmp_path / "scans", config)
    assert not list((tmp_path / "cache").glob("scans-*"))


def test_second_opening_decodes_nothing(scans, config, monkeypatch):
    _, first = opened(scans, config)
    monkeypatch.setattr(building, "decode", lambda *_, **__: pytest.fail("decoded again"))
    _, second = opened(scans, config)
    assert first.folder == second.folder
    # Another split of the same files uses the same cache.
    _, other_split = opened(scans, dataclasses.replace(config, split_seed=5))
    assert other_split.folder == first.folder


@pytest.mark.parametrize(
    "change", ["content", "edited in place", "added", "removed", "max_side", "neutralise_borders", "grey_range"]
)
def test_whatever_changes_pixels_is_decoded_again_and_nothing_else(scans, config, change, monkeypatch):
    Image.open(scans / "CNV-2-1.png").save(scans / "CNV-2-1.bmp")
    opened(scans, config)
    if change == "content":
        Image.fromarray(np.full((50, 50), 9, np.uint8) + np.eye(50, dtype=np.uint8)).save(scans / "CNV-2-1.png")
    elif change == "added":
        shutil.copy(scans / "CNV-2-1.png", scans / "CNV-77-1.png")
    elif change == "removed":
        (scans / "CNV-2-1.png").unlink()
    elif change == "edited in place":  # size and time of modification stay
        file = scans / "CNV-2-1.bmp"
        status, content = file.stat(), bytearray(file.read_bytes())
        content[-100] ^= 255
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    else:
        given = {"max_side": 64, "neutralise_borders": False, "grey_range": 1023}
        config = dataclasses.replace(config, **{change: given[change]})
    decoded = []
    monkeypatch.setattr(building, "decode", lambda path, *a, **b: decoded.append(path) or decode(path, *a, **b))
    index, _ = opened(scans, config)
    assert len(decoded) == {"content": 1, "edited in place": 1, "added": 1, "removed": 0}.get(change, 13)
    before = len(decoded)
    _, after = opened(scans, config)
    assert len(decoded) == before
    for i in range(len(index)):
        np.testing.assert_array_equal(after[i], decode(index.path(i), config.max_side).scan)


def test_same_names_and_times_in_another_folder_are_not_mistaken(tmp_path, config):
    for name, seed in (("one", 1), ("two", 2)):
        write_scans(tmp_path / name, count=1, seed=seed)
        Image.fromarray(np.random.default_rng(seed).integers(0, 200, (40, 40), dtype=np.uint8)).save(
            tmp_path / name / "CNV-0-1.bmp"
        )
        (tmp_path / name / "CNV-0-1.png").unlink()
        os.utime(tmp_path / name / "CNV-0-1.bmp", ns=(0, 0))
    assert (opened(tmp_path / "one", config)[1][0] != opened(tmp_path / "two", config)[1][0]).any()


@pytest.mark.parametrize("damage", ["cut", "flip", "no json", "bad json", "cut table", "missing"])
def test_damaged_cache_is_rebuilt_with_a_line(scans, config, capsys, damage):
    _, cache = opened(scans, config)
    expected = [cache[i].copy() for i in range(len(cache))]
    pixels = cache.folder / "scans.bin"
    del cache
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-10])
    elif damage == "flip":
        content = bytearray(pixels.read_bytes())
        content[5] ^= 255
        pixels.write_bytes(content)
    elif damage == "no json":
        (pixels.parent / "cache.json").unlink()
    elif damage == "bad json":
        (pixels.parent / "cache.json").write_text("{")
    elif damage == "cut table":
        table = pixels.parent / "tissue.npy"
        table.write_bytes(table.read_bytes()[:200])
    else:
        pixels.unlink()
    _, rebuilt = opened(scans, config)
    assert capsys.readouterr().err.count("scan cache damaged, decoding again") == 1
    for scan, before in zip(rebuilt, expected, strict=True):
        np.testing.assert_array_equal(scan, before)


def test_pickle_reopens_the_same_file(scans, config):
    _, cache = opened(scans, config)
    data = pickle.dumps(cache)
    assert len(data) < 1000  # a worker process gets the folder, not the pixels
    copy = pickle.loads(data)
    assert isinstance(copy, ScanCache)
    np.testing.assert_array_equal(copy[4], cache[4])


def _open_in_process(folder, config, start, results):
    start.wait()
    _, cache = opened(folder, config)
    results.put((str(cache.folder), [int(cache[i].sum()) for i in range(len(cache))]))


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_build_at_once_agree(tmp_path, config, locks, monkeypatch):
    write_scans(tmp_path / "scans", count=60)
    if not locks:  # as on a network file system without locks; forked processes inherit the patch
        monkeypatch.setattr(files, "fcntl", None)
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    arguments = (tmp_path / "scans", config, start, results)
    processes = [context.Process(target=_open_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert answers[0] == answers[1] == answers[2]
    names = os.listdir(tmp_path / "cache")
    assert len([name for name in names if not name.startswith(".")]) == 1
    assert not [name for name in names if name.startswith(".") and not name.endswith(".lock")]  # nothing left behind


def test_leftovers_of_a_killed_build_are_removed(scans, config):
    """Those of this machine: another one may be building at the moment, on shared storage whose locks are local."""
    folder = opened(scans, config)[1].folder
    leftover, living, elsewhere = (
        folder.parent / f".{name}-{host}.building"
        for name, host in (
            ("scans-of-other-data.0", socket.gethostname()),
            ("scans.1", socket.gethostname()),
            ("scans.2", "another-host"),
        )
    )
    shutil.rmtree(folder)
    for place in (leftover, living, elsewhere):
        place.mkdir()
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    opened(scans, config)
    os.close(handle)
    assert not leftover.exists()
    assert living.exists()
    assert elsewhere.exists()


def test_border_is_recorded_as_found_and_removed_from_the_pixels(tmp_path, config):
    (tmp_path / "scans").mkdir()
    scan = np.random.default_rng(0).integers(0, 60, (100, 160), dtype=np.uint8)
    scan[:20] = 255
    Image.fromarray(scan).save(tmp_path / "scans/CNV-1-1.png")
    _, cache = opened(tmp_path / "scans", config)
    assert cache.border[0, 0] == pytest.approx(0.24)  # 20 of 100 rows and a margin of 4
    assert not find_borders(cache[0]).any()
    _, untouched = opened(tmp_path / "scans", dataclasses.replace(config, neutralise_borders=False))
    np.testing.assert_array_equal(untouched[0], scan)
    np.testing.assert_array_equal(untouched.border, cache.border)


def test_large_scans_are_scaled_down_and_their_size_remembered(tmp_path, config):
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 200, (200, 400), dtype=np.uint8)).save(
        tmp_path / "scans/a.png"
    )
    _, cache = opened(tmp_path / "scans", dataclasses.replace(config, max_side=100))
    assert cache.sizes.tolist() == [[50, 100]]
    assert cache.original_sizes.tolist() == [[200, 400]]


def test_full_disk_and_unwritable_folder_are_one_line_errors(scans, config, monkeypatch, tmp_path):
    monkeypatch.setattr(building, "_LARGE", 1000)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(InputError, match=r"needs about \d+ kB .* has 2\.0 kB free"):
        opened(scans, config)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the scan cache"):
        opened(scans, dataclasses.replace(config, cache_dir=str(tmp_path / "file")))


def test_cache_folder_follows_setting_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DINO_OCT_CACHE", raising=False)
    assert cache_root(DatasetConfig()) == tmp_path / "xdg" / "dino_oct"
    monkeypatch.setenv("DINO_OCT_CACHE", str(tmp_path / "env"))
    assert cache_root(DatasetConfig()) == tmp_path / "env"
    assert cache_root(DatasetConfig(cache_dir=str(tmp_path / "own"))) == tmp_path / "own"


def test_a_killed_build_goes_on(tmp_path, config, monkeypatch):
    write_scans(tmp_path / "scans", count=20)
    monkeypatch.setattr(building, "_SEGMENT", 4)
    monkeypatch.setattr(building, "usable_cores", lambda: 1)
    decoded = []

    def dying(path, *args, **more):
        decoded.append(path)
        if len(decoded) == 11:
            raise KeyboardInterrupt
        return decode(path, *args, **more)

    monkeypatch.setattr(building, "decode", dying)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "scans", config)
    decoded = [None] * 100
    index, cache = opened(tmp_path / "scans", config)
    assert len(decoded) == 100 + 12  # two parts of four were whole
    copy = pickle.loads(pickle.dumps(cache))
    for i in range(20):
        np.testing.assert_array_equal(cache[i], decode(index.path(i)).scan)
        np.testing.assert_array_equal(copy[i], cache[i])
        np.testing.assert_array_equal(cache.tissue[i], np.asarray(cache.tissue)[i])
    np.testing.assert_array_equal(cache.tissue[np.array([7, 0, 19])], np.asarray(cache.tissue)[[7, 0, 19]])


def test_one_damaged_part_is_decoded_again_alone(tmp_path, config, monkeypatch, capsys):
    write_scans(tmp_path / "scans", count=12)
    monkeypatch.setattr(building, "_SEGMENT", 4)
    _, cache = opened(tmp_path / "scans", config)
    expected = [scan.copy() for scan in cache]
    next((tmp_path / "cache").glob("scans-*/scans.bin")).write_bytes(b"x")
    decoded = []
    monkeypatch.setattr(building, "decode", lambda path, *a, **b: decoded.append(path) or decode(path, *a, **b))
    for _ in range(2):
        _, cache = opened(tmp_path / "scans", config)
        assert len(decoded) == 4
    assert capsys.readouterr().err.count("decoding again") == 1
    for scan, before in zip(cache, expected, strict=True):
        np.testing.assert_array_equal(scan, before)


def test_progress_is_told_where_there_is_no_terminal(scans, config, monkeypatch, capsys):
    monkeypatch.setattr(building, "_TOLD_EVERY", -1)
    open_cache(index_scans(scans, config), config)
    assert "decoding scans: 12 of 12 · " in capsys.readouterr().err


# deep images


def write_deep(folder, values, name):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)


def ramp(seed, full):
    """A scan of 50 x 70 whose brightest pixels are at ``full``."""
    rng = np.random.default_rng(seed)
    return np.linspace(0, full, 50)[:, None] * rng.uniform(0.9, 1, (50, 70))


def test_one_grey_range_for_a_folder_whatever_single_files_hold(tmp_path, config):
    """Files of 12 bits, dark ones and one with bright pixels among them, are scaled alike."""
    folder = tmp_path / "scans"
    scans = [ramp(i, (4000, 900, 200)[i % 3]) for i in range(9)]
    for i, values in enumerate(scans):
        values = values.astype(np.uint16)
        if i == 4:
            values[10, 10] = 65535
        write_deep(folder, values, f"CNV-{i}-1.png")
    index, cache = opened(folder, config)
    assert (cache.grey_range.integers, len(cache)) == (4095, 9)
    for i, values in enumerate(scans):
        difference = np.abs(cache[i] - values / 4095 * 255)
        difference[10, 10] = 0
        assert difference.max() <= 1
    assert cache[4][10, 10] == 255
    note, darker = cache.notes[:2]
    assert "0 to 4095 for 9 files of integers (decided over all of them; dataset.grey_range sets another)" in note
    assert darker.startswith("3 scans: are more than 8 times darker")  # those that hold 8 bits
    assert index.notes[-len(cache.notes) :] == cache.notes
    assert opened(folder, config)[1].notes == cache.notes  # from disk


def test_a_grey_range_that_is_given_and_pixels_above_it(tmp_path, config):
    for i in range(4):
        write_deep(tmp_path / "scans", ramp(i, 4000).astype(np.uint16), f"CNV-{i}-1.png")
    config = dataclasses.replace(config, neutralise_borders=False)  # what is clipped is white
    _, cache = opened(tmp_path / "scans", dataclasses.replace(config, grey_range=2000))
    assert cache[0].max() == 255
    assert np.abs(cache[0][:20] - ramp(0, 4000)[:20] / 2000 * 255).max() <= 1
    assert "0 to 2000 for 4 files of integers (as dataset.grey_range says)" in cache.notes[0]
    assert cache.notes[1].startswith("4 scans: more than 1% of the pixels above the grey range")
    for wrong in (0, -5, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"--dataset\.grey-range .*: must be above 0"):
            opened(tmp_path / "scans", dataclasses.replace(config, grey_range=wrong))


def test_a_range_is_decided_over_all_chunks(tmp_path, config, monkeypatch):
    """8-bit files first, then deep ones of which only the last ones are bright, and floats."""
    monkeypatch.setattr(building, "_CHUNK", 3)
    for i in range(4):
        write_deep(tmp_path / "scans", ramp(i, 250).astype(np.uint8), f"A-{i}-1.png")
        write_deep(tmp_path / "scans", ramp(i, 250).astype(np.uint16), f"B-{i}-1.png")
        write_deep(tmp_path / "scans", ramp(i, 16000).astype(np.uint16), f"C-{i}-1.png")
        write_deep(tmp_path / "scans", ramp(i, 1).astype(np.float32), f"D-{i}-1.tif")
    index, cache = opened(tmp_path / "scans", config)
    assert (cache.grey_range.integers, cache.grey_range.floats) == (16383, 1)
    full = {"A": 255, "B": 16383, "C": 16383, "D": 1}
    peak = {"A": 250, "B": 250, "C": 16000, "D": 1}
    for i, file in enumerate(index.files):
        kind = file[0]
        assert np.abs(cache[i] - ramp(int(file[2]), peak[kind]) / full[kind] * 255).max() <= 1
    assert "0 to 16383 for 8 files of integers, 0 to 1 for 4 files of floats" in cache.notes[0]


def test_new_files_that_change_the_range_change_old_ones(tmp_path, config):
    for i in range(3):
        write_deep(tmp_path / "scans", ramp(i, 250).astype(np.uint16), f"A-{i}-1.png")
    assert opened(tmp_path / "scans", config)[1].grey_range.integers == 255
    for i in range(3):
        write_deep(tmp_path / "scans", ramp(i, 4000).astype(np.uint16), f"B-{i}-1.png")
    index, cache = opened(tmp_path / "scans", config)
    assert cache.grey_range.integers == 4095
    for i, file in enumerate(index.files):
        full = {"A": 250, "B": 4000}[file[0]]
        assert np.abs(cache[i] - ramp(int(file[2]), full) / 4095 * 255).max() <= 1
    for i in range(3):
        (tmp_path / "scans" / f"B-{i}-1.png").unlink()
    assert opened(tmp_path / "scans", config)[1].grey_range.integers == 255
    assert len(list((tmp_path / "cache").glob("scans-*"))) == 3


def test_folders_of_8_bits_have_no_range(scans, config):
    assert opened(scans, config)[1].grey_range is None


def test_turned_and_animated_files_are_said_and_no_pipe_hangs(scans, config):
    exif = Image.Exif()
    exif[0x0112] = 6
    scan = Image.fromarray(ramp(0, 200).astype(np.uint8))
    scan.save(scans / "CNV-50-1.jpeg", exif=exif)
    scan.save(scans / "CNV-51-1.gif", save_all=True, append_images=[scan.rotate(90)])
    (scans / "CNV-51-1.gif").rename(scans / "CNV-51-1.png")
    os.mkfifo(scans / "CNV-52-1.jpg")
    index, cache = opened(scans, config)
    assert cache.original_sizes[index.files.index("CNV-50-1.jpeg")].tolist() == [70, 50]
    assert any("1 scan: turned as their EXIF orientation says (CNV-50-1.jpeg)" in note for note in cache.notes)
    assert any("only the first is read (CNV-51-1.png)" in note for note in cache.notes)
    assert [file for file, reason in cache.skipped if "not a regular file" in reason] == ["CNV-52-1.jpg"]


def test_inverted_scans_are_noticed(tmp_path, config):
    for i in range(6):
        scan = np.random.default_rng(i).gamma(4, 5, (120, 160))
        scan[50:80] *= 6
        grey = scan.clip(0, 255).astype(np.uint8)
        write_deep(tmp_path / "scans", 255 - grey if i == 4 else grey, f"CNV-{i}-1.png")
    (note,) = opened(tmp_path / "scans", config)[1].notes
    assert note.startswith("1 scan: seems inverted")
    assert "CNV-4-1.png" in note
