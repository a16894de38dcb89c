"""Agreement with the public DINO implementation, to 1e-4 relative in float32."""

import numpy as np
import pytest
import torch
from conftest import REFERENCE
from reference_run import learner_and_schedules
from torch._dynamo.testing import CompileCounter

from dino_oct.knn import knn_votes
from dino_oct.learner import NotFiniteError
from dino_oct.models import official
from dino_oct.models.attention import cls_attention, linear_probe_features
from dino_oct.models.backbone import load_backbone
from dino_oct.schedules import warmup_cosine

TOLERANCE = 1e-4


def relative(ours, theirs) -> float:
    ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("file", ["backbone_final.pth", "checkpoint_final.pth"])
@pytest.mark.parametrize("size", ["32x32", "40x64", "72x56"])
def test_features_and_attention(file, size):
    arrays = np.load(REFERENCE / "features.npz")
    images = torch.from_numpy(arrays[f"image_{size}"]).float()
    backbone = load_backbone(str(REFERENCE / file), heads=3).eval()
    with torch.no_grad():
        cls = backbone.forward_features(images)[:, 0]
    assert relative(cls, arrays[f"cls_{size}"]) < TOLERANCE
    assert relative(cls_attention(backbone, images).flatten(2), arrays[f"attention_{size}"]) < TOLERANCE
    assert relative(linear_probe_features(backbone, images, 3), arrays[f"linear_n3_{size}"]) < TOLERANCE
    base = linear_probe_features(backbone, images, 1, mean_patch=True)
    assert relative(base, arrays[f"linear_n1_avgpool_{size}"]) < TOLERANCE


def test_schedules():
    arrays = np.load(REFERENCE / "schedules.npz")  # 10 epochs of 7 iterations, 3 of warm-up
    np.testing.assert_allclose(warmup_cosine(0.002, 1e-6, 70, 21), arrays["lr"], rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(warmup_cosine(0.04, 0.4, 70), arrays["wd"], rtol=1e-12)
    np.testing.assert_allclose(warmup_cosine(0.996, 1, 70), arrays["momentum"], rtol=1e-12)


def test_six_steps_of_training(record, reference_views):
    learner, schedules = learner_and_schedules(record["config"])
    for step, views in enumerate(reference_views):
        metrics = learner.step([views], schedules[step])
        assert metrics["loss"] == pytest.approx(record["loss"][step], rel=TOLERANCE)
        assert metrics["center_norm"] == pytest.approx(record["center_norm"][step], rel=TOLERANCE)
    final = official.read_checkpoint(REFERENCE / "checkpoint_final.pth")
    for which, ours in (("student", learner.student), ("teacher", learner.teacher)):
        theirs = official.network_tensors(final, which)
        assert ours.state_dict().keys() == theirs.keys()
        for name, tensor in ours.state_dict().items():
            assert relative(tensor, theirs[name]) < TOLERANCE, name
    assert relative(learner.targets.center, final["dino_loss"]["center"]) < TOLERANCE
    groups = final["optimizer"]["param_groups"]
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(float(groups[0]["lr"]))
    assert [g["weight_decay"] for g in learner.optimizer.param_groups] == pytest.approx(
        [float(g["weight_decay"]) for g in groups]
    )


def test_knn_accuracies(record):
    arrays = np.load(REFERENCE / "knn.npz")
    ks = [int(k) for k in record["knn_top1_percent_temperature_0.07"]]
    n_classes = int(arrays["train_labels"].max()) + 1
    votes = knn_votes(arrays["train_features"], arrays["train_labels"], arrays["test_features"], ks, n_classes)
    for k, expected in record["knn_top1_percent_temperature_0.07"].items():
        assert 100 * (votes[int(k)].argmax(1) == arrays["test_labels"]).mean() == pytest.approx(expected, abs=1e-9)


def test_official_format_survives_a_round_trip(record, reference_views, tmp_path):
    """Written by us, read by plain torch under the official names, and read back by us."""
    learner, schedules = learner_and_schedules(record["config"])
    learner.step([reference_views[0]], schedules[0])
    file = tmp_path / "full.pth"
    torch.save(learner.state_dict(), file)
    original = torch.load(REFERENCE / "checkpoint_init.pth", weights_only=False)
    written = torch.load(file, weights_only=True)
    for part in ("student", "teacher"):
        assert {k: v.shape for k, v in written[part].items()} == {k: v.shape for k, v in original[part].items()}
    assert written["dino_loss"]["center"].shape == original["dino_loss"]["center"].shape
    again, _ = learner_and_schedules(record["config"])
    again.load_state_dict(official.read_checkpoint(file))
    for a, b in ((learner.student, again.student), (learner.teacher, again.teacher)):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    values = schedules[1]
    assert learner.step([reference_views[1]], values) == again.step([reference_views[1]], values)


def test_compiled_steps_are_compiled_and_equal(record, reference_views):
    """Teacher and both student sizes become graphs; evaluations between steps stay eager and keep their hooks."""
    counter = CompileCounter()
    plain, schedules = learner_and_schedules(record["config"])
    compiled, _ = learner_and_schedules(record["config"])
    compiled.compile(backend=counter)
    for step, views in enumerate(reference_views[:2]):
        for size in (16, 24, 32, 40, 48, 56):  # an evaluation of many sizes would use up the compiler's graphs
            cls_attention(compiled.teacher.backbone, torch.zeros(1, 3, size, size))
        ours, theirs = (learner.step([views], schedules[step]) for learner in (compiled, plain))
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert counter.frame_count >= 2


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_changes_nothing(value, record, reference_views):
    """The loss is finite all the while."""
    learner, schedules = learner_and_schedules(record["config"])
    before = {
        which: {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for which, network in (("student", learner.student), ("teacher", learner.teacher))
    }
    center = learner.targets.center.clone()
    weight = learner.student.backbone.blocks[0].attn.qkv.weight
    hook = weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    with pytest.raises(NotFiniteError, match="the gradient's norm is"):
        learner.step([reference_views[0]], schedules[0])
    for which, network in (("student", learner.student), ("teacher", learner.teacher)):
        assert all(torch.equal(tensor, before[which][name]) for name, tensor in network.state_dict().items())
    assert torch.equal(learner.targets.center, center)
    assert not learner.optimizer.state
    hook.remove()
    metrics = learner.step([reference_views[0]], schedules[0])
    assert metrics["loss"] == pytest.approx(record["loss"][0], rel=TOLERANCE)


def test_weights_that_are_not_finite_are_found(record):
    learner, _ = learner_and_schedules(record["config"])
    learner.check_weights()
    with torch.no_grad():
        learner.teacher.head.last_layer.weight_v[0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match="the weights"):
        learner.check_weights()
