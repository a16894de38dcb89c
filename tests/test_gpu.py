"""What must be the same on a GPU as on a CPU; skipped where there is none."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from reference_run import learner_and_schedules
from test_augment import SMALL, scans_of

from dino_oct.ahead import Ahead
from dino_oct.augment import MultiCrop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


def test_views_are_those_of_the_cpu():
    tissue = np.random.default_rng(0).random((6, 16, 16)).astype(np.float32)
    on_cpu, on_gpu = (MultiCrop(SMALL, 0, device)(scans_of(6), tissue, range(6), 0) for device in ("cpu", GPU))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        difference = (a - b.cpu()).abs() * 255
        assert difference.mean() < 0.1
        assert difference.quantile(0.9999) <= 2.6  # one level of rounding, which gain and contrast may stretch


@pytest.mark.parametrize("compiles", [False, True])
def test_six_steps_have_the_losses_of_the_public_code(compiles, record, reference_views):
    learner, schedules = learner_and_schedules(record["config"], accelerator=Accelerator())
    if compiles:
        learner.compile()
    for step, views in enumerate(reference_views):
        metrics = learner.step([[group.to(GPU) for group in views]], schedules[step])
        assert metrics["loss"] == pytest.approx(record["loss"][step], rel=1e-4)


def test_a_step_is_computed_while_the_next_is_put_in_the_queue(record, reference_views):
    """No step waits for the GPU: all six are in the queue before the first is done."""
    learner, schedules = learner_and_schedules(record["config"], accelerator=Accelerator())
    batches = [[group.to(GPU) for group in views] for views in reference_views]
    dict(learner.step([batches[0]], schedules[0]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        waiting = [learner.step([views], schedules[i]) for i, views in enumerate(batches)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(metrics["loss"]) for metrics in waiting)


def test_items_made_ahead_are_whole():
    """A slow kernel makes each item; the caller must not see it before it is done, nor its memory reused."""
    numbers = iter(range(8))

    def make():
        x = torch.full((4096, 4096), float(next(numbers)), device=GPU)
        for _ in range(20):
            x = x @ torch.eye(4096, device=GPU)
        return [[x], None]

    ahead = Ahead(make, 8, GPU)
    assert [[float(x.mean()), float(x.max())] for ((x,), _) in ahead] == [[i, i] for i in range(8)]
    ahead.close()
