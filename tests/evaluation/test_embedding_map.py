"""Embedding maps: measures against definitions, and the command's files as a reader opens them."""

import base64
import contextlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import check_page, in_browser, needs_chromium
from PIL import Image
from scipy.spatial.distance import cdist

from dino_oct.cli import parse_options
from dino_oct.errors import InputError
from evaluation import embedding_map
from evaluation.inputs.sources import open_source
from evaluation.pages import embedding_page, embedding_results
from evaluation.pages.embedding_figures import Frame, Panel, marks
from evaluation.pages.projector import write_projector
from evaluation.protocols import embedding_map as protocol
from evaluation.scores import embeddings
from evaluation.scores.embeddings import agreement, aligned, chance_purity, nearest, purity, umap_map

BESIDE = "random:vit_tiny_patch16_224"
HOSTILE = """</script><img src=x onerror="document.title='owned'"><b>'&{{ 7*7 }}"""


def evaluated(args: list[object]) -> str:
    """What the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        embedding_map.main(parse_options(embedding_map.Options, [str(arg) for arg in args]))
    return printed.getvalue()


def refused(args: list[object]) -> str:
    """The one line that a wrong command line ends with."""
    with pytest.raises(InputError) as error:
        evaluated(args)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture(scope="module")
def own_cache(cache_root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINO_OCT_CACHE", str(cache_root))
        yield


@pytest.fixture(scope="module")
def animated(trained, own_cache, tmp_path_factory):
    """What one evaluation of the tiny run printed, and the folder it wrote."""
    folder = tmp_path_factory.mktemp("maps")
    args = ["--split", "all", "--beside", BESIDE, "--image-size", 32, 32, "--seeds", 2, "--k", 3, "--bootstrap", 50]
    return evaluated(["--model", trained, *args, "--animate", True, "--out", folder]), folder


@pytest.fixture
def noise(tmp_path):
    """A folder of 8 scans without classes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "noise"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (48, 64), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


class Scripts(HTMLParser):
    """Collects a page's scripts, its elements and everything it would load."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.scripts += [""] if tag == "script" else []
        self.loads += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, text):
        if self.cdata_elem == "script":
            self.scripts[-1] += text


def clusters(scans: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three groups that lie in different directions, and the group of each point."""
    rng = np.random.default_rng(seed)
    labels = np.arange(scans) % 3
    return (4 * np.eye(3)[labels] @ rng.normal(size=(3, 8)) + rng.normal(size=(scans, 8))).astype(np.float32), labels


def test_a_patients_own_scans_are_no_neighbours():
    """Every scan's twins are its own patient's; among other patients the nearest are those of the other class."""
    angles = np.deg2rad([0, 1, 2, 10, 11, 12, 90, 91, 92, 100, 101, 102])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    patients = np.repeat(["a", "b", "c", "d"], 3)
    labels = np.repeat([0, 1, 1, 0], 3)
    assert purity(nearest(features, np.arange(12), 2), labels).mean() == 1
    assert purity(nearest(features, patients, 3), labels).mean() == 0
    flat = nearest(features, patients, 3, "euclidean")
    assert np.array_equal(np.sort(flat), np.sort(nearest(features, patients, 3)))
    np.testing.assert_allclose(chance_purity(labels, patients), 3 / 9)


def test_chance_is_what_random_neighbours_give():
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, 3, 200), rng.integers(0, 20, 200)
    drawn = [
        purity(nearest(rng.normal(size=(200, 6)).astype(np.float32), patients, 20), labels).mean() for _ in range(20)
    ]
    assert np.mean(drawn) == pytest.approx(chance_purity(labels, patients).mean(), abs=0.01)


def test_agreement_ignores_what_a_map_leaves_open():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(80, 2))
    turned = 3 * points[:, ::-1] @ [[0.6, -0.8], [0.8, 0.6]] + 5  # mirrored, turned, scaled, shifted
    same, other = agreement([points, turned], 5), agreement([points, rng.normal(size=(80, 2))], 5)
    assert same["overlap"] == (1, 1, 1)
    assert max(same["procrustes"]) < 1e-9
    assert other["overlap"][0] < 0.15
    assert other["procrustes"][0] > 0.8
    np.testing.assert_allclose(aligned(turned / 3, points), points, atol=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_many_scans_are_mapped_by_their_exact_neighbours(metric, monkeypatch, recwarn):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 12)).astype(np.float32)
    features[5] = features[4]  # twins are each other's nearest, at 0
    position, distance = embeddings._with_themselves(features, 8, metric)
    expected = np.sort(cdist(features, features, metric), axis=1)[:, :8]
    np.testing.assert_allclose(np.sort(distance, axis=1), expected, atol=2e-3)
    assert (distance[position == np.arange(300)[:, None]] == 0).all()
    monkeypatch.setattr(embeddings, "_EXACT", range(100, 1000))
    features[:150] += 8
    points = umap_map(features, 0, metric=metric)
    groups = np.arange(300) < 150
    assert purity(nearest(points, np.arange(300), 10, "euclidean"), groups).mean() > 0.95
    assert not recwarn.list


def test_a_map_belongs_to_its_seed_and_keeps_groups_together():
    features, labels = clusters()
    maps = [umap_map(features, seed, n_neighbours=10) for seed in (0, 0, 1)]
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])
    assert purity(nearest(maps[0], np.arange(60), 5, "euclidean"), labels).mean() > 0.9


def test_what_the_command_tells(animated):
    printed, folder = animated
    for words in ("PHANTOMS: synthetic scans", "all splits, 48 scans of 12 patients", "starting weights", BESIDE,
                  "model − raw pixels", "chance", "3-NN purity %", "mean nothing by themselves",
                  "were trained on", "--run.keep-every", "no row for random weights", "sha256"):  # fmt: skip
        assert words in printed, printed
    result = json.loads((folder / "embedding_map.json").read_text())
    assert list(result["rows"]) == ["model", "starting weights", BESIDE, "raw pixels"]
    for row in result["rows"].values():
        assert row["purity"]["low"] <= row["purity"]["point"] <= row["purity"]["high"]
        assert 0 <= row["trustworthiness"] <= 1
        assert len(row["stability"]["overlap"]) == 3
    for name, difference in result["differences"].items():
        other = result["rows"][name.removeprefix("model − ")]
        for measure, interval in difference.items():
            expected = result["rows"]["model"][measure]["point"] - other[measure]["point"]
            assert interval["point"] == pytest.approx(expected)
    assert result["settings"]["umap"] == {"n_neighbors": 15, "min_dist": 0.1, "metric": "euclidean"}
    assert next(iter(result["training"])) == "start"
    assert result["training"]["start"]["purity"] == result["rows"]["starting weights"]["purity"]
    assert list(result["training"].values())[-1]["purity"] == result["rows"]["model"]["purity"]


def test_figures_and_coordinates(animated):
    _, folder = animated
    result = json.loads((folder / "embedding_map.json").read_text())
    with Image.open(folder / "maps.png") as image:
        assert min(image.size) > 400
    with Image.open(folder / "training.gif") as image:
        assert image.n_frames > len(result["training"])
        assert image.info["loop"] == 0
    with np.load(folder / "maps.npz") as arrays:
        assert arrays["row0"].shape == (2, 48, 2)
        assert {f"row{i}" for i in range(4)} | {"frame0", "files", "labels", "patients"} <= set(arrays)
        assert len(set(arrays["patients"].tolist())) == 12


def test_the_page_is_whole_and_loads_nothing(animated):
    _, folder = animated
    page = Scripts((folder / "maps.html").read_text())
    assert page.loads == []
    assert "http" not in page.scripts[1]
    scans, panels = page.data["scans"], page.data["panels"]
    assert {len(column) for column in scans.values()} == {48}
    with Image.open(io.BytesIO(base64.b64decode(scans["image"][0]))) as image:
        assert image.format == "JPEG"
        assert image.size == (64, 64)
    assert [panel["title"].split(":")[0] for panel in panels] == [
        "model", "starting weights", "random", "raw pixels", "over training",
    ]  # fmt: skip
    with np.load(folder / "maps.npz") as arrays:
        assert scans["file"] == arrays["files"].tolist()
        drawn, stored = np.array([panels[0]["frames"][0][axis] for axis in "xy"]), arrays["row0"][0].T
    assert drawn.min() >= 0
    assert drawn.max() <= 10_000
    assert np.corrcoef(drawn[0], stored[0])[0, 1] > 0.9999
    for panel in panels[:-1]:
        for i, near in enumerate(panel["near"]):
            assert len(near) == 3
            assert scans["patient"][i] not in [scans["patient"][j] for j in near]
    assert len(panels[-1]["frames"]) > 1
    assert panels[-1]["near"] is None


def test_the_projectors_export_is_replaced_not_repeated(animated, tmp_path):
    _, folder = animated
    for _ in range(2):
        notes = write_projector(
            {"wide": np.random.default_rng(0).normal(size=(300, 400))},
            ("class", "file"),
            [["CNV", f"a\tb\n{i}"] for i in range(300)],
            np.zeros((300, 8, 8), dtype=np.uint8),
            tmp_path / "export",
        )
    assert "256 principal components of 400" in notes[0]
    assert (tmp_path / "export" / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    assert len(list((tmp_path / "export").glob("events.*"))) == 1
    lines = (tmp_path / "export" / "00000" / "wide" / "metadata.tsv").read_text().splitlines()
    assert lines[:2] == ["class\tfile", "CNV\ta b 0"]
    assert len(lines) == 301
    config = (folder / "projector" / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 4
    for file in re.findall(r'path: "(.*)"', config):
        assert (folder / "projector" / file).is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(InputError, match="not an earlier export"):
        write_projector({}, (), [], np.zeros((0, 8, 8), dtype=np.uint8), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"


@pytest.fixture
def hostile():
    """A page whose folder, class, patient and file names try to be markup."""
    points = np.random.default_rng(0).normal(size=(20, 2))
    panels = [
        Panel(f"{HOSTILE} {i}", (Frame(HOSTILE, points), Frame(HOSTILE, points)), np.arange(20)[:, None] // 2)
        for i in range(2)
    ]
    names = [HOSTILE] * 20
    images = embedding_page.thumbnails([np.full((30, 40), 9 * i, dtype=np.uint8) for i in range(20)])
    scans = {"file": names, "patient": names, "split": names, "image": images}
    data = embedding_page.page_data(panels, marks([HOSTILE, "b"], False), np.arange(20) % 2, 1, scans)
    return embedding_page.page(HOSTILE, HOSTILE, [HOSTILE], data)


def test_names_are_never_markup(hostile):
    page = Scripts(hostile)
    assert page.tags.count("script") == 2
    assert not {"img", "b"} & set(page.tags)
    assert page.data["classes"][0]["name"] == page.data["scans"]["file"][0] == HOSTILE
    assert "innerHTML" not in page.scripts[1]


@needs_chromium
def test_the_page_in_a_browser(hostile, tmp_path):
    """Pointing at a scan shows it and marks it in every panel; the legend hides its class everywhere."""
    steps = """
      await pause(200);
      const canvases = [...document.querySelectorAll(".plot canvas:last-child")];
      const box = canvases[0].getBoundingClientRect(), under = canvases[1].previousSibling;
      const before = canvases.map(ink), card = document.querySelector(".card");
      for (let i = 0; i < 100 && card.hidden; i++) for (let j = 0; j < 100 && card.hidden; j++)
        canvases[0].dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * i / 100,
          clientY: box.top + box.height * j / 100, pointerType: "mouse"}));
      const after = canvases.map(ink), shown = !card.hidden, text = card.textContent;
      canvases[0].dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
      const full = ink(under);
      document.querySelector(".legend button").click();
      Object.assign(seen, {before, after, shown, text, hidden: card.hidden,
        image: card.querySelector("img").naturalWidth, less: ink(under) < full, elements: document.images.length});
    """
    state = in_browser(hostile, tmp_path, steps=steps)
    assert state["problems"] == []
    assert state["before"] == [0, 0]
    assert min(state["after"]) > 0
    assert state["shown"]
    assert HOSTILE in state["text"]
    assert state["hidden"]
    assert state["less"]
    assert state["elements"] == 1
    assert state["title"] == HOSTILE


@needs_chromium
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 480)])
def test_the_page_is_right_for_everyone(hostile, scheme, width, tmp_path):
    check_page(hostile, tmp_path, scheme, width)


def test_a_page_of_many_scans_is_bounded(trained, own_cache, monkeypatch, tmp_path):
    source = open_source(str(trained))
    options = parse_options(embedding_map.Options, ["--model", str(trained), "--seeds", "1", "--bootstrap", "20"])
    result, maps = protocol.evaluate([source], options)
    monkeypatch.setattr(embedding_results, "MOST_SHOWN", 10)
    embedding_results.write_results(result, maps, tmp_path, projector=None)
    page = Scripts((tmp_path / "maps.html").read_text())
    assert {len(column) for column in page.data["scans"].values()} == {10}
    assert page.data["panels"][0]["near"] is None
    assert "10 of 16 scans are on this page" in (tmp_path / "maps.html").read_text()
    assert result.rows["model"].stability is None
    assert not (tmp_path / "projector").exists()
    scans = [np.random.default_rng(i).integers(0, 255, (300, 400), dtype=np.uint8) for i in range(12)]
    large = sum(map(len, embedding_page.thumbnails(scans)))
    monkeypatch.setattr(embedding_page, "IMAGE_BYTES", large // 4)
    assert sum(map(len, embedding_page.thumbnails(scans))) < large / 2


def test_more_scans_than_asked_for_are_drawn_by_seed(trained, own_cache):
    args = ["--model", str(trained), "--split", "all", "--max-scans", "20", "--seeds", "1", "--bootstrap", "0"]
    result, maps = protocol.evaluate([open_source(str(trained))], parse_options(embedding_map.Options, args))
    assert len(set(maps.chosen.tolist())) == 20
    assert set(maps.data.index.splits[maps.chosen].tolist()) == {"train", "val", "test"}
    assert any("20 of 48 scans drawn by seed" in note for note in result.notes)
    assert any("were trained on" in note for note in result.notes)
    # The silhouette as Rousseeuw (1987) writes it, with cosine distances.
    labels, features = maps.labels[maps.comparable], maps.features["model"][maps.comparable].astype(float)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = np.where(np.eye(len(unit), dtype=bool), np.nan, 1 - unit @ unit.T)
    to_class = np.stack([np.nanmean(distance[:, labels == c], axis=1) for c in np.unique(labels)], axis=1)
    own = labels[:, None] == np.unique(labels)
    inside, outside = to_class[own], np.where(own, np.inf, to_class).min(axis=1)
    expected = ((outside - inside) / np.maximum(inside, outside)).mean()
    assert result.rows["model"].silhouette.point == pytest.approx(expected, abs=1e-6)


def test_scans_without_labels_are_mapped_in_grey(noise, own_cache, tmp_path):
    args = ["--model", BESIDE, "--data", noise, "--image-size", 32, 32, "--seeds", 1, "--bootstrap", 0]
    printed = evaluated([*args, "--split", "all", "--out", tmp_path / "out"])
    for words in ("no labels: no silhouette and no purity", "neighbours 15: 7 here", "k 10: 3 here"):
        assert words in printed, printed
    result = json.loads((tmp_path / "out" / "embedding_map.json").read_text())
    assert set(result["rows"]["model"]) == {"trustworthiness"}
    page = Scripts((tmp_path / "out" / "maps.html").read_text())
    assert [mark["name"] for mark in page.data["classes"]] == ["unlabelled"]
    assert "a map needs at least 5" in refused(args)
    assert "no checkpoints to animate" in refused([*args, "--animate", True])


def test_classes_that_cannot_be_compared_are_left_out():
    labels, names = np.array([0, 0, 1, 1, 2, 2, -1]), ("CNV", "DME", "NORMAL")
    patients = np.array(list("ababaax"))
    usable, notes = protocol.comparable_scans(labels, patients, names)
    assert usable.tolist() == [True] * 4 + [False] * 3
    assert "1 scan without a class" in notes[0]
    assert "one patient only of NORMAL" in notes[1]
    usable, notes = protocol.comparable_scans(labels[:2], patients[:2], names)
    assert not usable.any()
    assert "fewer than two classes" in notes[0]


def test_checkpoints_are_in_the_order_of_training(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "start").mkdir(parents=True)
    (folder / "start" / "config.json").write_text("{}")
    for step in (900, 100, 1000, 200, 50):
        (folder / f"step_{step:07d}.pt").touch()
    states, notes = protocol.checkpoints(tmp_path, 16)
    assert list(states) == ["start", "step 50", "step 100", "step 200", "step 900", "step 1,000", "final"]
    assert notes == []
    states, _ = protocol.checkpoints(tmp_path, 4)
    assert list(states) == ["start", "step 50", "step 1,000", "final"]
    states, _ = protocol.checkpoints(tmp_path, 2)
    assert list(states) == ["start", "final"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--neighbours", 1], "--neighbours 1: must be from 2"),
        (["--seeds", 0], "seeds 0"),
        (["--k", 0], "k 0"),
        (["--min-dist", 2], "--min-dist 2.0: must be from 0 to 1"),
        (["--metric", "manhattan"], "metric"),
        (["--max-scans", 4], "--max-scans 4: must be from 5"),
        (["--beside", BESIDE, BESIDE], "a source is given twice"),
        (["--beside", "nowhere"], "nowhere: no such file or folder"),
        (["--beside", "random:nothing"], "random:nothing: timm has no model 'nothing'"),
        (["--split", "tset"], "split"),
    ],
)
def test_wrong_settings_are_one_line(args, message, trained, own_cache, tmp_path):
    assert message in refused(["--model", trained, "--out", tmp_path, *args])
