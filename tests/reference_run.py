"""Rebuilds the reference run's networks and settings; shared by the faithfulness and the process tests."""

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import REFERENCE

from dino_oct.config import ModelConfig, OptimConfig, PretrainingRunConfig
from dino_oct.learner import Learner, Schedules
from dino_oct.loss import LossConfig
from dino_oct.models import official
from dino_oct.models.backbone import load_backbone
from dino_oct.models.head import DinoHead
from dino_oct.models.network import DinoNetwork


def network(checkpoint: dict, which: str, masks_patches: bool = False) -> DinoNetwork:
    backbone = load_backbone(str(REFERENCE / "checkpoint_init.pth"), heads=3)
    net = DinoNetwork(backbone, DinoHead(48, 128, hidden_dim=64, bottleneck_dim=32), masks_patches)
    left = net.load_state_dict(official.network_tensors(checkpoint, which), strict=False)
    assert left.missing_keys == ["mask_token"] * masks_patches
    assert not left.unexpected_keys
    return net


def learner_and_schedules(
    settings: dict,
    accelerator: Accelerator | None = None,
    model: ModelConfig | None = None,
    run: PretrainingRunConfig | None = None,
    **loss_settings,
) -> tuple[Learner, Schedules]:
    """The reference's settings, by the names in its record."""
    loss = LossConfig(
        teacher_temperature=settings["teacher_temp"],
        warmup_teacher_temperature=settings["warmup_teacher_temp"],
        warmup_teacher_temperature_epochs=settings["warmup_teacher_temp_epochs"],
        **loss_settings,
    )
    optim = OptimConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        lr=settings["base_lr"] * 256 / settings["batch"],  # the record's rate is the one used, not per 256 scans
        min_lr=settings["min_lr"],
        warmup_epochs=settings["warmup_epochs"],
        clip_grad=settings["clip_grad_per_parameter"],
        teacher_momentum=settings["momentum"],
    )
    checkpoint = official.read_checkpoint(REFERENCE / "checkpoint_init.pth")
    student, teacher = (network(checkpoint, which, bool(loss.ibot_weight)) for which in ("student", "teacher"))
    if model is not None and model.grad_checkpointing:
        student.backbone.set_grad_checkpointing(True)
    if accelerator is None:
        AcceleratorState._reset_state()  # an earlier test may have left one of bf16
        accelerator = Accelerator(cpu=True, mixed_precision="no")
    learner = Learner(student, loss, optim, accelerator, teacher, model, run=run)
    return learner, Schedules(optim, loss, settings["iters_per_epoch"])
