"""What every trainer's loop stands on: processes, what the terminal hears, loader."""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DDPCommunicationHookType, broadcast_object_list
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dino_oct import processes
from dino_oct.config import RunConfig
from dino_oct.data.cores import usable_cores
from dino_oct.data.sampler import StepSampler, belong_to_trainer, shares
from dino_oct.devices import default_device
from dino_oct.errors import InputError
from dino_oct.precision import use_bf16, warn_of_slow_bf16
from dino_oct.stopping import ending_at_once

Result = TypeVar("Result")


def start_processes(run: RunConfig) -> tuple[Accelerator, Callable[[str], None]]:
    """The processes that train together, and a function that prints a line on the main one only.

    Raises:
        InputError: a launcher was asked for more processes than it started.
    """
    # Processes that wait for each other here, for ever if their launcher was killed, must end by a signal.
    waits = int(os.environ.get("WORLD_SIZE", 1)) > 1
    with ending_at_once() if waits else contextlib.nullcontext():
        bf16 = use_bf16(run.precision)
        accelerator = _accelerator(run, bf16)
        if len(set(accelerator.gather(torch.tensor([bf16], device=accelerator.device)).tolist())) > 1:
            accelerator = _accelerator(run, bf16=False)  # machines differ, and auto means what all can
    # accelerate sets the address for several processes, and then starts one where its file has distributed_type NO.
    several = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ
    if several or accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise InputError(
            f"several processes were asked for, and {accelerator.num_processes} works alone: this launch file is for "
            "one process; for several on CPUs run: PROCESSES=N bash launch/torchrun.sh …"
        )
    if not accelerator.is_main_process:
        return accelerator, lambda text: None
    if run.precision == "bf16":
        warn_of_slow_bf16(accelerator.device)
    beside, cores = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), usable_cores()
    if accelerator.device.type == "cpu" and beside > cores:
        shared = f"{cores} core{'s' * (cores > 1)}"
        tqdm.write(
            f"warning: {beside} processes share {shared}, as there is no GPU: one process is faster", file=sys.stdout
        )
    return accelerator, lambda text: tqdm.write(text, file=sys.stdout)


def step_bar(steps: int, done: int, is_main: bool) -> tqdm:
    """Of a training, with room for what is told behind it on 80 columns."""
    return tqdm(
        total=steps,
        initial=done,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
        disable=None if is_main else True,
        leave=False,
    )


def batch_words(batch_size: int, accumulate: int) -> str:
    """Scans of an optimiser step, and how they are divided where they are."""
    n = processes.count()
    if n * accumulate == 1:
        return f"batch {batch_size}"
    parts = [f"{n} processes"] * (n > 1) + [f"{accumulate} micro-batches"] * (accumulate > 1)
    return f"batch {batch_size} = {' × '.join(parts)} × {shares(batch_size, accumulate)}"


def _accelerator(run: RunConfig, bf16: bool) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier one of this process may have had another precision
    device = default_device()
    if device.type == "cuda" and device.index is not None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError(f"--device {device}: is for one process; several take a GPU each")
        torch.cuda.set_device(device)
    reduce = DDPCommunicationHookType.BF16 if run.reduce == "bf16" else DDPCommunicationHookType.NO
    return Accelerator(
        cpu=device.type == "cpu" or None,  # else torchrun's processes would not find each other there
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=run.timeout_minutes)),
            # Views of buckets: no second copy of the gradients.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, comm_hook=reduce),
        ],
    )


def main_first(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """What ``work`` returns, on every process: the main one works first, then the first of each other machine.

    For what may be downloaded. Wrong input is said once: where the main process raises ``InputError``, the others end
    with the same exit status and no word.

    Raises:
        InputError: of ``work``.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except InputError as wrong_input:
            error = wrong_input
    (is_wrong,) = broadcast_object_list([error is not None])
    if error is not None:
        raise error
    if is_wrong:
        raise SystemExit(2)
    with accelerator.local_main_process_first():
        return result if accelerator.is_main_process else work()


def check_same_start(accelerator: Accelerator, step: int, out: str) -> None:
    """Raise InputError unless every process resumes from the same step."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise InputError(f"{out}: the processes see different checkpoints; --out must be on storage that all share")


def step_loader(scans: Dataset, sampler: StepSampler, workers: int) -> DataLoader:
    """Micro-batches of this process as lists of items, read ahead by ``workers`` processes, or as many as there are
    cores for each process of this machine."""
    workers = min(workers, max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1))
    return DataLoader(
        scans,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=4 if workers else None,
        worker_init_fn=belong_to_trainer,
    )


def gpu_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process's GPU in GiB; nothing on a CPU."""
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
