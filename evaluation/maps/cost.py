"""What a map costs: peak memory of the tensors that making it needs."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(make: Callable[[], Any], device: torch.device) -> float:
    """Peak bytes of the tensors that ``make`` holds above what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        make()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        make()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return float(np.cumsum(changes).max(initial=0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler's C++ side writes to stderr at every start, a missing GPU among it."""
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
