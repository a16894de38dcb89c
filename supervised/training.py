"""The training of ``supervised/train.py``: one loop for a CPU, a GPU or many nodes."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dino_oct import checkpoint, provenance
from dino_oct.augment import SingleCrop
from dino_oct.data.load import load_scans, scan_settings
from dino_oct.data.sampler import StepSampler, shares, steps_per_epoch
from dino_oct.errors import InputError
from dino_oct.features import predict, predict_scans, resize_all
from dino_oct.files import private_folder
from dino_oct.learner import NotFiniteError
from dino_oct.limits import check_settings
from dino_oct.models.backbone import adopt_description, save_export
from dino_oct.models.classifier import Classifier
from dino_oct.models.description import check_description
from dino_oct.models.frozen import load_frozen
from dino_oct.models.official import Checkpoint
from dino_oct.models.trainable import set_trainable
from dino_oct.phases import phase
from dino_oct.pictures import draw_views
from dino_oct.progress import Plan, Progress
from dino_oct.run_folder import RunFolder
from dino_oct.runlog import RunLog
from dino_oct.runtime import batch_words, check_same_start, gpu_memory, start_processes, step_bar, step_loader
from dino_oct.scan_data import ScanData
from dino_oct.scores.class_summary import ClassSummary
from dino_oct.scores.text import write_json, written
from dino_oct.stopping import Stopped, StopSignal
from dino_oct.streams import generator, seed_of
from dino_oct.trackers import Trackers, check_trackers
from supervised.architectures import build, find
from supervised.config import SupervisedConfig
from supervised.data import LabelledScans, check_classes, check_labels, labelled
from supervised.judge import (
    FinalLabels,
    FinalResult,
    final_labels,
    final_result,
    label_metrics,
    read_result,
    result_text,
    validation_metrics,
)
from supervised.learner import ClassifierLearner

STATE: dict[str, type | tuple[type, ...]] = {  # what resuming needs
    **dict.fromkeys(("model", "optimizer", "progress", "best", "rate", "hub_config"), dict),
    **{"losses": list, "is_judged": bool},
}
JUDGED_BY = "val_balanced_accuracy"
LABELS_JUDGED_BY = "val_mean_average_precision"  # of several labels a scan

OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass
class Best:
    """The best validation so far: highest balanced accuracy, of several labels a scan highest mean average precision;
    ties by lower loss.

    Attributes:
        is_old: so many epochs ago that training should stop.
    """

    epoch: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    is_old: bool = False

    def take(self, epoch: int, metrics: dict[str, float], patience: int) -> bool:
        """Consider an epoch's metrics; whether they are the best so far."""

        def rank(of: dict[str, float]) -> tuple[float, float]:
            return of[judged_by(of)], -of["val_loss"]

        is_better = not self.metrics or rank(metrics) > rank(self.metrics)
        if is_better:
            self.epoch, self.metrics = epoch, metrics
        self.is_old = patience > 0 and epoch - self.epoch >= patience
        return is_better


def judged_by(metrics: dict[str, float]) -> str:
    """Which of an epoch's metrics chooses the weights."""
    return LABELS_JUDGED_BY if LABELS_JUDGED_BY in metrics else JUDGED_BY


def train(config: SupervisedConfig, on_epoch: OnEpoch = lambda epoch, metrics: None) -> dict[str, float]:
    """Run, or go on with, one supervised training. Every process calls it with the same settings.

    Args:
        on_epoch: called on every process with the epochs done and the validation's metrics; may raise to end the run.

    Returns:
        The validation metrics of the best epoch.

    Raises:
        InputError: wrong settings or data, a run folder in use, a loss, gradient or weight that is not finite, or too
            little memory.
    """
    check_settings(config)
    check_trackers(config.run.trackers)
    accelerator, say = start_processes(config.run)
    trackers = Trackers(config.run.trackers)
    try:
        with StopSignal() as stop, RunFolder(config.out, accelerator.is_main_process) as folder:
            metrics = _train(config, on_epoch, accelerator, say, stop, folder, trackers)
        accelerator.end_training()
        return metrics
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
    finally:
        trackers.close()


def _train(
    config: SupervisedConfig,
    on_epoch: OnEpoch,
    accelerator: Accelerator,
    say: Callable[[str], None],
    stop: StopSignal,
    folder: RunFolder,
    trackers: Trackers,
) -> dict[str, float]:
    # ---- data ------------------------------------------------------------------------------------------------------
    device, bf16, main_process = accelerator.device, accelerator.mixed_precision == "bf16", accelerator.is_main_process
    run = folder.path
    resume_file = folder.find_resume(config.resume)
    table = provenance.table_of(resume_file)
    with accelerator.local_main_process_first():
        index, scans = load_scans(config.data, config.dataset, config.phantom, say, table)
    multilabel = bool(index.multilabels)
    (check_labels if multilabel else check_classes)(index)
    names, targets = index.class_names, index.labels
    if multilabel:
        names, targets = tuple(index.multilabels), index.multilabel_matrix()
    balanced = config.optim.balanced and not multilabel  # a scan of a rare label brings its frequent ones
    train_index, val_index = labelled(index, "train"), labelled(index, "val")
    known_share = float((targets[train_index] >= 0).mean()) if multilabel else None
    n_steps_per_epoch = steps_per_epoch(len(train_index), config.optim.batch_size)
    progress = Progress(Plan(config.optim.epochs, n_steps_per_epoch, config.optim.batch_size))
    steps = progress.plan.steps
    share = shares(config.optim.batch_size, config.optim.accumulate)
    if config.optim.mixup and share % 2 and share != config.optim.batch_size:
        raise InputError(
            f"optim.mixup mixes pairs of scans, and a micro-batch has {share}; choose optim.batch_size and "
            "optim.accumulate so that it is even"
        )

    # ---- model -----------------------------------------------------------------------------------------------------
    state = checkpoint.read_training_state(resume_file, STATE) if resume_file else None
    tested = run / "evaluation" / "supervised" / "supervised_test.json"
    with checkpoint.restoring(resume_file):
        plan_change = progress.resume(state["progress"]) if state else ""
        is_trained = state is not None and state["is_judged"] and (progress.is_complete or state["best"]["is_old"])
    if is_trained and (not config.test or read_result(tested)):
        say(
            f"{run} is already complete ({progress.step} steps, {progress.scans_seen:,} scans seen); --out another "
            "folder, or --resume never"
        )
        return state["best"]["metrics"]
    with accelerator.local_main_process_first(), checkpoint.restoring(resume_file):  # it downloads, the others read
        classifier = build_model(config, len(names), state)
    trained = sum(p.numel() for p in classifier.model.parameters() if p.requires_grad)
    say(
        f"{classifier.name} ({classifier.timm_name}): {classifier.model.load_report} · {trained / 1e6:.2f} M of "
        f"{sum(p.numel() for p in classifier.model.parameters()) / 1e6:.2f} M parameters learn · "
        f"images {classifier.input_size[0]} px"
    )
    learner = ClassifierLearner(
        classifier.model, config.optim, steps, n_steps_per_epoch, len(names), accelerator, known_share
    )
    best, losses, rate, is_judged = Best(), [], {}, False
    if state:
        with checkpoint.restoring(resume_file):
            learner.load_state_dict(state)
            checkpoint.check_optimizer(learner.optimizer)
            best, losses, rate, is_judged = Best(**state["best"]), state["losses"], state["rate"], state["is_judged"]
            ranked = [best.metrics[name] for name in (judged_by(best.metrics), "val_loss")] if best.metrics else []
            checkpoint.check_numbers([best.epoch, *ranked, *losses, *([rate["lr"]] if progress.step else [])])
        if progress.hand_over(rate, {"lr": float(learner.lr[min(max(progress.position, 1), steps) - 1])}):
            plan_change += ("; " if plan_change else "") + (
                f"learning rate {rate['lr']:.2e} goes over to the present settings' within {progress.handover.over} "
                "steps"
            )
        del state
    check_same_start(accelerator, progress.step, config.out)

    # ---- run folder ------------------------------------------------------------------------------------------------
    if main_process:
        folder.prepare(config, resume_file, say)
        start = "" if resume_file else find(config.model, config.init == "pretrained")[1]
        provenance.record(run, index, scans.file_digests, start, resume_file)
        if progress.step == 0:
            save_export(learner.model, run / "checkpoints" / "start", names, scan_settings(config.dataset), multilabel)
    if plan_change:
        say(f"warning: {plan_change}")
    accelerator.wait_for_everyone()
    checkpoints = checkpoint.Checkpoints(run, "best_val.pt")
    known = progress.step if progress.step or is_judged else None
    log = RunLog(run, known, main_process, config, [JUDGED_BY, "val_accuracy", "val_loss"], trackers)
    last_step = progress.last_step

    # ---- views -----------------------------------------------------------------------------------------------------
    augment = SingleCrop(config.augment, classifier.input_size[0], config.seed, device)
    training_scans = LabelledScans(scans, train_index, targets[train_index], config.seed, balanced)
    sampler = StepSampler(
        len(train_index), config.optim.batch_size, config.optim.accumulate, config.seed, progress.position,
        steps, accelerator.process_index,
    )  # fmt: skip
    loader = step_loader(training_scans, sampler, config.run.workers)

    def micro_batch(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, tissue, slots, epochs, labels = zip(*items, strict=True)
        views = augment(pixels, np.stack(tissue), slots, epochs[0])
        return classifier.prepare(views), torch.tensor(labels, device=device)

    # ---- validation ------------------------------------------------------------------------------------------------
    val_images = resize_all((scans[i] for i in val_index), classifier.input_size)

    @phase("evaluating", main_process)
    def evaluate(seconds: float) -> bool:
        """Judge on the validation patients; the same numbers go to the terminal, metrics.jsonl and TensorBoard.

        Returns:
            whether this is the best epoch so far.

        Raises:
            Stopped: a signal came before the end; nothing is logged.
        """
        nonlocal is_judged
        learner.check_weights()
        probabilities = predict(learner.model, val_images, device, bf16, lambda: stop.check(device), multilabel)
        if not np.isfinite(probabilities).all():
            raise NotFiniteError("the validation loss is not finite")
        metrics = (label_metrics if multilabel else validation_metrics)(targets[val_index], probabilities, names)
        if losses:
            metrics["train_loss"] = sum(losses) / len(losses)
            losses.clear()
        metrics |= {"trainable_parameters": trained, "epoch_seconds": seconds}
        epoch = round(progress.epoch)
        log.write(progress.step, epoch, metrics, "evaluation")
        say(epoch_line(epoch, config.optim.epochs, metrics, names))
        is_judged = True
        is_best = best.take(epoch, metrics, config.optim.patience)
        save(is_best)
        if epoch:
            on_epoch(epoch, metrics)
        return is_best

    # ---- loop ------------------------------------------------------------------------------------------------------
    def save(is_best: bool = False) -> None:
        learner.check_weights()
        if main_process:
            rest = {"step": progress.step, "progress": progress.state_dict(), "rate": rate, "is_judged": is_judged}
            rest |= {"best": dataclasses.asdict(best), "losses": losses}
            rest["hub_config"] = {**learner.model.hub_config, "label_names": list(names), "multilabel": multilabel}
            if is_best:  # first: last.pt will say that these weights were the best
                save_export(learner.model, run / "export", names, scan_settings(config.dataset), multilabel)
            checkpoints.save(learner.state_dict() | rest, best=is_best)

    try:
        say(
            f"training: {len(train_index):,} scans{', classes balanced' if balanced else ''} · at most "
            f"{config.optim.epochs} epochs of {n_steps_per_epoch} steps · "
            f"{batch_words(config.optim.batch_size, config.optim.accumulate)} · "
            f"{config.optim.optimizer}, lr {config.optim.lr:.2e} · {device.type}, {'bf16' if bf16 else 'fp32'}"
        )
        if progress.step == 0:
            first = [training_scans[(0, slot)] for slot in range(min(8, len(train_index)))]
            pixels, tissue, slots, *_ = zip(*first, strict=True)
            log.images("views", {"first scans": draw_views([augment(pixels, np.stack(tissue), slots, 0)[None]], 8)}, 0)
        if not is_judged:
            evaluate(0.0)
        batches = iter(loader)
        bar = step_bar(last_step, progress.step, main_process)
        clock = time.perf_counter()
        while not progress.is_complete and not best.is_old and not stop.is_requested(device):
            step = progress.step
            # Dropout and stochastic depth are drawn from (seed, step, process) alone, so that resuming is exact.
            torch.manual_seed(seed_of("dropout of a supervised run", config.seed, accelerator.process_index, step))
            learner.model.train()
            parts = [micro_batch(next(batches)) for _ in range(config.optim.accumulate)]
            rate = progress.values({"lr": float(learner.lr[progress.position])})
            metrics = learner.step(parts, rate["lr"], generator("mixing", config.seed, step))
            progress.advance()
            losses.append(metrics["loss"])
            bar.update()
            if progress.step % config.run.log_every == 0 or progress.is_complete:
                scans_seen = {"scans_seen": progress.scans_seen}
                log.write(progress.step, progress.epoch, metrics | scans_seen | gpu_memory(device))
                bar.set_postfix_str(f"loss {metrics['loss']:.3f}")
            is_judged = progress.position % n_steps_per_epoch != 0
            if not is_judged:
                evaluate(time.perf_counter() - clock)
                clock = time.perf_counter()
            elif progress.step % config.run.save_every == 0:
                save()
        bar.close()
    except Stopped:
        pass
    finally:
        batches = None  # ends the loader processes, which no signal may disturb
        log.close()
    is_trained = is_judged and (progress.is_complete or best.is_old)
    if not is_trained:
        save()
        if main_process:
            (run / "stopped").write_text(f"{progress.step}\n")  # launch/slurm.sh puts the job back into the queue
        say(
            f"stopped by a signal after step {progress.step} of {last_step}: saved; the same command goes on from there"
        )
        return best.metrics
    if best.is_old:
        say(f"stopped early: no better validation in {config.optim.patience} epochs")
    metric = "mean average precision of validation" if multilabel else "balanced validation accuracy"
    say(f"best: epoch {best.epoch}, {best.metrics[judged_by(best.metrics)]:.1f} % {metric}; in {run}/export")

    # ---- test, once ------------------------------------------------------------------------------------------------
    if config.test:
        stop.end_at_once()  # all is saved, and the same command tests
        accelerator.wait_for_everyone()  # until the best weights are written
        result = test(config, ScanData(index, scans, config.dataset, None, index.notes), run, device)
        if result is None:
            say(f"not tested: {index.root} has no labelled test scans")
        elif main_process:
            private_folder(tested.parent)
            write_json(result, tested)
            say("\n" + result_text(result))
            say(written(tested))
    return best.metrics


def build_model(config: SupervisedConfig, n_classes: int, state: Checkpoint | None) -> Classifier:
    """The model of a run with its frozen part set.

    Args:
        state: a checkpoint to resume, whose shapes replace those of the settings; its weights are not loaded here.

    Raises:
        InputError: as ``build`` and ``set_trainable``, or images that are not square.
    """
    network = config.network
    shape = {"drop_path": network.drop_path, "heads": network.heads, "seed": config.seed}
    if state:
        hub = check_description(state["hub_config"], state["file"])
        size = hub["pretrained_cfg"]["input_size"][-2:]
        source = f"random:{hub['architecture']}"
        try:
            classifier = build(source, n_classes, image_size=size, model_args=hub["model_args"], **shape)
        except InputError as error:
            raise InputError(f"{state['file']}: {error}") from None
        adopt_description(classifier.model, hub)
    else:
        size = (network.image_size,) * 2 if network.image_size else None
        pretrained, args = config.init == "pretrained", network.timm_args()
        classifier = build(config.model, n_classes, image_size=size, pretrained=pretrained, model_args=args, **shape)
    if classifier.input_size[0] != classifier.input_size[1]:
        raise InputError(
            f"{classifier.name} takes images of {classifier.input_size} px; give one side with --network.image-size"
        )
    set_trainable(classifier.model, network.trained_part())
    return classifier


def epoch_line(epoch: int, epochs: int, metrics: dict[str, float], names: Sequence[str]) -> str:
    """One line of an epoch."""
    if LABELS_JUDGED_BY in metrics:
        return _label_line(epoch, epochs, metrics, names)
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


def _label_line(epoch: int, epochs: int, metrics: dict[str, float], names: Sequence[str]) -> str:
    precision = {name: metrics.get(f"val_average_precision_{name}") for name in names}
    each = ", ".join(f"{name} {value:.0f}" for name, value in precision.items() if value is not None)
    losses = [f"loss {metrics['train_loss']:.3f}"] if "train_loss" in metrics else []
    return " · ".join(
        [
            f"epoch {epoch}/{epochs}",
            *losses,
            f"validation: loss {metrics['val_loss']:.3f}",
            f"mean AUROC {metrics['val_mean_auroc']:.1f} %",
            f"mean average precision {metrics[LABELS_JUDGED_BY]:.1f} % ({each})",
            f"{metrics['epoch_seconds']:.1f} s",
        ]
    )


def test(config: SupervisedConfig, data: ScanData, run: Path, device: torch.device) -> FinalResult | FinalLabels | None:
    """Classify the test split with a run's exported weights; None where there are no labelled test scans.

    Every process must call it.
    """
    positions = {"queries": labelled(data.index, "test")}
    if not len(positions["queries"]):
        return None
    multilabel = bool(data.index.multilabels)
    if data.label_groupings(positions["queries"]) if multilabel else data.groupings("test"):
        positions["val"] = labelled(data.index, "val")
    network = load_frozen(str(run / "export"), device, num_classes=None)
    size = tuple(network.pretrained_cfg["input_size"][-2:])
    probabilities = {
        name: predict_scans(network, data.scans, p, size, device, multilabel) for name, p in positions.items()
    }
    settings = {"model": config.model, "init": config.init, "image_size": size}
    if multilabel:
        return final_labels(data, positions, probabilities, network.weights, settings, config.seed)
    return final_result(data, positions["queries"], probabilities, network.weights, settings, config.seed)
