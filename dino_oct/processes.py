"""Sums over all processes. With one process, or none initialised, each function returns its input."""

import torch
import torch.distributed as dist


def count() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum of ``value`` over processes, the same on each."""
    if count() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def log_sum_exp(value: torch.Tensor) -> torch.Tensor:
    """log Σ exp(value) over processes, elementwise, without overflow."""
    if count() == 1:
        return value
    largest = value.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest + total((value - largest).exp()).log()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(count())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        # Each process's loss may use every row, so a row's gradient is the sum of what all processes ask of it.
        start = dist.get_rank() * ctx.rows
        return total(gradient)[start : start + ctx.rows]


def gather_rows(value: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, equally many each: (B, …) → (processes · B, …). Gradients reach the rows' own process."""
    return value if count() == 1 else _GatherRows.apply(value)
