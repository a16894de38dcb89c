"""Supervised training on labelled OCT scans: ``accelerate launch supervised/train.py --model resnet50 --data DIR``.

One loop for a CPU, a GPU or many nodes. ``--help`` lists every setting; configs/supervised/ holds the presets.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dino_oct import checkpoint, processes, provenance
from dino_oct.augment import SingleCrop
from dino_oct.class_summary import ClassSummary
from dino_oct.cli import one_line_errors
from dino_oct.data.load import load_scans, scan_settings
from dino_oct.data.sampler import StepSampler, shares, steps_per_epoch
from dino_oct.errors import InputError
from dino_oct.features import squash_all
from dino_oct.learner import NotFiniteError
from dino_oct.limits import check_settings
from dino_oct.models.backbone import adopt_description, save_export
from dino_oct.models.description import check_description
from dino_oct.monitor import draw_views
from dino_oct.runlog import RunLog, StopSignal, check_run_folder, prepare_run_folder
from dino_oct.runtime import check_same_start, gpu_memory, start_processes, step_loader
from dino_oct.streams import generator, seed_of
from evaluation.reports import make_folder, write_json
from evaluation.runs import load_frozen
from evaluation.scan_data import ScanData
from supervised.config import SupervisedConfig, load_config
from supervised.data import LabelledScans, check_classes, labelled
from supervised.finetune import set_trainable
from supervised.judge import final_result, predict, predict_scans, report, validation_metrics
from supervised.learner import ClassifierLearner
from supervised.zoo import ZooModel, build, find

STATE = {"model", "optimizer", "step", "best", "losses", "hub_config"}  # what resuming needs
JUDGED_BY = "val_balanced_accuracy"

OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass
class Best:
    """The best validation so far: highest balanced accuracy, ties by lower loss.

    Attributes:
        is_old: so many epochs ago that training should stop.
    """

    epoch: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    is_old: bool = False

    def take(self, epoch: int, metrics: dict[str, float], patience: int) -> bool:
        """Consider an epoch's metrics; whether they are the best so far."""

        def rank(found: dict[str, float]) -> tuple[float, float]:
            return found[JUDGED_BY], -found["val_loss"]

        is_better = not self.metrics or rank(metrics) > rank(self.metrics)
        if is_better:
            self.epoch, self.metrics = epoch, metrics
        self.is_old = patience > 0 and epoch - self.epoch >= patience
        return is_better


def main() -> None:
    with one_line_errors():
        train(load_config(sys.argv[1:]))


def train(config: SupervisedConfig, on_epoch: OnEpoch = lambda epoch, metrics: None) -> dict[str, float]:
    """Run, or go on with, one supervised training. Every process calls it with the same settings.

    Args:
        on_epoch: called on every process with the epochs done and the validation's metrics; may raise to end the run.

    Returns:
        The validation metrics of the best epoch.

    Raises:
        InputError: wrong settings or data, a loss that is not finite, or too little memory.
    """
    check_settings(config)
    try:
        return _train(config, on_epoch)
    except NotFiniteError as error:
        raise InputError(
            f"{config.out}: stopped, {error}; the last checkpoint is good: lower --optim.lr, set --optim.clip-grad 1, "
            "or use --run.precision fp32"
        ) from None
    except torch.OutOfMemoryError:
        raise InputError(
            f"{config.out}: out of GPU memory; raise --optim.accumulate (now {config.optim.accumulate}), or lower "
            f"--optim.batch-size (now {config.optim.batch_size}) or --network.image-size"
        ) from None


def _train(config: SupervisedConfig, on_epoch: OnEpoch) -> dict[str, float]:
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
    check_classes(index)
    names, train_index, val_index = index.class_names, labelled(index, "train"), labelled(index, "val")
    n_steps_per_epoch = steps_per_epoch(len(train_index), config.optim.batch_size)
    steps = config.optim.epochs * n_steps_per_epoch
    share = shares(config.optim.batch_size, config.optim.accumulate)

    # ---- model -----------------------------------------------------------------------------------------------------
    state = checkpoint.read_training_state(resume_file, STATE) if resume_file else None
    tested = run / "evaluation" / "supervised" / "supervised_test.json"
    if state and (state["step"] >= steps or state["best"]["is_old"]) and (tested.exists() or not config.test):
        say(f"{run} is already complete ({state['step']} steps); --out another folder, or --resume never")
        return state["best"]["metrics"]
    with accelerator.local_main_process_first():  # which downloads, for the others to read
        zoo = build_model(config, len(names), state)
    trained = sum(p.numel() for p in zoo.model.parameters() if p.requires_grad)
    say(
        f"{zoo.name} ({zoo.timm_name}): {zoo.model.load_report} · {trained / 1e6:.2f} M of "
        f"{sum(p.numel() for p in zoo.model.parameters()) / 1e6:.2f} M parameters learn · images {zoo.input_size[0]} px"
    )
    learner = ClassifierLearner(zoo.model, config.optim, steps, n_steps_per_epoch, len(names), accelerator)
    step, best, losses = 0, Best(), []
    if state:
        learner.load_state_dict(state)
        step, best, losses = state["step"], Best(**state["best"]), state["losses"]
        if state["steps"] != steps:
            say(f"warning: the run was planned for {state['steps']} steps, these settings give {steps}")
        del state
    check_same_start(accelerator, step, config.out)

    # ---- run folder ------------------------------------------------------------------------------------------------
    if main_process:
        prepare_run_folder(run, config, resume_file, say)
        start = "" if resume_file else find(config.model, config.init == "pretrained")[1]
        provenance.record(run, index, scans.file_digests, start, resume_file)
        if step == 0:
            save_export(learner.model, run / "checkpoints" / "start", names, scan_settings(config.dataset))
    accelerator.wait_for_everyone()
    checkpoints = checkpoint.Checkpoints(run, "best_val.pt")
    log = RunLog(run, step, main_process)

    # ---- views -----------------------------------------------------------------------------------------------------
    augment = SingleCrop(config.augment, zoo.input_size[0], config.seed, device)
    training_scans = LabelledScans(scans, train_index, index.labels[train_index], config.seed, config.optim.balanced)
    sampler = StepSampler(
        len(train_index), config.optim.batch_size, config.optim.accumulate, config.seed, step, steps,
        accelerator.process_index,
    )  # fmt: skip
    loader = step_loader(training_scans, sampler, config.run.workers)

    def micro_batch(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, tissue, slots, epochs, labels = zip(*items, strict=True)
        views = augment(pixels, np.stack(tissue), slots, epochs[0])
        return zoo.prepare(views), torch.tensor(labels, device=device)

    # ---- validation ------------------------------------------------------------------------------------------------
    val_images = squash_all((scans[i] for i in val_index), zoo.input_size)

    def evaluate(epoch: int, seconds: float) -> dict[str, float]:
        """Judge on the validation patients; the same numbers go to the terminal, metrics.jsonl and TensorBoard."""
        found = predict(learner.model, val_images, device, bf16)
        if not np.isfinite(found).all():
            raise NotFiniteError("the validation loss is not finite")
        metrics = validation_metrics(index.labels[val_index], found, names)
        if losses:
            metrics["train_loss"] = sum(losses) / len(losses)
            losses.clear()
        metrics |= {"trainable_parameters": trained, "epoch_seconds": seconds}
        log.write(step, epoch, metrics, "evaluation")
        say(describe(epoch, config.optim.epochs, metrics, names))
        return metrics

    # ---- loop ------------------------------------------------------------------------------------------------------
    def save(is_best: bool = False) -> None:
        if main_process:
            rest = {"step": step, "steps": steps, "best": dataclasses.asdict(best), "losses": losses}
            rest["hub_config"] = {**learner.model.hub_config, "label_names": list(names)}
            if is_best:  # first: last.pt will say that these weights were the best
                save_export(learner.model, run / "export", names, scan_settings(config.dataset))
            checkpoints.save(learner.state_dict() | rest, best=is_best)

    try:
        say(
            f"training: {len(train_index):,} scans{', classes balanced' if config.optim.balanced else ''} · at most "
            f"{config.optim.epochs} epochs of {n_steps_per_epoch} steps · batch {config.optim.batch_size} = "
            f"{processes.count()} processes × {config.optim.accumulate} micro-batches × {share} · "
            f"{config.optim.optimizer}, lr {config.optim.lr:.2e} · {device.type}, {'bf16' if bf16 else 'fp32'}"
        )
        if step == 0:
            first = [training_scans[(0, slot)] for slot in range(min(8, len(train_index)))]
            pixels, tissue, slots, *_ = zip(*first, strict=True)
            log.images("views", {"first scans": draw_views([augment(pixels, np.stack(tissue), slots, 0)[None]], 8)}, 0)
            best.take(0, evaluate(0, 0.0), config.optim.patience)
            save(is_best=True)
        batches = iter(loader)
        bar = tqdm(total=steps, initial=step, unit="step", disable=None if main_process else True, leave=False)
        clock = time.perf_counter()
        while step < steps and not best.is_old and not stop.asked(device):
            # Dropout and stochastic depth are drawn from (seed, step, process) alone, so that resuming is exact.
            torch.manual_seed(seed_of("dropout of a supervised run", config.seed, accelerator.process_index, step))
            learner.model.train()
            parts = [micro_batch(next(batches)) for _ in range(config.optim.accumulate)]
            metrics = learner.step(parts, step, generator("mixing", config.seed, step))
            step += 1
            losses.append(metrics["loss"])
            bar.update()
            if step % config.run.log_every == 0 or step == steps:
                log.write(step, step / n_steps_per_epoch, metrics | gpu_memory(device))
                bar.set_postfix(loss=f"{metrics['loss']:.3f}")
            if step % n_steps_per_epoch == 0:
                epoch = step // n_steps_per_epoch
                found = evaluate(epoch, time.perf_counter() - clock)
                save(is_best=best.take(epoch, found, config.optim.patience))
                on_epoch(epoch, found)
                clock = time.perf_counter()
            elif step % config.run.save_every == 0:
                save()
        bar.close()
        if step < steps and not best.is_old:
            save()
            if main_process:
                (run / "stopped").write_text(f"{step}\n")  # launch/slurm.sh puts the job back into the queue
            say(f"stopped by a signal after step {step} of {steps}; the same command goes on from there")
            return best.metrics
        if best.is_old:
            say(f"stopped early: no better validation in {config.optim.patience} epochs")
        say(f"best: epoch {best.epoch}, {best.metrics[JUDGED_BY]:.1f} % balanced validation accuracy; in {run}/export")
    finally:
        log.close()

    # ---- test, once ------------------------------------------------------------------------------------------------
    if config.test:
        accelerator.wait_for_everyone()  # until the best weights are written
        result = test(config, ScanData(index, scans, config.dataset, None, index.notes), run, device)
        if result is None:
            say(f"not tested: {index.root} has no labelled test scans")
        elif main_process:
            say("\n" + report(result))
            make_folder(tested.parent)
            write_json(result, tested)
            say(f"written: {tested}")
    accelerator.end_training()
    return best.metrics


def build_model(config: SupervisedConfig, n_classes: int, state: dict[str, Any] | None) -> ZooModel:
    """The model of a run with its frozen part set.

    Args:
        state: a checkpoint to resume, whose shapes replace those of the settings; its weights are not loaded here.

    Raises:
        InputError: as ``build`` and ``set_trainable``, or images that are not square.
    """
    network = config.network
    shape = {"drop_path": network.drop_path, "heads": network.heads, "seed": config.seed}
    if state:
        hub = check_description(state["hub_config"], "checkpoint")
        size = hub["pretrained_cfg"]["input_size"][-2:]
        zoo = build(f"random:{hub['architecture']}", n_classes, image_size=size, model_args=hub["model_args"], **shape)
        adopt_description(zoo.model, hub)
    else:
        size = (network.image_size,) * 2 if network.image_size else None
        pretrained, args = config.init == "pretrained", network.timm_args()
        zoo = build(config.model, n_classes, image_size=size, pretrained=pretrained, model_args=args, **shape)
    if zoo.input_size[0] != zoo.input_size[1]:
        raise InputError(f"{zoo.name} takes images of {zoo.input_size} px; give one side with --network.image-size")
    set_trainable(zoo.model, network.trained_part())
    return zoo


def describe(epoch: int, epochs: int, metrics: dict[str, float], names: Sequence[str]) -> str:
    """One line of an epoch."""
    recall = {name: metrics[f"val_recall_{name}"] for name in names if f"val_recall_{name}" in metrics}
    each = ", ".join(f"{name} {value:.0f}" for name, value in recall.items())
    never = ClassSummary(recall).never_recognised
    losses = [f"loss {metrics['train_loss']:.3f}"] if "train_loss" in metrics else []
    return " · ".join(
        [
            f"epoch {epoch}/{epochs}",
            *losses,
            f"validation: loss {metrics['val_loss']:.3f}",
            f"accuracy {metrics['val_accuracy']:.1f} % (always one class {metrics['val_majority']:.1f} %)",
            f"balanced {metrics[JUDGED_BY]:.1f} % ({each})",
            *([f"never recognised: {', '.join(never)}"] if never else []),
            f"{metrics['epoch_seconds']:.1f} s",
        ]
    )


def test(config: SupervisedConfig, data: ScanData, run: Path, device: torch.device) -> dict[str, Any] | None:
    """Classify the test split with a run's exported weights; None where there are no labelled test scans.

    Every process must call it. Returns what the JSON file holds.
    """
    positions = labelled(data.index, "test")
    if not len(positions):
        return None
    network = load_frozen(str(run / "export"), device, num_classes=None)
    size = tuple(network.backbone.pretrained_cfg["input_size"][-2:])
    found = predict_scans(network.backbone, data.scans, positions, size, device)
    settings = {"model": config.model, "init": config.init, "image_size": size}
    return final_result(data, positions, found, network.weights, settings, config.seed)


if __name__ == "__main__":
    main()
