"""The pretraining of ``dino_oct/train.py``: one loop for a CPU, a GPU or many nodes."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from dino_oct import checkpoint, preflight, processes, provenance
from dino_oct.ahead import Ahead
from dino_oct.augment import MultiCrop
from dino_oct.config import TrainConfig
from dino_oct.data.load import find_scans, load_scans, scan_settings
from dino_oct.data.partners import Partners
from dino_oct.data.sampler import StepSampler, TrainingScans, shares, steps_per_epoch
from dino_oct.errors import InputError
from dino_oct.learner import Learner, NotFiniteError, Schedules, StepMetrics
from dino_oct.limits import check_settings
from dino_oct.masking import block_masks
from dino_oct.models.attention import has_cls_attention
from dino_oct.models.backbone import check_sizes, load_backbone, patch_size, save_export
from dino_oct.models.layers import check_runs
from dino_oct.models.network import normalise_views
from dino_oct.models.plain_attention import use_plain_attention
from dino_oct.monitor import PROBE, BestCheckpoint, Judgement, Monitor, collapses, warnings_of
from dino_oct.networks import Networks, build_networks
from dino_oct.phases import phase
from dino_oct.pictures import draw_views
from dino_oct.progress import Plan, Progress
from dino_oct.run_folder import RunFolder
from dino_oct.runlog import RunLog, evaluation_line
from dino_oct.runtime import (
    batch_words,
    check_same_start,
    gpu_memory,
    main_first,
    start_processes,
    step_bar,
    step_loader,
)
from dino_oct.sharding import check_can_shard
from dino_oct.speed import Pace
from dino_oct.stopping import Stopped, StopSignal
from dino_oct.streams import seed_of
from dino_oct.trackers import Trackers, check_trackers

STATE: dict[str, type | tuple[type, ...]] = {  # what resuming needs
    **dict.fromkeys(("student", "teacher", "dino_loss", "optimizer", "progress", "values", "hub_config"), dict),
    **{"freeze_backbone_epochs": (int, float), "is_judged": bool, "judged_by": str},
    **{"best_knn": (int, float, type(None)), "start": (dict, type(None))},
}
VIEWS_EPOCH = 2**31  # keys the monitor's fixed views: an epoch number that training never reaches


def train(config: TrainConfig) -> None:
    """Run, or go on with, one pretraining; see ``TrainConfig``. Every process calls it with the same settings.

    Raises:
        InputError: wrong settings or data, a run folder in use, or a loss, gradient or weight that is not finite.
    """
    check_settings(config)
    check_trackers(config.run.trackers)
    accelerator, say = start_processes(config.run)
    trackers = Trackers(config.run.trackers)
    try:
        with StopSignal() as stop, RunFolder(config.out, accelerator.is_main_process and not config.dry_run) as folder:
            _train(config, accelerator, say, stop, folder, trackers)
    finally:
        trackers.close()  # after the last checkpoint, as they may take their time
    accelerator.end_training()


def _check_sizes(config: TrainConfig, backbone: nn.Module) -> None:
    """Raise InputError unless the backbone takes images of every size that the settings ask for."""
    sizes = {"augment.global_size": (config.augment.global_size,) * 2}
    if config.augment.n_local:
        sizes["augment.local_size"] = (config.augment.local_size,) * 2
    sizes["monitor.image_size"] = config.monitor.image_size
    check_sizes(sizes, backbone)
    if not has_cls_attention(backbone):
        if config.monitor.attention_scans:  # drawn at their own aspect
            sizes["monitor.attention_size"] = (config.monitor.attention_size, 2 * config.monitor.attention_size)
        for name, size in sizes.items():
            check_runs(backbone, size, name)


def _train(
    config: TrainConfig,
    accelerator: Accelerator,
    say: Callable[[str], None],
    stop: StopSignal,
    folder: RunFolder,
    trackers: Trackers,
) -> None:
    # ---- settings --------------------------------------------------------------------------------------------------
    run = folder.path
    resume_file = folder.find_resume(config.resume)
    table = provenance.table_of(resume_file)
    index = main_first(accelerator, lambda: find_scans(config.data, config.dataset, config.phantom))
    if config.preset == "auto":
        preflight.choose_settings(config, index, accelerator, resume_file, say)
        accelerator, say = start_processes(config.run)  # the same ones, of the precision that was chosen
    device, bf16, main_process = accelerator.device, accelerator.mixed_precision == "bf16", accelerator.is_main_process

    # ---- networks --------------------------------------------------------------------------------------------------
    state = checkpoint.read_training_state(resume_file, STATE) if resume_file else None

    def build() -> Networks:
        with checkpoint.restoring(resume_file):
            return build_networks(config.init, config.model, config.loss, config.seed, state, say)

    networks = main_first(accelerator, build)
    if config.optim.freeze_backbone_epochs is None:
        new_head = 1.0 if networks.new_head and networks.pretrained else 0.0
        config.optim.freeze_backbone_epochs = state["freeze_backbone_epochs"] if state else new_head
    _check_sizes(config, networks.student.backbone)
    if config.run.shard:
        check_can_shard(networks.student.backbone, device)
        if processes.count() == 1:
            say("note: run.shard True does nothing: there is one process, and nobody to share with")
    if config.dry_run or (config.preset == "auto" and not state):
        preflight.say_cost(config, networks, index, accelerator, say)
    if config.dry_run:
        return say("dry run: nothing was decoded, trained or written")

    # ---- data ------------------------------------------------------------------------------------------------------
    if table is None:  # refused before hours of decoding
        steps_per_epoch(len(index.positions("train")), config.optim.batch_size)
    preflight.warn_of_disk(index, config.dataset, say)
    with accelerator.local_main_process_first():
        index, scans = load_scans(config.data, config.dataset, config.phantom, say, table, index)
    train_index = index.positions("train")
    n_steps_per_epoch = steps_per_epoch(len(train_index), config.optim.batch_size)
    shares(config.optim.batch_size, config.optim.accumulate)  # wrong ones are an error before anything is read
    progress = Progress(Plan(config.optim.epochs, n_steps_per_epoch, config.optim.batch_size))
    with checkpoint.restoring(resume_file):
        plan_change = progress.resume(state["progress"]) if state else ""
    if state and progress.is_complete and state["is_judged"]:
        return say(
            f"{run} is already complete ({progress.step} steps, {progress.scans_seen:,} scans seen); --out another "
            "folder, or --resume never"
        )

    # ---- learner ---------------------------------------------------------------------------------------------------
    start = run / "checkpoints" / "start"
    is_anchored = bool(config.loss.anchor_weight or config.loss.gram_weight)
    learner = Learner(
        networks.student, config.loss, config.optim, accelerator, networks.teacher, config.model,
        load_backbone(str(resume_file.parent / "start")) if state and is_anchored else None, config.run,
    )  # fmt: skip
    if networks.center is not None:
        learner.targets.center.copy_(networks.center)
    if device.type == "cpu" and bf16:
        use_plain_attention(learner.student)
        use_plain_attention(learner.teacher)
    if config.model.compile:
        learner.compile()
    schedules = Schedules(config.optim, config.loss, n_steps_per_epoch)
    judged_by = f"knn_{config.monitor.k[0]}"
    start_judgement: Judgement | None = None
    values, best_value, is_judged = {}, None, False
    if state:
        with checkpoint.restoring(resume_file):
            learner.load_state_dict(state)
            checkpoint.check_optimizer(learner.optimizer)
            values, is_judged = state["values"], state["is_judged"]
            logged = state["start"]["metrics"].values() if state["start"] else ()
            checkpoint.check_numbers([*([values["lr"]] if progress.step else []), *values.values()])
            checkpoint.check_numbers(logged, finite=False)
            best_value = state["best_knn"] if state["judged_by"] == judged_by else None
            start_judgement = Judgement.from_state(state["start"]) if state["start"] else None
            planned = dataclasses.asdict(schedules[max(progress.position - 1, 0)])
            planned = {name: planned[name] for name in values}
        if progress.hand_over(values, planned):
            plan_change += ("; " if plan_change else "") + (
                f"learning rate {values['lr']:.2e} and the other schedules go over to the present settings' within "
                f"{progress.handover.over} steps"
            )
        del state
    check_same_start(accelerator, progress.step, config.out)

    # ---- run folder ------------------------------------------------------------------------------------------------
    whole = learner.whole_teacher()
    if main_process:
        folder.prepare(config, resume_file, say)
        provenance.record(run, index, scans.file_digests, config.init, resume_file)
        if progress.step == 0:
            save_export(whole.backbone, start, scans=scan_settings(config.dataset))
    if plan_change:
        say(f"warning: {plan_change}")
    accelerator.wait_for_everyone()
    checkpoints = checkpoint.Checkpoints(run, "best_knn.pt")

    # ---- views -----------------------------------------------------------------------------------------------------
    augment = MultiCrop(config.augment, config.seed, device)
    sampler = StepSampler(
        len(train_index), config.optim.batch_size, config.optim.accumulate, config.seed, progress.position,
        schedules.steps, accelerator.process_index,
    )  # fmt: skip
    partners = None
    if config.augment.pair != "none":
        partners = Partners(index, train_index, config.augment.pair, config.augment.pair_distance, config.seed)
        say(f"pairs: {partners.count:,} of {len(train_index):,} training scans have a partner ({config.augment.pair})")
    training_scans = TrainingScans(scans, train_index, partners)
    loader = step_loader(training_scans, sampler, config.run.workers)

    def groups_of(items: list[tuple]) -> list[torch.Tensor]:
        pixels, tissue, samples, epochs, *of_partners = zip(*items, strict=True)
        partners = (of_partners[0], np.stack(of_partners[1])) if of_partners else None
        return [g for g in augment(pixels, np.stack(tissue), samples, epochs[0], partners) if len(g)]

    def views_of(items: list[tuple]) -> list[torch.Tensor]:
        return [normalise_views(group, learner.student.backbone) for group in groups_of(items)]

    def masks_of(items: list[tuple]) -> torch.Tensor:
        _, _, samples, epochs, *_ = zip(*items, strict=True)
        rows = config.augment.global_size // patch_size(learner.student.backbone)
        masks = block_masks(
            (rows, rows), samples, epochs[0], config.seed, config.loss.mask_share, config.loss.mask_ratio
        )
        return torch.from_numpy(masks).to(device)

    # ---- monitor ---------------------------------------------------------------------------------------------------
    monitor = Monitor(config.monitor, index, scans, config.seed)
    if monitor.no_knn_because:
        say(f"note: no k-NN and no probe in the evaluations: {monitor.no_knn_because}")
    elif monitor.no_probe_because:
        say(f"note: no probe in the evaluations: {monitor.no_probe_because}")
    if reason := monitor.no_panels_because(whole.backbone):
        say(f"note: no images of where the network looks: {reason}")
    if monitor.no_choice_because and not monitor.no_knn_because:
        say(f"note: checkpoints/best_knn.pt stays at the first evaluation: {monitor.no_choice_because}")
    best = BestCheckpoint(judged_by, monitor.no_choice_because)
    best.value = best_value
    known = progress.step if progress.step or is_judged else None
    log = RunLog(run, known, main_process, config, [judged_by, PROBE], trackers)
    fixed = [training_scans[(VIEWS_EPOCH, i)] for i in range(min(32, len(train_index)))]
    recent: collections.deque[float] = collections.deque(maxlen=50)
    last_step, start_is_lost = progress.last_step, False

    def starting_backbone(now: nn.Module) -> nn.Module | None:
        """The teacher's before the first step, if that is not now; None, with a word, where its export is lost."""
        nonlocal start_is_lost
        if progress.step == 0:
            return now
        try:
            return None if start_is_lost else load_backbone(str(start)).to(device)
        except InputError as error:
            start_is_lost = True
            say(f"note: nothing is compared with the features and weights at the start: {error}")
            return None

    @phase("evaluating", main_process)
    def evaluate() -> bool:
        """Judge the teacher; the same numbers go to the terminal, metrics.jsonl and TensorBoard.

        Returns:
            whether this is the best checkpoint so far.

        Raises:
            Stopped: a signal came before the end; nothing is logged.
        """
        nonlocal start_judgement, is_judged
        learner.check_weights()
        temperature = schedules[min(progress.position, schedules.steps - 1)].teacher_temperature
        backbone, stop_check = learner.whole_teacher().backbone, lambda: stop.check(device)
        if monitor.start is None and (starting := starting_backbone(backbone)) is not None:
            monitor.keep_start(starting, device, bf16, stop_check, lambda: stop.received, draws=main_process)
        judgement = monitor.evaluate(backbone, device, bf16, stop_check)
        metrics = judgement.metrics
        metrics |= learner.teacher_statistics(views_of(fixed), temperature)
        metrics |= {"ln_k": learner.uniform_loss, "center_norm": float(learner.targets.center.norm())}
        panels = {}
        if main_process:
            panels = monitor.panels(backbone, device, progress.step, lambda: stop.received)
        stop.check(device)
        start_judgement = start_judgement or judgement
        metrics |= monitor.changes(judgement, start_judgement) if progress.step else {}
        say(evaluation_line(progress.step, last_step, judgement, start_judgement, monitor))
        loss = sum(recent) / len(recent) if recent else None
        change = monitor.change(judgement, start_judgement, config.monitor.k[0])
        done = progress.position / schedules.steps
        for warning in warnings_of(metrics, start_judgement.metrics, learner.uniform_loss, loss, done, change):
            say(f"warning: {warning}")
        log.write(progress.step, progress.epoch, metrics, "evaluation")
        log.images("attention" if has_cls_attention(backbone) else "gradcam", panels, progress.step)
        is_judged, was_saturated = True, best.is_saturated
        collapsed = collapses(metrics, start_judgement.metrics)
        if collapsed and best.is_better(metrics):
            say(f"note: checkpoints/best_knn.pt does not take this one: its {' and '.join(collapsed)} collapsed")
        is_best = best.take(metrics, collapsed)
        if best.is_saturated and not was_saturated and not monitor.no_choice_because:
            say(f"note: checkpoints/best_knn.pt stays at step {progress.step}: k-NN has no room for a better one")
        return is_best

    # ---- loop ------------------------------------------------------------------------------------------------------
    def save(keep: bool = False, is_best: bool = False) -> None:
        learner.check_weights()
        state, backbone = learner.state_dict(), learner.whole_teacher().backbone
        if main_process:
            rest = {"step": progress.step, "progress": progress.state_dict(), "values": values, "is_judged": is_judged}
            rest |= {"epoch": int(progress.epoch), "best_knn": best.value, "judged_by": judged_by}
            rest["start"] = start_judgement.state_dict() if start_judgement else None
            rest["freeze_backbone_epochs"] = config.optim.freeze_backbone_epochs
            rest["hub_config"] = backbone.hub_config
            checkpoints.save(state | rest, keep, is_best)
            save_export(backbone, run / "export", scans=scan_settings(config.dataset))

    say(
        f"training: {len(train_index):,} scans · {config.optim.epochs} epochs of {n_steps_per_epoch} steps · "
        f"{batch_words(config.optim.batch_size, config.optim.accumulate)} · lr {schedules.lr.max():.2e} · "
        f"{device.type}, {'bf16' if bf16 else 'fp32'}"
    )
    if progress.step == 0 and main_process:
        log.images("views", {"first scans": draw_views(groups_of(fixed[:4]))}, 0)
    evaluate_every = max(round(config.monitor.every_epochs * n_steps_per_epoch), 1)
    batches = iter(loader)

    def next_views() -> tuple[list[list[torch.Tensor]], list[torch.Tensor] | None]:
        """Views of the micro-batches of a step, and which patches are hidden."""
        loaded = [next(batches) for _ in range(config.optim.accumulate)]
        masks = [masks_of(items) for items in loaded] if learner.masks_patches else None
        return [views_of(items) for items in loaded], masks

    def read(leave: int = 0) -> dict[str, float]:
        """Wait for the steps under way, but for the last ``leave``; the metrics of the last one that was read."""
        metrics = {}
        while len(under_way) > leave:
            metrics = dict(under_way[0][1])  # what is not finite is found here, and its step is still the first
            under_way.popleft()
            recent.append(metrics.get("dino_loss", metrics["loss"]))
        return metrics

    under_way: collections.deque[tuple[int, StepMetrics]] = collections.deque()
    views = Ahead(next_views, last_step - progress.step, device)
    pace = Pace(whole, config.augment, device, bf16)
    del whole  # of a sharded teacher a copy
    bar = step_bar(last_step, progress.step, main_process)
    try:
        if not is_judged:
            save(is_best=evaluate())
        while not progress.is_complete and not stop.is_requested(device):
            # Stochastic depth is drawn from (seed, step, process) alone: a resumed run draws as the first one would.
            torch.manual_seed(
                seed_of("drop path of a pretraining", config.seed, accelerator.process_index, progress.step)
            )
            micro_batches, masks = next(views)
            scheduled = schedules[progress.position]
            values = progress.values(
                {name: value for name, value in dataclasses.asdict(scheduled).items() if isinstance(value, float)}
            )
            scheduled = dataclasses.replace(scheduled, **values)
            under_way.append((progress.step, learner.step(micro_batches, scheduled, masks)))
            progress.advance()
            pace.count(config.optim.batch_size)
            bar.update()

            step = progress.step
            is_logged = step % config.run.log_every == 0 or progress.is_complete
            metrics = read(leave=0 if is_logged or device.type == "cpu" else 1)  # a GPU is not kept waiting
            if is_logged:
                paces = pace.read(views)
                metrics |= dataclasses.asdict(scheduled) | {"scans_seen": progress.scans_seen} | paces
                log.write(step, progress.epoch, metrics | gpu_memory(device))
                speed, waiting = paces["images_per_s"], f"{paces['waiting']:.0%}"
                bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed:.3g} img/s, waiting for data {waiting}")
                if bar.disable and (step % (10 * config.run.log_every) == 0 or progress.is_complete):
                    left = (last_step - step) * config.optim.batch_size / speed
                    loss = f"{metrics['loss']:.3f}"
                    say(f"step {step}/{last_step} · loss {loss} · {speed:.3g} images/s · {left:.0f} s left")
            is_judged = progress.position % evaluate_every != 0 and not progress.is_complete
            keep = bool(config.run.keep_every) and step % config.run.keep_every == 0
            saves = keep or progress.is_complete or step % config.run.save_every == 0
            if saves or not is_judged:
                read()
                with pace.pause():
                    is_best = not is_judged and evaluate()
                    if saves or is_best:
                        save(keep, is_best)
        read()
    except Stopped:
        pass
    except NotFiniteError as error:
        at = under_way[0][0] if under_way else progress.step
        raise InputError(
            f"{run}: stopped at step {at}, {error}; the last checkpoint is good: lower --optim.lr or "
            "--optim.clip-grad, or use --run.precision fp32 to tell a precision problem from a diverging one"
        ) from None
    finally:
        views.close()
        bar.close()
        log.close()
    if progress.is_complete and is_judged:
        say(f"done: {run}/export holds the backbone; watch with: tensorboard --logdir {run}")
    else:
        save()
        if main_process:
            (run / "stopped").write_text(f"{progress.step}\n")  # launch/slurm.sh puts the job back into the queue
        say(
            f"stopped by a signal after step {progress.step} of {last_step}: saved; the same command goes on from there"
        )
