"""Every source as a classifier: its own, or a linear head fitted on frozen features and put into the model."""

import numpy as np
import pytest
import torch
from conftest import REFERENCE
from PIL import Image

from dino_oct.errors import InputError
from dino_oct.features import resize_all
from dino_oct.models.backbone import load_backbone
from dino_oct.models.layers import embed
from dino_oct.models.network import normalise
from dino_oct.scores.probes import LinearClassifier
from evaluation.config import ClassTargetOptions
from evaluation.inputs.model import open_classifiers, put_head
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import open_source
from supervised.architectures import build


@pytest.fixture
def images(trained, cache_root, monkeypatch):
    """Test scans of the tiny runs, and their classes."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    source = open_source(str(trained))
    data = open_data(source, ClassTargetOptions(), lambda text: None)
    positions = data.labelled("val")
    return resize_all((data.scans[i] for i in positions), (32, 32)), data.index.labels[positions]


def opened(source, options):
    (model,) = open_classifiers([source], options).values()
    return model


def logits(classifier, images):
    with torch.no_grad():
        return classifier.model(classifier.prepare(images))


def test_a_supervised_run_brings_its_own_classifier(fitted, images):
    model = opened(open_source(str(fitted)), ClassTargetOptions())
    assert (model.head, model.class_names) == ("own", ("CNV", "DME", "DRUSEN", "NORMAL"))
    assert not model.model.training
    network = load_backbone(str(fitted), num_classes=None).eval()
    with torch.no_grad():
        assert torch.equal(logits(model, images[0]), network(normalise(images[0], network)))
    with pytest.raises(InputError, match=r"class AMD: .* has CNV, DME, DRUSEN, NORMAL"):
        model.class_index("AMD")


@pytest.mark.parametrize("head", ["probe", "prototype"])
def test_a_dino_run_gets_a_head_that_is_linear_in_its_features(head, trained, images):
    model = opened(open_source(str(trained)), ClassTargetOptions(classifier=head))
    assert (model.head, model.input_size, model.model.training) == (head, (32, 32), False)
    grey, labels = images
    scores = logits(model, grey)
    linear = model.model.get_classifier()
    with torch.no_grad():
        expected = embed(model.model, model.prepare(grey)) @ linear.weight.T + linear.bias
    torch.testing.assert_close(scores, expected)
    # The accuracy that is told is that of the model as it stands.
    correct = scores.argmax(dim=1).numpy() == labels
    balanced = 100 * np.mean([correct[labels == c].mean() for c in np.unique(labels)])
    assert model.fitted.val_balanced_accuracy == pytest.approx(balanced)
    assert f"validation balanced accuracy {balanced:.1f} %" in model.target


def test_prototypes_order_classes_by_cosine(trained, images):
    model = opened(open_source(str(trained)), ClassTargetOptions(classifier="prototype"))
    with torch.no_grad():
        features = embed(model.model, model.prepare(images[0]))
    directions = model.model.get_classifier().weight
    cosines = torch.nn.functional.cosine_similarity(features[:, None], directions[None], dim=2)
    assert torch.equal(cosines.argmax(dim=1), logits(model, images[0]).argmax(dim=1))
    lengths = directions.norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(4))  # no class is favoured


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "deit_tiny_distilled_patch16_224"])
def test_a_head_fits_every_kind_of_classifier(name):
    """Also the one of distilled models, which average two."""
    args = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3} if "deit" in name else None
    classifier = build(name, 1, image_size=(32, 32), pretrained=False, model_args=args)
    classifier.model.eval()
    images = classifier.prepare(torch.rand(2, 1, 32, 32))
    with torch.no_grad():
        features = embed(classifier.model, images)
    head = LinearClassifier(torch.randn(3, features.shape[1]), torch.randn(3))
    put_head(classifier.model, head)
    with torch.no_grad():
        torch.testing.assert_close(classifier.model(images), features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)


def test_without_labels_the_way_out_is_named(trained, tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    file = str(REFERENCE / "backbone_final.pth")
    with pytest.raises(InputError, match=r"has no classifier of OCT classes.*--data DIR.*supervised run"):
        opened(open_source(file), ClassTargetOptions(heads=3))
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 90, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=r"none can be fitted.*--data DIR") as error:
        opened(open_source(str(trained)), ClassTargetOptions(data=str(tmp_path)))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match="no classifier of its own; use --classifier probe"):
        opened(open_source(str(trained)), ClassTargetOptions(classifier="own"))
