"""The teacher: a copy of the student that follows it slowly."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dino_oct import processes
from dino_oct.models.lora import merged_parameters
from dino_oct.sharding import local


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy that shares no storage with the student.

    Shared storage would make the teacher equal the student at every step and hold the loss at ln K.
    """
    teacher = copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    shared = {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert not shared, f"student and teacher share the storage of {len(shared)} parameters"
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """θ_t ← m θ_t + (1 − m) θ_s over parameters, a student's adapters summed up; buffers are not averaged."""
    teacher_parameters = [local(parameter) for parameter in teacher.parameters()]
    student_parameters = [local(parameter) for parameter in merged_parameters(student, teacher)]
    torch._foreach_mul_(teacher_parameters, momentum)
    torch._foreach_add_(teacher_parameters, student_parameters, alpha=1 - momentum)


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextlib.contextmanager
def with_batch_statistics(teacher: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch and moves its running statistics, as in DINO's code; all else is as it is.

    Without, a teacher of random weights would be normalised by statistics that it never had. Its dropout and stochastic
    depth stay off.
    """
    norms = [module for module in _batch_norms(teacher) if not module.training]
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for norm in norms:
            norm.training = False


@torch.no_grad()
def share_statistics(teacher: nn.Module) -> None:
    """Give BatchNorm's running statistics the mean over all processes, so that each evaluates the same network."""
    if processes.count() == 1:
        return
    for norm in _batch_norms(teacher):
        for statistic in filter(torch.is_floating_point, norm.buffers(recurse=False)):
            statistic.copy_(processes.total(statistic) / processes.count())
