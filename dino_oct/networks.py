"""Student, teacher, head and centre of a run, from whatever it starts from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dino_oct.checkpoint import Checkpoints
from dino_oct.config import LossConfig, ModelConfig
from dino_oct.errors import InputError
from dino_oct.models import official
from dino_oct.models.attention import has_cls_attention
from dino_oct.models.backbone import adopt_description, load_backbone, local_file
from dino_oct.models.description import check_description
from dino_oct.models.head import DinoHead
from dino_oct.models.loading import load_into
from dino_oct.models.network import DinoNetwork
from dino_oct.streams import seed_of

_OF_MASKS = ("mask_token", "patch_head.")  # tensors of a network that hides patches


@dataclass
class Networks:
    """What a run starts with. ``teacher`` and ``center`` are None where they start as a copy and at 0."""

    student: DinoNetwork
    teacher: DinoNetwork | None
    center: torch.Tensor | None
    new_head: bool
    pretrained: bool


def build_networks(
    init: str,
    config: ModelConfig,
    loss: LossConfig,
    seed: int,
    state: official.Checkpoint | None,
    say: Callable[[str], None],
) -> Networks:
    """Build the networks of a run and say what was loaded.

    A full file (official, or of a run) gives student, teacher, head and centre; any other source gives a backbone, and
    the head is new.

    Args:
        init: SOURCE of ``load_backbone``.
        state: a run's checkpoint to resume, whose shapes replace those of ``init``; its weights are not loaded here.

    Raises:
        InputError: as ``load_backbone``; or gradient checkpointing of a backbone that timm has none for.
    """
    if state is not None:
        tensors = official.network_tensors(state, "student")
        student = _network(_rebuild(state, config), config, tensors, seed, loss)
        return Networks(student, None, None, new_head=False, pretrained=True)

    file, full = open_start(init)
    backbone = load_backbone(
        file,
        model_args=config.timm_args(),
        heads=config.heads,
        drop_path=config.drop_path,
        seed=seed,
    )
    for name in ("ibot_weight", "gram_weight"):
        if getattr(loss, name) and not has_cls_attention(backbone):
            raise InputError(
                f"loss.{name} needs tokens of patches, and {type(backbone).__name__} has none; leave it at 0"
            )
    if config.grad_checkpointing:
        _checkpoint_gradients(backbone)
    say(f"backbone: {backbone.load_report} · {sum(p.numel() for p in backbone.parameters()) / 1e6:.1f} M parameters")
    if not full:
        pretrained = backbone.load_report.matched > 0
        if config.init == "fan_in" and not pretrained:
            _init_by_fan_in(backbone, seed)
        student = _network(backbone, config, None, seed, loss)
        say(f"head: new, K = {config.out_dim}")
        return Networks(student, None, None, new_head=True, pretrained=pretrained)

    tensors = {which: official.network_tensors(full, which) for which in ("student", "teacher")}
    teacher_backbone = load_backbone(file, model_args=config.timm_args(), heads=config.heads)
    try:
        student = _network(backbone, config, tensors["student"], seed, loss)
        teacher = _network(teacher_backbone, config, tensors["teacher"], seed, loss)
        out_dim = student.head.last_layer.weight_v.shape[0]
        center = full.get("dino_loss", {}).get("center")
        center = None if center is None else center.reshape(1, out_dim)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(f"{file}: damaged: its heads or its centre are not DINO's ({reason})") from None
    # What masks patches is new where the file's training did without, and is not taken where this one does.
    own, theirs = student.state_dict().keys(), tensors["student"].keys()
    new = {name for name in own - theirs if name.startswith(_OF_MASKS)}
    for network, which in ((student, "student"), (teacher, "teacher")):
        taken = {n: t for n, t in tensors[which].items() if n in own or not n.startswith(_OF_MASKS)}
        load_into(network, taken, f"{file} ({which})", keep=new)
    if new:
        teacher.load_state_dict({name: student.state_dict()[name] for name in new}, strict=False)
    if center is not None and not center.isfinite().all():
        raise InputError(f"{file}: damaged: its centre is not finite")
    say(
        f"head: from the file, K = {out_dim}; student, teacher and {'centre' if center is not None else 'no centre'} "
        "taken over" + (f" (model.out_dim {config.out_dim} is not used)" if out_dim != config.out_dim else "")
    )
    return Networks(student, teacher, center, new_head=False, pretrained=True)


def open_start(init: str) -> tuple[str, official.Checkpoint]:
    """Fetch what a run starts from, if it is elsewhere, and look for a full checkpoint.

    Args:
        init: SOURCE of ``load_backbone``.

    Returns:
        SOURCE to load the backbone from, and the full checkpoint that it is a part of; empty where there is none.

    Raises:
        InputError: it cannot be fetched, or its file is damaged.
    """
    file = local_file(init)
    init = str(file) if init.startswith("https://") else init
    if file.is_dir() and Checkpoints(file).last.is_file():
        file = Checkpoints(file).last
    full = official.read_checkpoint(file) if file.is_file() else {}
    return (str(file), full) if official.is_full(full) else (init, {})


def _network(
    backbone: nn.Module, config: ModelConfig, tensors: official.Tensors | None, seed: int, loss: LossConfig
) -> DinoNetwork:
    """A backbone with a head of the file's sizes, or of the settings' where there is no file."""
    sizes = {"out_dim": config.out_dim, "hidden_dim": config.hidden_dim, "bottleneck_dim": config.bottleneck_dim}
    if tensors is not None and "head.last_layer.weight_v" in tensors:
        out_dim, bottleneck_dim = tensors["head.last_layer.weight_v"].shape
        sizes = {"out_dim": out_dim, "hidden_dim": len(tensors["head.mlp.0.weight"]), "bottleneck_dim": bottleneck_dim}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights of the head", seed))
        width = getattr(backbone, "head_hidden_size", backbone.num_features)  # some have a layer behind the pooling
        head = DinoHead(width, **sizes, norm_last_layer=config.norm_last_layer, init=config.init)
        patch_head = None
        if loss.ibot_weight and loss.ibot_head == "own":
            patch_head = DinoHead(
                backbone.num_features, **sizes, norm_last_layer=config.norm_last_layer, init=config.init
            )
    return DinoNetwork(backbone, head, bool(loss.ibot_weight), patch_head)


def _rebuild(state: official.Checkpoint, config: ModelConfig) -> nn.Module:
    hub = check_description(state["hub_config"], state["file"])
    args = {k: v for k, v in hub["model_args"].items() if k != "dynamic_img_size"}
    try:
        backbone = load_backbone(f"random:{hub['architecture']}", model_args=args, drop_path=config.drop_path)
    except InputError as error:
        raise InputError(f"{state['file']}: {error}") from None
    adopt_description(backbone, hub)
    if config.grad_checkpointing:
        _checkpoint_gradients(backbone)
    return backbone


def _checkpoint_gradients(backbone: nn.Module) -> None:
    try:
        backbone.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError):  # timm's ways to say no
        raise InputError(
            f"model.grad_checkpointing True: timm has none for {type(backbone).__name__}; leave it out, and raise "
            "optim.accumulate if memory is short"
        ) from None


def _init_by_fan_in(backbone: nn.Module, seed: int) -> None:
    """Draw linear and convolution weights with std 1 / √fan_in: narrow networks then tell scans apart at the start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights by fan-in", seed))
        for module in backbone.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
