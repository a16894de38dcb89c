"""Supervised training with several labels a scan: the loss, what is measured each epoch, and the trainer itself."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import TINY_FIT
from labelled_phantoms import COLUMNS, NAMES, write_labelled
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.errors import InputError
from supervised.config import OptimConfig
from supervised.data import check_labels
from supervised.judge import label_metrics, read_result
from supervised.learner import ClassifierLearner

UNKNOWN = -1


class Tiny(nn.Module):
    """A linear classifier of 4 numbers, as timm's models say what they are."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.head.weight.data.copy_(torch.linspace(-1, 1, 12).view(3, 4))
        self.head.bias.data.zero_()

    def forward(self, x):
        return self.head(x)


def learner(known_share, **optim):
    config = OptimConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup_epochs=0, **optim)
    return ClassifierLearner(Tiny(), config, 10, 10, 3, Accelerator(cpu=True), known_share)


def batch(n=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(-1, 2, (n, 3)))
    return torch.from_numpy(rng.normal(size=(n, 4))).float(), labels


def moved(*steps, **optim):
    """Weights after one step on micro-batches, and the loss."""
    images, labels = batch()
    share = float((labels >= 0).float().mean())
    one = learner(share, **optim)
    parts = zip(images.chunk(*steps), labels.chunk(*steps), strict=True)
    loss = one.step(list(parts), 0.1, np.random.default_rng(0))["loss"]
    return one.model.head.weight.detach().clone(), loss


def test_the_loss_is_binary_cross_entropy_of_what_is_known():
    images, labels = batch()
    known, logits = labels >= 0, Tiny()(images)
    expected = F.binary_cross_entropy_with_logits(logits[known], labels[known].float())
    assert moved(1)[1] == pytest.approx(expected.item(), rel=1e-6)
    smoothed = F.binary_cross_entropy_with_logits(logits[known], labels[known].float() * 0.8 + 0.1)
    assert moved(1, label_smoothing=0.2)[1] == pytest.approx(smoothed.item(), rel=1e-6)


def test_micro_batches_with_more_or_less_known_train_as_one():
    torch.testing.assert_close(moved(1)[0], moved(4)[0])
    torch.testing.assert_close(moved(1, mixup=0.4)[0], moved(4, mixup=0.4)[0])
    assert not torch.equal(moved(1)[0], moved(1, mixup=0.4)[0])


def test_a_label_that_is_not_known_teaches_nothing():
    images, labels = batch()
    labels[:, 1] = UNKNOWN
    one = learner(0.5)
    before = one.model.head.weight.detach().clone()
    one.step([(images, labels)], 0.1, np.random.default_rng(0))
    moved_rows = (one.model.head.weight != before).any(dim=1)
    assert moved_rows.tolist() == [True, False, True]


def test_an_epoch_is_judged_by_the_labels_that_can_be():
    rng = np.random.default_rng(0)
    values, probabilities = rng.integers(0, 2, (30, 3)), rng.random((30, 3))
    values[::3, 0], values[:, 2] = UNKNOWN, 0  # the third has no scan with it
    metrics = label_metrics(values, probabilities, ["a", "b", "c"])
    known = values[:, 0] >= 0
    judged = [(values[known, 0], probabilities[known, 0]), (values[:, 1], probabilities[:, 1])]
    precision = [average_precision_score(*label) for label in judged]
    area = [roc_auc_score(*label) for label in judged]
    assert metrics["val_mean_average_precision"] == pytest.approx(100 * np.mean(precision))
    assert metrics["val_mean_auroc"] == pytest.approx(100 * np.mean(area))
    assert metrics["val_average_precision_a"] == pytest.approx(100 * precision[0])
    assert "val_average_precision_c" not in metrics
    right = np.where(values == 1, probabilities, 1 - probabilities)[values >= 0]
    assert metrics["val_loss"] == pytest.approx(-np.log(right).mean())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("labelled") / "phantoms")


def test_what_cannot_be_learned_or_validated_is_one_line(labelled):
    columns = DatasetConfig(columns=["labels=hole"])
    with pytest.raises(InputError, match="no label can be learned: hole: no training scan has it"):
        check_labels(index_scans(labelled, columns))
    unseen = "\n".join(line.replace(",val,", ",,") for line in labelled.read_text().splitlines())
    table = labelled.with_name("unseen.csv")
    table.write_text(unseen)
    index = index_scans(table, DatasetConfig(columns=["labels=fluid"], split="official"))
    with pytest.raises(InputError, match="no label that can be learned has validation scans with it and without it"):
        check_labels(index)


def test_a_run_with_several_labels(labelled, call, tmp_path):
    run = tmp_path / "run"
    words = [*TINY_FIT[:-6], "--network.image-size", 32, "--optim.epochs", 2, "--optim.batch-size", 8]
    finished = call("supervised/train.py", *words, "--data", labelled, *COLUMNS, "--out", run)
    assert finished.returncode == 0, finished.stderr
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [line["val_mean_average_precision"] for line in epochs if "val_loss" in line]
    assert len(judged) == 3
    assert f"{max(judged):.1f} % mean average precision of validation" in finished.stdout
    assert "hole: no training scan has it, so it has no scores" in finished.stdout
    file = run / "evaluation" / "supervised" / "supervised_test.json"
    result = read_result(file)
    assert list(result["rows"]["classifier"]["labels"]) == list(NAMES)
    assert result["labels"]["fluid"]["scans"] == 12
    config = json.loads((run / "export" / "config.json").read_text())
    assert config["label_names"] == sorted([*NAMES, "hole"])
    assert config["multilabel"] is True
    header = (run / "scans.csv").read_text().splitlines()[0]
    assert header.startswith("file,label,patient,split,digest,label:cysts,label:drusen,label:fluid,label:hole,")
    assert header.endswith(",label:thickening,target:thickness")

    # The same command tests no second time; maps of one class are refused; k-NN takes the run's own table.
    assert "already complete" in call("supervised/train.py", *words, "--data", labelled, *COLUMNS, "--out", run).stdout
    refused = call("evaluation/gradcam.py", "--model", run)
    assert refused.returncode == 2
    assert "its classifier gives several labels a scan (cysts, drusen, fluid" in refused.stderr
    refused = call("evaluation/compare.py", "--model", run, "--out", tmp_path / "report")
    assert refused.returncode == 2
    assert "a scan may have several labels" in refused.stderr
    voted = call("evaluation/knn.py", "--model", run, "--k", 3, "--bootstrap", 20, "--controls", False)
    assert voted.returncode == 0, voted.stderr
    assert "as the run's table says" in voted.stdout

    # Weights of several labels start a classifier of one class a scan, which is one.
    again = tmp_path / "one"
    fine_tune = ("--model", run, "--optim.epochs", 1, "--test", False, "--out", again)
    finished = call("supervised/train.py", *fine_tune, "--data", labelled.parent)
    assert finished.returncode == 0, finished.stderr
    assert "multilabel" not in json.loads((again / "export" / "config.json").read_text())


def test_a_search_takes_one_class_a_scan(labelled, call, tmp_path):
    data = ("--data", labelled, "--base.dataset.columns", f"labels={','.join(NAMES)}")
    words = ("--models", "resnet18", "--method", "random", "--trials", 1, "--out", tmp_path)
    refused = call("supervised/search.py", *words, *data)
    assert refused.returncode == 2
    assert "train models one by one: supervised/train.py" in refused.stderr
