"""Exports give what the network gives, in every form; the card tells what is known and nothing else."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from conftest import FEW_PHANTOMS
from PIL import Image

from dino_oct.data.decode import decode
from dino_oct.errors import InputError
from dino_oct.features import resize_all
from dino_oct.models import portable
from dino_oct.models.attention import cls_attention
from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.models.network import cls_feature
from dino_oct.models.portable import Portable
from evaluation.config import ExportOptions
from evaluation.inputs import fitted as kept
from evaluation.inputs.model import open_model
from evaluation.inputs.sources import open_source
from evaluation.inputs.stream import answers
from evaluation.protocols import export_model
from evaluation.protocols.model_card import escaped

CLASSES = ["CNV", "DME", "DRUSEN", "NORMAL"]
HOSTILE = "a|b <script>x</script> [y](javascript:z) ![i](http://h/p.png) `c` *d* \u202e# https://e.org"


@pytest.fixture(scope="module")
def probed(trained, command, tmp_path_factory) -> Path:
    """A copy of a tiny pretraining run with the probe that predict keeps."""
    run = tmp_path_factory.mktemp("probed") / "vit tiny"
    shutil.copytree(trained, run)
    (run / "export" / "classifier.json").unlink(missing_ok=True)
    finished = command("evaluation/predict.py", run, "phantom", *FEW_PHANTOMS, "--out", run.parent / "predictions")
    assert finished.returncode == 0, finished.stderr
    return run


@pytest.fixture
def export(call, tmp_path):
    """``export(MODEL, …)``: the folder that was written, and what was printed."""

    def run(*args):
        finished = call("evaluation/export_model.py", *args, "--out", tmp_path / "out")
        assert finished.returncode == 0, finished.stderr
        return tmp_path / "out", finished.stdout

    return run


def images_of(folder: Path, batch: int = 5) -> torch.Tensor:
    _, channels, rows, columns = json.loads((folder / "preprocessing.json").read_text())["input"]["images"]
    return torch.randn(batch, channels, rows, columns, generator=torch.Generator().manual_seed(1))


def test_every_form_gives_the_logits_of_the_kept_probe(probed, export):
    onnxruntime = pytest.importorskip("onnxruntime")
    out, said = export(probed, "--format", "timm", "hf", "onnx", "torch-export")
    assert "logits of 4 classes, of the probe" in said
    assert len(re.findall(r"differs by \d\.\de-?\+?\d+ at most", said)) == 4
    model = open_model(open_source(str(probed)))
    stored = kept.read(probed / "export")
    model = kept.attach(model, stored)
    images = images_of(out / "onnx")
    with torch.no_grad():
        expected = model.model(images)
        assert expected.shape == (5, 4)
        for folder in ("timm", "hf"):
            read = timm.create_model(f"local-dir:{out / folder}", pretrained=True).eval()
            torch.testing.assert_close(read(images), expected, atol=1e-4, rtol=1e-4)
        extra = {"preprocessing.json": ""}
        program = torch.export.load(str(out / "torch-export" / "model.pt2"), extra_files=extra).module()
        torch.testing.assert_close(program(images)[0], expected, atol=1e-4, rtol=1e-4)
    session = onnxruntime.InferenceSession(str(out / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    facts = json.loads((out / "onnx" / "preprocessing.json").read_text())
    written = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts == written == json.loads(extra["preprocessing.json"])
    assert (facts["classes"], facts["temperature"]) == (CLASSES, stored.temperature)
    assert json.loads((out / "timm" / "config.json").read_text())["label_names"] == CLASSES


def test_the_written_preprocessing_makes_the_images_of_this_package(probed, export, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "scan.png")
    out, _ = export(probed, "--format", "torch-export")
    facts = json.loads((out / "torch-export" / "preprocessing.json").read_text())["preprocessing"]
    size = facts["resize"]["columns"], facts["resize"]["rows"]
    grey = np.asarray(Image.open(tmp_path / "scan.png").resize(size, Image.Resampling.BICUBIC)) / 255
    image = (np.repeat(grey[None], 3, 0) - np.array(facts["mean"])[:, None, None]) / np.array(facts["std"])[
        :, None, None
    ]
    program = torch.export.load(str(out / "torch-export" / "model.pt2")).module()
    model = kept.attach(open_model(open_source(str(probed))), kept.read(probed / "export"))
    expected, _ = answers(model, resize_all([decode(tmp_path / "scan.png").scan], model.input_size))
    np.testing.assert_allclose(program(torch.from_numpy(image[None]).float())[0].detach(), expected, atol=1e-4)


def test_features_and_attention_are_those_of_the_network(trained, export):
    onnxruntime = pytest.importorskip("onnxruntime")
    args = ["--output", "features", "--attention", "True", "--image-size", "48", "32"]
    out, _ = export(trained, "--format", "onnx", *args)
    network = load_backbone(str(trained)).eval()
    images = images_of(out / "onnx", 2)
    session = onnxruntime.InferenceSession(str(out / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    features, attention = session.run(["features", "attention"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(features, cls_feature(network, images), atol=1e-4)
        expected = cls_attention(network, images)
    np.testing.assert_allclose(attention, expected, atol=1e-5)
    shape = json.loads((out / "onnx" / "preprocessing.json").read_text())["outputs"]["attention"]
    assert tuple(shape[1:]) == expected.shape[1:] == (2, 6, 4)


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, (64, 96)),
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "in_chans": 1}, (64, 64)),
        ("vit_small_patch14_reg4_dinov2", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 70}, (56, 56)),
        ("vit_small_patch16_dinov3", {"embed_dim": 96, "depth": 2, "num_heads": 3}, (64, 64)),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, (64, 96)),
    ],
)
@pytest.mark.parametrize("classes", [0, 3])
def test_any_network_at_any_size(name, args, size, classes, tmp_path):
    model = load_backbone(f"random:{name}", num_classes=classes, model_args=args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_export(model, tmp_path / "export", [*"abc"][:classes] or None)
    options = ExportOptions(str(tmp_path / "export"), ("hf", "torch-export"), tmp_path / "out", image_size=size)
    export_model.run(options)
    images = images_of(tmp_path / "out" / "hf")
    assert tuple(images.shape[2:]) == size
    read = timm.create_model(f"local-dir:{tmp_path / 'out' / 'hf'}", pretrained=True).eval()
    network = load_backbone(str(tmp_path / "export"), num_classes=None).eval()
    with torch.no_grad():
        expected = network(images) if classes else cls_feature(network, images)
        torch.testing.assert_close(read(images), expected, atol=1e-4, rtol=1e-4)
    again = load_backbone(str(tmp_path / "out" / "hf"), num_classes=None)
    assert again.hub_config.get("label_names", []) == [*"abc"][:classes]


def test_transformers_reads_the_folder(fitted, export):
    transformers = pytest.importorskip("transformers", minversion="4.56")
    out, said = export(fitted)
    assert "its own classifier" in said
    read = transformers.AutoModelForImageClassification.from_pretrained(out / "hf").eval()
    assert list(read.config.id2label.values()) == CLASSES
    images, network = images_of(out / "hf"), load_backbone(str(fitted), num_classes=None).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(images).logits, network(images), atol=1e-5, rtol=1e-5)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    def other(*args, **kwargs):
        model = create(*args, **kwargs)
        with torch.no_grad():
            model.fc.bias.add_(2e-4)
        return model

    create = timm.create_model
    save_export(load_backbone("random:test_resnet", num_classes=2), tmp_path / "export", ["a", "b"])
    options = ExportOptions(str(tmp_path / "export"), ("timm",), tmp_path / "out")
    export_model.run(options)
    kept_files = {file: file.read_bytes() for file in (tmp_path / "out" / "timm").iterdir()}
    monkeypatch.setattr(portable.timm, "create_model", other)
    with pytest.raises(InputError, match="differs from the network's by"):
        portable.write_timm(Portable(load_backbone("random:test_resnet", num_classes=2).eval(), "logits", (160, 160)),
                            tmp_path, ["a", "b"])  # fmt: skip
    monkeypatch.setattr(portable, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="not kept"):
        export_model.run(options)
    assert {file: file.read_bytes() for file in (tmp_path / "out" / "timm").iterdir()} == kept_files
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["timm"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "expected a model"),
        (["random:test_resnet", "--format", "onnx", "--attention", "True"], "no CLS token"),
        (["random:test_resnet", "--attention", "True"], "--attention True: it is an output of --format onnx"),
        (["random:test_vit", "--output", "logits"], "has no classifier; dino-oct predict keeps one"),
        (["random:test_vit", "--format", "tensorrt"], "--format"),
        (["random:test_vit", "--image-size", "100", "100"], "not a multiple of the patch"),
    ],
)
def test_wrong_input_is_one_line(args, words, call, tmp_path):
    finished = call("evaluation/export_model.py", *args, "--out", tmp_path / "out")
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert words in finished.stderr


def test_a_folder_of_something_else_stays(call, tmp_path):
    (tmp_path / "out" / "hf").mkdir(parents=True)
    (tmp_path / "out" / "hf" / "thesis.txt").write_text("years")
    finished = call("evaluation/export_model.py", "random:test_resnet", "--out", tmp_path / "out")
    assert finished.returncode == 2
    assert "is no earlier export" in finished.stderr
    assert (tmp_path / "out" / "hf" / "thesis.txt").read_text() == "years"


def test_without_onnx_one_line_says_what_to_install(monkeypatch, call, tmp_path):
    find = portable.importlib.util.find_spec
    monkeypatch.setattr(portable.importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    finished = call("evaluation/export_model.py", "random:test_vit", "--format", "onnx", "--out", tmp_path / "out")
    assert finished.returncode == 2
    assert finished.stderr == 'error: ONNX needs onnx, onnxruntime, onnxscript: pip install "dino-oct[onnx]"\n'


def test_a_probe_of_other_weights_is_left_out(probed, export, tmp_path):
    shutil.copytree(probed, tmp_path / "run")
    file = tmp_path / "run" / "export" / "classifier.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": "0" * 16}))
    _, said = export(tmp_path / "run", "--format", "timm")
    assert "of other weights: left out" in said
    assert "gives features (32)" in said


# ---- the card --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(probed, command) -> Path:
    """The probed run, with results of k-NN and with those of its starting weights under the same name."""
    finished = command("evaluation/knn.py", "--model", probed, "--k", "3", "--bootstrap", "50")
    assert finished.returncode == 0, finished.stderr
    file = probed / "evaluation" / "knn" / "knn_test.json"
    other = json.loads(file.read_text())
    other["weights"]["model"]["sha256"] = "0" * 16
    other["rows"]["model"]["3"]["accuracy"]["point"] = 12.3
    (probed / "evaluation" / "other").mkdir()
    (probed / "evaluation" / "other" / "knn_test.json").write_text(json.dumps(other))
    return probed


def test_the_card_tells_what_the_run_knows(judged, export):
    out, _ = export(judged, "--format", "card")
    text = (out / "card" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["library_name"], head["license"]) == ("timm", "unknown")
    assert (head["pipeline_tag"], "dino" in head["tags"]) == ("image-classification", True)
    table = pd.read_csv(judged / "scans.csv", dtype=str)
    for label in CLASSES:
        cells = [
            f"{len(rows)} ({rows['patient'].nunique()})"
            for split in ("train", "val", "test")
            for rows in [table[(table["label"] == label) & (table["split"] == split)]]
        ]
        assert f"| {label} | {' | '.join(cells)} |" in text
    found = json.loads((judged / "evaluation" / "knn" / "knn_test.json").read_text())
    accuracy = found["rows"]["model"]["3"]["accuracy"]
    assert f"| k-NN, k = 3 | {accuracy['point']:.1f} [{accuracy['low']:.1f}, {accuracy['high']:.1f}] |" in text
    assert "12.3" not in text
    assert "left out, of other weights: 1 result" in text
    assert "phantoms (synthetic)" in text
    assert "not a medical device" in text
    assert "| `random:vit_tiny_r_s16_p8_224` | none: random weights |" in text
    for secret in (str(judged), str(judged.parent), os.path.expanduser("~"), socket.gethostname() + "/"):
        assert secret not in text


def test_the_code_of_the_card_works(judged, export, monkeypatch):
    out, _ = export(judged, "--format", "hf")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "hf" / "README.md").read_text(), re.DOTALL)
    noise = np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8)
    monkeypatch.chdir(out / "hf")
    Image.fromarray(noise).save("scan.png")
    names: dict = {}
    exec(code, names)
    stored = kept.read(judged / "export")
    model = kept.attach(open_model(open_source(str(judged))), stored)
    logits, _ = answers(model, resize_all([noise], model.input_size))
    np.testing.assert_allclose(names["probabilities"], stored.probabilities(logits), atol=1e-4)


def test_hostile_names_are_text(fitted, tmp_path, call):
    markdown_it = pytest.importorskip("markdown_it")
    run = tmp_path / f"{HOSTILE.replace('/', '')}"
    shutil.copytree(fitted, run)
    for file in ("scans.csv", "export/config.json"):
        text = (run / file).read_text()
        assert "DRUSEN" in text
        name = json.dumps(HOSTILE)[1:-1] if file.endswith("json") else HOSTILE
        (run / file).write_text(re.sub(r'(?<=[,"])DRUSEN(?=[,"])', lambda _, name=name: name, text))
    finished = call("evaluation/export_model.py", run, "--format", "card", "--out", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    text = (tmp_path / "out" / "card" / "README.md").read_text()
    assert "\u202e" not in text
    body = text.split("---\n", 2)[2]
    page = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    for tag in ("<script", "<a ", "<img", "<em>x", "<em>d"):
        assert tag not in page
    assert page.count("&lt;script&gt;") >= 3
    (row,) = [line for line in text.splitlines() if "script" in line and re.search(r"\d \(\d", line)]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def test_an_unknown_network_has_an_unknown_past(tmp_path, call):
    torch.save(load_backbone("random:test_resnet").state_dict(), tmp_path / "Jane Doe.pth")
    source = f"timm:test_resnet@{tmp_path / 'Jane Doe.pth'}"
    finished = call("evaluation/export_model.py", source, "--format", "card", "--out", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    text = (tmp_path / "out" / "card" / "README.md").read_text()
    assert "Unknown: the weights are not of a run" in text
    assert "None are known here." in text
    assert "| unknown |" in text
    assert str(tmp_path) not in text


def test_the_first_weights_are_followed_to_their_licence(trained, tmp_path, call):
    for name, init in (("first", "timm:vit_base_patch8_224.dino"), ("second", tmp_path / "first")):
        shutil.copytree(trained, tmp_path / name)
        file = tmp_path / name / "config.yaml"
        file.write_text(re.sub(r"^init: .*$", f"init: {init}", file.read_text(), flags=re.M))
    args = [tmp_path / "second", "--format", "card", "--out", tmp_path / "out"]
    assert call("evaluation/export_model.py", *args).returncode == 0
    text = (tmp_path / "out" / "card" / "README.md").read_text()
    licence = timm.get_pretrained_cfg("vit_base_patch8_224.dino").license
    assert f"| `timm:vit_base_patch8_224.dino` | {escaped(licence)}, as timm states it |" in text
    assert "| `init` | `first` |" in text
    assert str(tmp_path) not in text


def test_the_numbers_of_an_audit_are_in_the_card(trained, tmp_path, call, cache_root):
    shutil.copytree(trained, tmp_path / "run")
    phantoms = min(file.parent for file in cache_root.glob("phantom-*/phantom.json"))
    audit = call("dino_oct/data/audit.py", phantoms, "--json", tmp_path / "run" / "audit.json")
    assert audit.returncode == 0, audit.stderr
    args = [tmp_path / "run", "--format", "card", "--out", tmp_path / "out"]
    assert call("evaluation/export_model.py", *args).returncode == 0
    text = (tmp_path / "out" / "card" / "README.md").read_text()
    assert f"Audit of `{phantoms.name}`: files left out 0" in text
    assert "patients in two splits (as used) 0" in text
    (tmp_path / "run" / "audit.json").write_text("{}")
    assert call("evaluation/export_model.py", *args).returncode == 0
    assert "audit.json cannot be read" in (tmp_path / "out" / "card" / "README.md").read_text()


def test_escaped_text_is_one_line_without_markup():
    assert escaped("a\n# b") == "a \\# b"
    assert escaped("<b>") == "&lt;b&gt;"
    assert escaped("CNV_2 (new)") == "CNV\\_2 \\(new\\)"
    assert escaped("DME") == "DME"
