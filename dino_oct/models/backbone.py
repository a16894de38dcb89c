"""``load_backbone(SOURCE)``: one door for timm names, official DINO files, run folders and exports."""

import json
import math
import re
import urllib.error
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dino_oct.errors import InputError
from dino_oct.models import official
from dino_oct.models.vit import DinoVisionTransformer
from dino_oct.streams import seed_of

# Official architectures by (width, depth); every one has heads of 64 channels.
_NAMES = {(192, 12): "vit_tiny", (384, 12): "vit_small", (768, 12): "vit_base", (1024, 24): "vit_large"}


# What a transformer is asked for unless told otherwise; networks that do not know an argument are built without it.
_IF_KNOWN = {"dynamic_img_size": True, "drop_path_rate": 0.0}


@dataclass(frozen=True)
class LoadReport:
    """What a load did: tensors that matched, that the file lacked, and that the model has no place for.

    ``classifier`` is "loaded", "new" (the source has none of this size), "left out" (the source has one that was not
    asked for) or "" (there is none on either side); a classifier new or left out is not counted above.
    """

    source: str
    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    classifier: str = ""

    def __str__(self) -> str:
        if not self.matched:
            return f"{self.source}: random weights"
        classifier = f", classifier {self.classifier}" if self.classifier else ""
        listed = f" ({', '.join(self.unexpected[:4])}{', …' if len(self.unexpected) > 4 else ''})"
        return (
            f"{self.source}: {self.matched} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected" + (listed if self.unexpected else "") + classifier
        )


def load_backbone(
    source: str,
    *,
    num_classes: int | None = 0,
    model_args: dict[str, Any] | None = None,
    heads: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Load a backbone as a timm model, ready for images of any size a multiple of its patch.

    Args:
        source: a run folder, an exported folder, an official DINO file or its https address (full: the teacher is
            taken; or backbone-only), ``timm:NAME`` (pretrained), or ``random:NAME`` (timm's initialisation).
        num_classes: of the classifier; 0 builds none, None takes the source's, if it has one. The classifier is new
            (timm's initialisation) unless the source holds one of this size; every other tensor must come from it.
        model_args: further arguments of the timm model, e.g. ``{"embed_dim": 96, "depth": 3}`` for ``random:``.
        heads: attention heads, for a file whose width does not tell (not a multiple of 64).
        drop_path: stochastic depth rate, linear over depth (for a student; 0 for everything else).
        seed: of the random weights, a new classifier's included.

    Returns:
        a timm model; transformers resample their position embedding as DINO does. ``model.load_report`` counts tensors,
        ``model.pretrained_cfg`` has mean and std, ``model.hub_config`` is what an export needs to rebuild it, with the
        classes' ``label_names`` if they were loaded with their classifier.

    Raises:
        InputError: unknown source, unreadable file, a tensor of the backbone missing, or a size that does not fit.
    """
    args = dict(model_args or {})
    if drop_path:
        args["drop_path_rate"] = drop_path
    kind, _, name = source.partition(":")
    if kind in ("timm", "random"):
        return _from_timm(name, kind == "timm", num_classes, args, seed)
    path = download(source) if source.startswith("https://") else Path(source)
    if path.is_dir():
        return _from_folder(path, num_classes, args, seed)
    if path.is_file():
        return _from_file(path, num_classes, args, heads, seed)
    raise InputError(
        f"{source}: no such file or folder; give a run folder, an export, a DINO file, timm:NAME or random:NAME"
    )


def download(address: str) -> Path:
    """Fetch a checkpoint once into torch's hub cache and return its path."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / address.rsplit("/", 1)[-1]
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file))
        except (OSError, urllib.error.URLError) as error:
            raise InputError(
                f"{address}: could not be downloaded ({error}); fetch it elsewhere and give the file as the source"
            ) from None
    return file


def classifier_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors of a timm model's classifier; none where it was built without."""
    classifier = model.get_classifier()
    layers = classifier if isinstance(classifier, (tuple, list)) else [classifier]  # distilled models have two
    own = {id(tensor) for layer in layers for tensor in layer.parameters()}
    return [name for name, tensor in model.named_parameters() if id(tensor) in own]


def load_into(model: nn.Module, tensors: official.Tensors, source: str, keep: Collection[str] = ()) -> LoadReport:
    """Load tensors into a model, counting; a model tensor that is missing or of another shape is an error.

    Args:
        keep: names of tensors that stay as they are in the model.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in keep}
    wrong = [n for n, t in tensors.items() if n in wanted and t.shape != wanted[n].shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{source}: {name} is {tuple(tensors[name].shape)} in the file and {tuple(wanted[name].shape)} in the model"
            + (f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else "")
        )
    missing = tuple(name for name in wanted if name not in tensors)
    unexpected = tuple(name for name in tensors if name not in wanted)
    if missing:
        raise InputError(
            f"{source}: only {len(wanted) - len(missing)} of the model's {len(wanted)} tensors are in the file "
            f"(missing {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; it has "
            f"{', '.join(list(tensors)[:3]) or 'no tensors'}, …): a partial load would train from noise, refused"
        )
    model.load_state_dict({name: tensors[name] for name in wanted}, strict=not keep)
    return LoadReport(source, len(wanted), missing, unexpected)


def patch_size(backbone: nn.Module) -> int:
    """Pixels per side of a patch token (a convolutional stem's stride included); 1 for models without patches."""
    embed = getattr(backbone, "patch_embed", None)
    ratio = embed.feat_ratio() if hasattr(embed, "feat_ratio") else 1
    return int(ratio[0] if isinstance(ratio, (tuple, list)) else ratio)


def save_export(backbone: nn.Module, folder: str | Path, label_names: Sequence[str] | None = None) -> None:
    """Write ``backbone.safetensors`` and ``config.json`` in timm's hub format (architecture, model_args, …).

    Args:
        backbone: from ``load_backbone``; its classifier, if it has one, is written with it.
        label_names: the classes of that classifier, in order; unset: those it was loaded with.
    """
    folder = Path(folder)
    config = {**backbone.hub_config, **({"label_names": list(label_names)} if label_names is not None else {})}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    # Weights first, each by rename: a reader never sees a config beside half a file.
    save_file(tensors, folder / "backbone.safetensors.tmp", metadata={"format": "pt"})
    (folder / "backbone.safetensors.tmp").replace(folder / "backbone.safetensors")
    (folder / "config.json.tmp").write_text(json.dumps(config, indent=1))
    (folder / "config.json.tmp").replace(folder / "config.json")


def _from_timm(name: str, pretrained: bool, num_classes: int | None, args: dict[str, Any], seed: int) -> nn.Module:
    if not name or not timm.is_model(name):
        close = timm.list_models(f"*{re.split(r'[._]', name)[0]}*")[:6] if name else []
        raise InputError(f"timm has no model '{name}'" + (f"; similar: {', '.join(close)}" if close else ""))
    config = timm.get_pretrained_cfg(name) if pretrained else None
    in_source = config.num_classes if config else 0
    num_classes = in_source if num_classes is None else num_classes
    try:
        model = _create(name, num_classes, args, seed, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        # timm raises whatever its hub client raises when there is no connection, and RuntimeError without weights.
        if not pretrained:
            raise InputError(f"random:{name}: {' '.join(str(error).split())[:200]}") from None
        raise InputError(
            f"timm:{name}: weights could not be had ({' '.join(str(error).split())[:160]}); "
            f"without a connection, give a downloaded file as the source or random:{name}"
        ) from None
    if not pretrained:
        return _finish(model, name.split(".")[0], args, LoadReport(f"random:{name}", 0))
    loaded = 0 < num_classes == in_source
    classifier = "loaded" if loaded else _fate(bool(in_source), bool(num_classes))
    matched = len(model.state_dict()) - (0 if loaded else len(classifier_tensors(model)))
    return _finish(model, name.split(".")[0], args, LoadReport(f"timm:{name}", matched, classifier=classifier))


def _from_file(path: Path, num_classes: int | None, args: dict[str, Any], heads: int | None, seed: int) -> nn.Module:
    checkpoint = official.read_checkpoint(path)
    hub_config = checkpoint.get("hub_config")  # the trainers' own checkpoints say how to rebuild their model
    if hub_config:
        tensors = official.backbone_tensors(checkpoint) if official.is_full(checkpoint) else checkpoint.get("model", {})
        return _rebuild(hub_config, tensors, str(path), num_classes, args, seed)
    tensors = official.backbone_tensors(checkpoint)
    architecture, shape_args = _infer_vit(tensors, heads, path)
    args = {**shape_args, **args}
    model = _create(architecture, num_classes or 0, args, seed)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return _finish(model, architecture, args, _load(model, tensors, str(path)))


def _from_folder(folder: Path, num_classes: int | None, args: dict[str, Any], seed: int) -> nn.Module:
    export = next((f for f in (folder, folder / "export") if (f / "config.json").is_file()), None)
    if export is None:
        raise InputError(f"{folder}: neither a run folder nor an export (no export/config.json in it)")
    try:
        hub_config = json.loads((export / "config.json").read_text())
        if "architecture" not in hub_config:
            raise ValueError("it names no architecture")
    except (ValueError, TypeError) as error:
        raise InputError(f"{export / 'config.json'}: not a model description ({error})") from None
    tensors = official.read_checkpoint(export / "backbone.safetensors")
    return _rebuild(hub_config, tensors, str(export), num_classes, args, seed)


def _rebuild(
    hub_config: dict[str, Any],
    tensors: official.Tensors,
    source: str,
    num_classes: int | None,
    args: dict[str, Any],
    seed: int,
) -> nn.Module:
    """The model that ``hub_config`` describes, with its tensors."""
    num_classes = hub_config.get("num_classes", 0) if num_classes is None else num_classes
    args = {**hub_config.get("model_args", {}), **args}
    model = _create(hub_config["architecture"], num_classes, args, seed)
    model.pretrained_cfg = {**model.pretrained_cfg, **hub_config.get("pretrained_cfg", {})}
    report = _load(model, tensors, source)
    model = _finish(model, hub_config["architecture"], args, report)
    if report.classifier == "loaded" and "label_names" in hub_config:
        model.hub_config["label_names"] = list(hub_config["label_names"])
    return model


def _load(model: nn.Module, tensors: official.Tensors, source: str) -> LoadReport:
    """Load a backbone, with its classifier if model and source have one of the same size."""
    ours = {name: model.get_parameter(name) for name in classifier_tensors(model)}
    if ours and all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in ours.items()):
        return replace(load_into(model, tensors, source), classifier="loaded")
    layers = model.pretrained_cfg.get("classifier") or "head"
    layers = tuple(f"{name}." for name in ([layers] if isinstance(layers, str) else layers))
    backbone = model.state_dict().keys() - ours.keys()
    theirs = {name for name in tensors if name.startswith(layers) and name not in backbone}
    report = load_into(model, {n: t for n, t in tensors.items() if n not in theirs}, source, keep=ours)
    return replace(report, classifier=_fate(bool(theirs), bool(ours)))


def _fate(in_source: bool, in_model: bool) -> str:
    """What became of a classifier that was not loaded."""
    return "new" if in_model else "left out" if in_source else ""


def _create(name: str, num_classes: int, args: dict[str, Any], seed: int, pretrained: bool = False) -> nn.Module:
    """timm.create_model, random weights drawn by seed; transformers get a dynamic image size and DINO's positions."""
    wanted = {**_IF_KNOWN, **args}
    while True:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of("weights", seed))
                model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **wanted)
            break
        except TypeError as error:
            unknown = [key for key, value in _IF_KNOWN.items() if f"'{key}'" in str(error) and wanted.get(key) == value]
            if not unknown:
                raise InputError(f"{name} cannot be built with {args}: {error}") from None
            wanted.pop(unknown[0])
        except (AssertionError, ValueError, LookupError, RuntimeError) as error:
            if pretrained:
                raise  # from the hub
            raise InputError(f"{name} cannot be built with {args}: {error}") from None
    if type(model) is VisionTransformer:
        model.__class__ = DinoVisionTransformer
    if "img_size" in args:
        size = args["img_size"]
        rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (args.get("in_chans", 3), rows, columns)}
    return model


def _infer_vit(tensors: official.Tensors, heads: int | None, path: Path) -> tuple[str, dict[str, Any]]:
    """Architecture of a vision transformer from the shapes of its tensors."""
    try:
        width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        n_positions = tensors["pos_embed"].shape[1] - 1
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError):
        names = ", ".join(list(tensors)[:3]) or "no tensors"
        raise InputError(f"{path}: not a DINO vision transformer (it has {names}, …)") from None
    if heads is None and width % 64:
        raise InputError(f"{path}: width {width} does not tell the number of heads; give --model.heads (or --heads)")
    heads = heads or width // 64
    if width % heads:
        raise InputError(f"{path}: width {width} cannot be divided over {heads} heads")
    side = math.isqrt(n_positions)
    args: dict[str, Any] = {"patch_size": patch, "img_size": side * patch}
    name = f"{_NAMES.get((width, depth), 'vit_custom')}_patch{patch}_224"
    if not timm.is_model(name) or heads != width // 64:
        name = "vit_base_patch16_224"
        args |= {"embed_dim": width, "depth": depth, "num_heads": heads}
    if channels != 3:
        args["in_chans"] = channels
    if hidden != 4 * width:
        args["mlp_ratio"] = hidden / width
    if registers:
        args["reg_tokens"] = registers
    return name, args


def _finish(model: nn.Module, architecture: str, args: dict[str, Any], report: LoadReport) -> nn.Module:
    config = {key: model.pretrained_cfg[key] for key in ("mean", "std", "input_size") if key in model.pretrained_cfg}
    rebuild = {k: v for k, v in args.items() if k != "drop_path_rate"}
    if isinstance(model, VisionTransformer) or hasattr(model, "dynamic_img_size"):
        rebuild["dynamic_img_size"] = True
    model.hub_config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": rebuild,
        "pretrained_cfg": {**config, "num_classes": model.num_classes},
    }
    model.load_report = report
    return model
