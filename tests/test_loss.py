"""The loss, its targets and the regulariser."""

import math

import pytest
import torch
import torch.nn.functional as F

from dino_oct.errors import InputError
from dino_oct.limits import check_settings
from dino_oct.loss import LossConfig, TeacherTargets, dino_cross_entropy, entropy, koleo, sinkhorn_knopp


def test_equals_the_double_loop_over_views():
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5, 33), torch.randn(2, 5, 33).softmax(-1)
    terms = [
        -(teacher[q] * F.log_softmax(student[v] / 0.1, -1)).sum(-1).mean() for q in range(2) for v in range(7) if v != q
    ]
    assert dino_cross_entropy(student, teacher, 0.1).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-6)


@pytest.mark.parametrize("k", [4096, 65536])
def test_the_uniform_answer_reads_ln_k(k):
    targets = TeacherTargets(k, LossConfig())(torch.zeros(2, 3, k), 0.04)
    assert dino_cross_entropy(torch.zeros(10, 3, k), targets, 0.1).item() == pytest.approx(math.log(k), rel=1e-5)
    assert entropy(targets).item() == pytest.approx(math.log(k), rel=1e-5)


def test_no_gradient_reaches_the_teacher():
    logits = torch.randn(2, 3, 8, requires_grad=True)
    assert not TeacherTargets(8, LossConfig())(logits, 0.04).requires_grad


def test_center_moves_towards_the_mean_of_both_globals():
    targets = TeacherTargets(4, LossConfig(center_momentum=0.9))
    logits = torch.arange(24.0).view(2, 3, 4)
    targets.update(logits)
    torch.testing.assert_close(targets.center, 0.1 * logits.flatten(0, 1).mean(0, keepdim=True))
    targets.update(logits)
    torch.testing.assert_close(targets.center, 0.19 * logits.flatten(0, 1).mean(0, keepdim=True))


@pytest.mark.parametrize("temperature", [0.1, 0.04, 0.01])
def test_sinkhorn_uses_prototypes_equally_and_does_not_underflow(temperature):
    torch.manual_seed(0)
    skewed = F.normalize(torch.randn(64, 8), dim=-1)
    skewed[:, 0] += 1  # every row prefers the first prototype
    assignments = sinkhorn_knopp(skewed, temperature, iterations=50)
    torch.testing.assert_close(assignments.sum(1), torch.ones(64))
    assert assignments.sum(0).max() / assignments.sum(0).min() < 1.5
    assert (skewed / temperature).softmax(-1).sum(0).max() / 8 > 2  # the plain softmax would not have


def test_sinkhorn_agrees_with_the_plain_iteration():
    torch.manual_seed(1)
    logits = torch.randn(10, 6)
    q = (logits / 0.5).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / 6
        q = q / q.sum(1, keepdim=True) / 10
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.5), q * 10)


def test_koleo_prefers_spread_features():
    torch.manual_seed(0)
    wide, narrow = torch.randn(16, 8), 1 + 0.01 * torch.randn(16, 8)
    assert koleo(wide) < koleo(narrow)
    narrow.requires_grad_()
    before = koleo(narrow)
    before.backward()
    assert koleo(narrow - 1e-3 * narrow.grad) < before  # the gradient pushes neighbours apart


def test_koleo_of_one_row_is_zero_with_a_gradient():
    row = torch.randn(1, 4, requires_grad=True)
    koleo(row).backward()
    assert not row.grad.any()


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match=r"--loss\.teacher-temperature 0\.0: must be from 0\.001"):
        check_settings(LossConfig(teacher_temperature=0.0), "loss.")
