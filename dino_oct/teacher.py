"""The teacher: a copy of the student that follows it slowly."""

import copy

import torch
from torch import nn

from dino_oct.models.lora import merged_parameters


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
    teacher_parameters, student_parameters = list(teacher.parameters()), merged_parameters(student, teacher)
    torch._foreach_mul_(teacher_parameters, momentum)
    torch._foreach_add_(teacher_parameters, student_parameters, alpha=1 - momentum)
