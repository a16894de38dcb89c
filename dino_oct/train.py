"""DINO pretraining on OCT scans: ``accelerate launch dino_oct/train.py --config configs/FILE.yaml --data DIR``.

One loop for a CPU, a GPU or many nodes. ``--help`` lists every setting; configs/ holds the presets.
"""

import collections
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dino_oct import checkpoint, processes, provenance
from dino_oct.augment import MultiCrop
from dino_oct.cli import one_line_errors
from dino_oct.config import TrainConfig, load_config
from dino_oct.data.load import load_scans, scan_settings
from dino_oct.data.sampler import StepSampler, TrainingScans, shares, steps_per_epoch
from dino_oct.errors import InputError
from dino_oct.features import check_size
from dino_oct.learner import Learner, NotFiniteError, Schedules
from dino_oct.limits import check_settings
from dino_oct.models.backbone import save_export
from dino_oct.models.build import build_networks
from dino_oct.models.network import normalise_views
from dino_oct.monitor import Monitor, draw_views, warnings_of
from dino_oct.runlog import RunLog, StopSignal, check_run_folder, describe, prepare_run_folder
from dino_oct.runtime import check_same_start, gpu_memory, start_processes, step_loader
from dino_oct.streams import seed_of

STATE = {"student", "teacher", "optimizer", "step", "hub_config", "freeze_backbone_epochs"}  # what resuming needs
VIEWS_EPOCH = 2**31  # keys the monitor's fixed views: an epoch number that training never reaches


def main() -> None:
    with one_line_errors():
        train(load_config(sys.argv[1:]))


def train(config: TrainConfig) -> None:
    """Run, or go on with, one pretraining; see ``TrainConfig``. Every process calls it with the same settings."""
    check_settings(config)
    # ---- processes -------------------------------------------------------------------------------------------------
    accelerator, say = start_processes(config.run)
    device, bf16, main_process = accelerator.device, accelerator.mixed_precision == "bf16", accelerator.is_main_process
    stop = StopSignal()

    # ---- data ------------------------------------------------------------------------------------------------------
    run = Path(config.out)
    check_run_folder(run)
    resume_file = checkpoint.find_resume(run, config.resume)
    table = provenance.table_of(resume_file)
    with accelerator.local_main_process_first():
        index, scans = load_scans(config.data, config.dataset, config.phantom, say, table)
    train_index = index.positions("train")
    n_steps_per_epoch = steps_per_epoch(len(train_index), config.optim.batch_size)
    share = shares(config.optim.batch_size, config.optim.accumulate)

    # ---- networks --------------------------------------------------------------------------------------------------
    state = checkpoint.read_training_state(resume_file, STATE) if resume_file else None
    if state and state["step"] >= config.optim.epochs * n_steps_per_epoch:
        return say(f"{run} is already complete ({state['step']} steps); --out another folder, or --resume never")
    with accelerator.local_main_process_first():  # which downloads, for the others to read
        networks = build_networks(config.init, config.model, config.seed, state, say)
    if config.optim.freeze_backbone_epochs is None:
        new_head = 1.0 if networks.new_head and networks.pretrained else 0.0
        config.optim.freeze_backbone_epochs = state["freeze_backbone_epochs"] if state else new_head
    for name, size in (("global_size", config.augment.global_size), ("local_size", config.augment.local_size)):
        check_size((size, size), networks.student.backbone, f"augment.{name}")
    check_size(config.monitor.image_size, networks.student.backbone, "monitor.image_size")
    learner = Learner(networks.student, config.loss, config.optim, accelerator, networks.teacher)
    if networks.center is not None:
        learner.targets.center.copy_(networks.center)
    if config.model.compile:
        learner.compile()
    schedules = Schedules(config.optim, config.loss, n_steps_per_epoch)
    judged_by = f"knn_{config.monitor.k[0]}"
    step, best = 0, -1.0
    if state:
        learner.load_state_dict(state)
        step, best = state["step"], state["best_knn"] if state["judged_by"] == judged_by else -1.0
        if state["steps"] != schedules.steps:
            say(f"warning: the run was planned for {state['steps']} steps, these settings give {schedules.steps}")
        del state
    check_same_start(accelerator, step, config.out)

    # ---- run folder ------------------------------------------------------------------------------------------------
    if main_process:
        prepare_run_folder(run, config, resume_file, say)
        provenance.record(run, index, scans.file_digests, config.init, resume_file)
        if step == 0:
            save_export(learner.teacher.backbone, run / "checkpoints" / "start", scans=scan_settings(config.dataset))
    accelerator.wait_for_everyone()
    checkpoints = checkpoint.Checkpoints(run, "best_knn.pt")

    # ---- views -----------------------------------------------------------------------------------------------------
    augment = MultiCrop(config.augment, config.seed, device)
    sampler = StepSampler(
        len(train_index), config.optim.batch_size, config.optim.accumulate, config.seed, step, schedules.steps,
        accelerator.process_index,
    )  # fmt: skip
    loader = step_loader(TrainingScans(scans, train_index), sampler, config.run.workers)

    def views_of(items: list[tuple]) -> list[torch.Tensor]:
        pixels, tissue, samples, epochs = zip(*items, strict=True)
        groups = augment(pixels, np.stack(tissue), samples, epochs[0])
        return [normalise_views(group, learner.student.backbone) for group in groups if len(group)]

    # ---- monitor ---------------------------------------------------------------------------------------------------
    monitor = Monitor(config.monitor, index, scans, config.seed)
    if monitor.no_knn_because:
        say(f"note: no k-NN in the evaluations: {monitor.no_knn_because}")
    log = RunLog(run, step, main_process)
    fixed = [TrainingScans(scans, train_index)[(VIEWS_EPOCH, i)] for i in range(min(32, len(train_index)))]
    start_metrics: dict[str, float] = {}
    recent: collections.deque[float] = collections.deque(maxlen=50)

    def evaluate(step: int) -> dict[str, float]:
        """Judge the teacher; the same numbers go to the terminal, metrics.jsonl and TensorBoard."""
        temperature = schedules[min(step, schedules.steps - 1)].teacher_temperature
        metrics = monitor.evaluate(learner.teacher.backbone, device, bf16)
        metrics |= learner.teacher_statistics(views_of(fixed), temperature)
        metrics |= {"ln_k": learner.uniform_loss, "center_norm": float(learner.targets.center.norm())}
        if not start_metrics:
            start_metrics.update(metrics if step == 0 else log.first_evaluation() or metrics)
        say(describe(step, schedules.steps, metrics, start_metrics, monitor))
        loss = sum(recent) / len(recent) if recent else None
        progress, n_val = step / schedules.steps, len(monitor.val_labels)
        for warning in warnings_of(metrics, start_metrics, learner.uniform_loss, loss, progress, n_val):
            say(f"warning: {warning}")
        if main_process:
            log.write(step, step / n_steps_per_epoch, metrics, "evaluation")
            panels = monitor.attention_panels(learner.teacher.backbone, device)
            log.images("attention", dict(zip(monitor.attention_names, panels, strict=True)), step)
        return metrics

    say(
        f"training: {len(train_index):,} scans · {config.optim.epochs} epochs of {n_steps_per_epoch} steps · batch "
        f"{config.optim.batch_size} = {processes.count()} processes × {config.optim.accumulate} micro-batches × "
        f"{share} · lr {schedules.lr.max():.2e} · {device.type}, {'bf16' if bf16 else 'fp32'}"
    )
    if step == 0:
        if main_process:
            pixels, tissue, samples, _ = zip(*fixed[:4], strict=True)
            groups = augment(pixels, np.stack(tissue), samples, VIEWS_EPOCH)
            log.images("views", {"first scans": draw_views([g for g in groups if len(g)])}, 0)
        best = evaluate(0).get(judged_by, -1.0)
    evaluate_every = max(round(config.monitor.every_epochs * n_steps_per_epoch), 1)

    # ---- loop ------------------------------------------------------------------------------------------------------
    def save(keep: bool = False, is_best: bool = False) -> None:
        if main_process:
            rest = {"step": step, "steps": schedules.steps, "epoch": step // n_steps_per_epoch}
            rest |= {"best_knn": best, "judged_by": judged_by}
            rest["freeze_backbone_epochs"] = config.optim.freeze_backbone_epochs
            rest["hub_config"] = learner.teacher.backbone.hub_config
            checkpoints.save(learner.state_dict() | rest, keep, is_best)
            save_export(learner.teacher.backbone, run / "export", scans=scan_settings(config.dataset))

    batches = iter(loader)
    bar = tqdm(total=schedules.steps, initial=step, unit="step", disable=None if main_process else True, leave=False)
    clock, images = time.perf_counter(), 0
    while step < schedules.steps and not stop.asked(device):
        # Stochastic depth is drawn from (seed, step, process) alone: a resumed run draws what the first one would have.
        torch.manual_seed(seed_of("drop path of a pretraining", config.seed, accelerator.process_index, step))
        micro_batches = [views_of(next(batches)) for _ in range(config.optim.accumulate)]
        values = schedules[step]
        try:
            metrics = learner.step(micro_batches, values)
        except NotFiniteError as error:
            raise InputError(
                f"{run}: stopped at step {step}, {error}; the last checkpoint is good: lower --optim.lr or "
                "--optim.clip-grad, or use --run.precision fp32 to tell a precision problem from a diverging one"
            ) from None
        step += 1
        recent.append(metrics.get("dino_loss", metrics["loss"]))
        images += config.optim.batch_size
        bar.update()

        if step % config.run.log_every == 0 or step == schedules.steps:
            speed = images / (time.perf_counter() - clock)
            metrics |= dataclasses.asdict(values) | {"images_per_s": speed} | gpu_memory(device)
            log.write(step, step / n_steps_per_epoch, metrics)
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", images_per_s=f"{speed:.3g}")
            if bar.disable and (step % (10 * config.run.log_every) == 0 or step == schedules.steps):
                left = (schedules.steps - step) * config.optim.batch_size / speed
                loss = f"{metrics['loss']:.3f}"
                say(f"step {step}/{schedules.steps} · loss {loss} · {speed:.3g} images/s · {left:.0f} s left")
            clock, images = time.perf_counter(), 0
        done, is_best = step == schedules.steps, False
        if step % evaluate_every == 0 or done:
            knn = evaluate(step).get(judged_by, -1.0)
            is_best, best = knn > best, max(knn, best)
            clock, images = time.perf_counter(), 0
        keep = bool(config.run.keep_every) and step % config.run.keep_every == 0
        if is_best or keep or done or step % config.run.save_every == 0:
            save(keep, is_best)
    bar.close()
    if step < schedules.steps:
        save()
        if main_process:
            (run / "stopped").write_text(f"{step}\n")  # launch/slurm.sh puts the job back into the queue
        say(f"stopped by a signal after step {step} of {schedules.steps}; the same command goes on from there")
    else:
        say(f"done: {run}/export holds the backbone; watch with: tensorboard --logdir {run}/tensorboard")
    log.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
