"""``load_backbone(SOURCE)``: one door for timm names, files of weights, run folders, exports and others' folders."""

import json
import os
import re
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dino_oct.errors import InputError
from dino_oct.files import check_regular, read_json, write_whole
from dino_oct.models import formats, huggingface, official
from dino_oct.models.description import (
    ImageDescription,
    ModelArgs,
    ModelDescription,
    check_arguments,
    check_description,
    describe_images,
)
from dino_oct.models.folders import FORMS, ModelFolder, open_folder
from dino_oct.models.hub import check_reachable
from dino_oct.models.loading import (
    LoadReport,
    classifier_tensors,
    fate_of_classifier,
    load_with_classifier,
)
from dino_oct.models.network import cls_feature, evaluating, in_channels
from dino_oct.models.recognise import Recognised, recognise
from dino_oct.models.vit import DinoVisionTransformer
from dino_oct.streams import seed_of

# What a transformer is asked for unless told otherwise; networks that do not know an argument are built without it.
_IF_KNOWN = {"dynamic_img_size": True, "drop_path_rate": 0.0}
_OWN = "this package"  # name of its format
_MOST_BY_EPS = 1e-3  # of the largest feature: what timm's eps of the norms may change


def load_backbone(
    source: str,
    *,
    num_classes: int | None = 0,
    model_args: ModelArgs | None = None,
    heads: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Load a backbone as a timm model, ready for images of any size a multiple of its patch.

    Args:
        source: a run folder, an exported folder, a folder in timm's hub layout or of Hugging Face's transformers, a
            file or its https address (vision transformers of DINO, iBOT, DINOv2, DINOv3, MAE, MoCo-v3, MIRAGE, timm;
            ResNet and ConvNeXt; of several copies the averaged one, as DINO's teacher, is taken), ``timm:NAME`` (timm's
            weights), ``timm:NAME@FILE`` (any timm architecture with the weights of a file), or ``random:NAME`` (timm's
            initialisation).
        num_classes: of the classifier; 0 builds none, None takes the source's, if it has one. The classifier is new
            (timm's initialisation) unless the source holds one of this size; every other tensor must come from it.
        model_args: further arguments of the timm model, e.g. ``{"embed_dim": 96, "depth": 3}`` for ``random:``.
        heads: attention heads, for a file whose width does not tell (not a multiple of 64).
        drop_path: stochastic depth rate, linear over depth (for a student; 0 for everything else).
        seed: of the random weights, a new classifier's included.

    Returns:
        a timm model; transformers resample their position embedding as DINO does. ``model.load_report`` counts tensors
        and names the format, ``model.pretrained_cfg`` has mean, std and input size as the source has them,
        ``model.hub_config`` is what an export needs to rebuild it, with the classes' ``label_names`` if they were
        loaded with their classifier.

    Raises:
        InputError: unknown source, unreadable or damaged file, a tensor of the backbone missing, one that the backbone
            has no place for, weights that are not finite, or a size that does not fit.
    """
    args = dict(model_args or {})
    if drop_path:
        args["drop_path_rate"] = drop_path
    kind, _, name = source.partition(":")
    if kind == "timm" and "@" in name:
        name, _, file = name.partition("@")
        return _from_named_file(name, local_file(file), num_classes, args, seed)
    if kind in ("timm", "random"):
        return _from_timm(name, kind == "timm", num_classes, args, seed)
    path = local_file(source)
    if path.is_dir():
        return _from_folder(path, num_classes, args, heads, seed)
    if path.is_file():
        return _from_file(path, num_classes, args, heads, seed)
    if os.path.lexists(path):
        check_regular(path)
    raise InputError(_missing(source))


def check_source(source: str) -> None:
    """Raise InputError unless what a SOURCE of ``load_backbone`` names is there; nothing is read."""
    kind, _, name = source.partition(":")
    if kind in ("timm", "random"):
        name, at, file = name.partition("@") if kind == "timm" else (name, "", "")
        _check_name(name, source)
        source = file if at else source
        if not at:
            return
    if source.startswith("https://") or Path(source).is_dir():
        return
    if not os.path.lexists(source):
        raise InputError(_missing(source))
    check_regular(source)


def _missing(source: str) -> str:
    meant = f"; did you mean timm:{source}?" if re.fullmatch(r"[\w.-]+", source) and timm.is_model(source) else ""
    return f"{source}: no such file or folder{meant or f'; give {FORMS}'}"


def local_file(address: str) -> Path:
    """A path as it is; a checkpoint at an https address is fetched."""
    return download(address) if address.startswith("https://") else Path(address)


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


def adopt_description(model: nn.Module, hub_config: ModelDescription) -> None:
    """Take over what a description (of ``check_description``) says beside the architecture, for a model built anew."""
    model.pretrained_cfg = {**model.pretrained_cfg, **hub_config["pretrained_cfg"]}
    model.hub_config["pretrained_cfg"] = {**model.hub_config["pretrained_cfg"], **hub_config["pretrained_cfg"]}
    told = ("label_names", "multilabel", "scans", "norm_eps")
    model.hub_config |= {key: hub_config[key] for key in told if key in hub_config}
    if "norm_eps" in hub_config:
        for norm in _norms(model):
            norm.eps = hub_config["norm_eps"]


def _norms(model: nn.Module) -> list[nn.LayerNorm]:
    """The norms whose eps ``norm_eps`` is."""
    norms = [model.head.norm] if isinstance(model, ConvNeXt) else model.modules()
    return [norm for norm in norms if isinstance(norm, nn.LayerNorm)]


def open_layer_scales(model: nn.Module) -> None:
    """Set the scales of residual branches that timm starts near 0 (LayerScale and its kin) to 1.

    For untrained networks: at 1e-5 every image leaves a transformer with the same CLS. Such a scale is a parameter,
    neither weight nor bias, that starts at one value between 0 and 1.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            first = parameter.flatten()[0].item()
            if name.rsplit(".", 1)[-1] not in ("weight", "bias") and 0 < first < 1 and (parameter == first).all():
                parameter.fill_(1.0)


def random_twin(model: nn.Module, seed: int, num_classes: int = 0) -> nn.Module:
    """A model of the same architecture and images with random weights, as ``open_layer_scales`` leaves them."""
    hub_config = model.hub_config
    source = f"random:{hub_config['architecture']}"
    twin = load_backbone(source, model_args=hub_config["model_args"], num_classes=num_classes, seed=seed)
    open_layer_scales(twin)
    twin.pretrained_cfg = {**twin.pretrained_cfg, **hub_config["pretrained_cfg"]}
    return twin


def patch_size(backbone: nn.Module) -> int:
    """Pixels per side of a patch token (a convolutional stem's stride included); 1 for models without patches."""
    embed = getattr(backbone, "patch_embed", None)
    ratio = embed.feat_ratio() if hasattr(embed, "feat_ratio") else 1
    return int(ratio[0] if isinstance(ratio, (tuple, list)) else ratio)


def check_size(size: tuple[int, int], backbone: nn.Module, name: str) -> None:
    """Raise InputError unless both sides are multiples of the backbone's patch; names the nearest that are."""
    check_sizes({name: size}, backbone)


def check_sizes(sizes: Mapping[str, tuple[int, int]], backbone: nn.Module) -> None:
    """As ``check_size``, for all of several at once."""
    patch, wrong = patch_size(backbone), []
    for name, size in sizes.items():
        if any(side % patch or side < patch for side in size):
            near = " ".join(str(max(round(side / patch), 1) * patch) for side in size)
            wrong.append((f"{name} {' '.join(map(str, size))}", near))
    if len(wrong) == 1:
        raise InputError(f"{wrong[0][0]} is not a multiple of the patch ({patch} px); use {wrong[0][1]}")
    if wrong:
        cures = ", ".join(f"{given} (use {near})" for given, near in wrong)
        raise InputError(f"not multiples of the patch ({patch} px): {cures}")


def save_export(
    backbone: nn.Module,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    scans: dict[str, Any] | None = None,
    multilabel: bool = False,
) -> None:
    """Write ``backbone.safetensors`` and ``config.json`` in timm's hub format (architecture, model_args, …).

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads them, and ``timm.data.create_transform`` makes
    images of ``pretrained_cfg`` as this package does.

    Args:
        backbone: from ``load_backbone``; its classifier, if it has one, is written with it.
        label_names: the classes of that classifier, in order; unset: those it was loaded with.
        scans: what was done to scans before they became images, which timm does not know; unset: as it was loaded.
        multilabel: the ``label_names`` are labels that a scan may have together.
    """
    folder = Path(folder)
    told = backbone.hub_config
    if label_names is not None:
        told = {key: value for key, value in told.items() if key != "multilabel"}
        told |= {"label_names": list(label_names)} | ({"multilabel": True} if multilabel else {})
    config = {
        **told,
        **({"scans": scans} if scans is not None else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Weights first, each by rename: a reader never sees a config beside half a file.
    official.write_weights(backbone.state_dict(), folder / "backbone.safetensors")
    write_whole(folder / "config.json", json.dumps(config, indent=1))


def _from_timm(name: str, pretrained: bool, num_classes: int | None, args: ModelArgs, seed: int) -> nn.Module:
    _check_name(name, f"{'timm' if pretrained else 'random'}:{name}")
    config = timm.get_pretrained_cfg(name) if pretrained else None
    in_source = config.num_classes if config else 0
    num_classes = in_source if num_classes is None else num_classes
    if pretrained:
        check_reachable(name)
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
    classifier = "loaded" if loaded else fate_of_classifier(bool(in_source), bool(num_classes))
    matched = len(model.state_dict()) - (0 if loaded else len(classifier_tensors(model)))
    return _finish(
        model, name.split(".")[0], args, LoadReport(f"timm:{name}", matched, classifier=classifier, format="timm")
    )


def _check_name(name: str, source: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(name):
        close = timm.list_models(f"*{re.split(r'[._]', name)[0]}*")[:6] if name else []
        raise InputError(f"{source}: timm has no model '{name}'" + (f"; similar: {', '.join(close)}" if close else ""))


def _from_named_file(name: str, file: Path, num_classes: int | None, args: ModelArgs, seed: int) -> nn.Module:
    """A timm architecture with the weights of a file in any format that timm reads for it."""
    _check_name(name, f"timm:{name}@{file}")
    model = _create(name, 0, args, seed)
    names = model.state_dict()
    checkpoint = official.read_checkpoint(file)
    network = formats.stored_network(checkpoint, names) or formats.unwrapped(checkpoint)
    classifier = model.pretrained_cfg.get("classifier") or "head"
    layer = network.tensors.get(f"{classifier if isinstance(classifier, str) else classifier[0]}.weight")
    if num_classes is None:
        num_classes = 0 if layer is None else len(layer)
    if num_classes:
        model = _create(name, num_classes, args, seed)
    report = _load_network(model, network, name.split(".")[0], file, f"timm:{name}@{file}")
    report = replace(report, format=_format_name(checkpoint, file))
    return _finish(model, name.split(".")[0], args, report)


def _from_file(path: Path, num_classes: int | None, args: ModelArgs, heads: int | None, seed: int) -> nn.Module:
    checkpoint = official.read_checkpoint(path)
    hub_config = checkpoint.get("hub_config")  # the trainers' own checkpoints say how to rebuild their model
    if hub_config:
        full = official.is_full(checkpoint)
        tensors = official.backbone_tensors(checkpoint) if full else checkpoint.get("model", {})
        return _rebuild(hub_config, tensors, str(path), num_classes, args, seed, "teacher.backbone" if full else "")
    if huggingface.is_named(checkpoint):
        config = path.parent / "config.json"
        if not config.is_file():
            raise InputError(
                f"{path}: Hugging Face's format, of which config.json tells the heads and the norms' eps; give the "
                "folder with both"
            )
        folder = ModelFolder(path.parent, "huggingface", read_json(config), (path,))
        return _from_recognised(huggingface.open_model(folder), path, num_classes, args, heads, seed)
    return _from_recognised(recognise(checkpoint, path), path, num_classes, args, heads, seed)


def _format_name(checkpoint: official.Checkpoint, file: Path) -> str:
    """The format that a file's keys tell; timm's, whose architecture it is, where they tell none or also timm's."""
    try:
        name = recognise(checkpoint, file).format
    except InputError:
        return "timm"
    return "timm" if name.endswith(" or timm") else name


def _from_recognised(
    source: Recognised, path: Path, num_classes: int | None, args: ModelArgs, heads: int | None, seed: int
) -> nn.Module:
    """The model of a network whose architecture its tensors tell."""
    inferred = source.infer(heads, path, args)
    weight, bias = (source.network.tensors.get(f"{source.classifier}.{part}") for part in ("weight", "bias"))
    if num_classes is None:
        num_classes = len(weight) if weight is not None and weight.ndim == 2 and bias is not None else 0
    model = _create(inferred.name, num_classes, inferred.args, seed)
    if inferred.name != "vit_base_patch16_clip_224":
        model.pretrained_cfg = {**model.pretrained_cfg, **_fitting(source.images, model, args)}
    report = _load_network(model, source.network, inferred.name, path, str(path))
    report = replace(report, format=source.format, assumed=inferred.assumed)
    model = _finish(model, inferred.name, inferred.args, report)
    if source.eps is not None:
        _take_eps(model, source.eps, path)
    if report.classifier == "loaded" and len(source.label_names) == model.num_classes:
        model.hub_config["label_names"] = list(source.label_names)
    return model


def _fitting(images: ImageDescription, model: nn.Module, args: ModelArgs) -> ImageDescription:
    """Images as their source describes them; the model's own size where that is no multiple of the patch, or the user
    gave one."""
    size, patch = images.get("input_size", [])[-2:], patch_size(model)
    if size and "img_size" not in args and not any(side % patch for side in size):
        return images
    return {key: value for key, value in images.items() if key != "input_size"}


@torch.no_grad()
def _take_eps(model: nn.Module, eps: float, path: Path) -> None:
    """Give the norms the source's eps, which no argument of timm's sets, and say what it changes.

    Measured on the image feature of noise and of black and white images, 4 patches wide.

    Raises:
        InputError: an export would have other features in plain timm, by more than ``_MOST_BY_EPS`` of the largest.
    """
    norms = [norm for norm in _norms(model) if norm.eps != eps]
    if not norms:
        return
    of_timm, side = norms[0].eps, 4 * max(patch_size(model), 16)
    random = torch.Generator().manual_seed(seed_of("noise to measure norms by"))
    noise = torch.randn(1, in_channels(model), side, side, generator=random)
    images = torch.cat([noise, torch.full_like(noise, -2), torch.full_like(noise, 2)])
    with evaluating(model):
        theirs = cls_feature(model, images)
        adopt_description(model, {"norm_eps": float(eps), "pretrained_cfg": {}})
        ours = cls_feature(model, images)
    change = ((ours - theirs).abs().max() / ours.abs().max()).item()
    if not change <= _MOST_BY_EPS:
        raise InputError(
            f"{path}: eps of its norms is {eps:g}, of timm's {of_timm:g}; it changes features by {change:.0e}: refused"
        )
    words = f"eps of the norms: {eps:g}; plain timm has {of_timm:g}, which changes the features by {change:.0e}"
    model.load_report = replace(model.load_report, assumed=(*model.load_report.assumed, words))


def _load_network(
    model: nn.Module, network: formats.StoredNetwork, architecture: str, file: Path, source: str
) -> LoadReport:
    """Load a file's network, whose names are the file's, with its classifier where that fits."""
    if network.unexpected:
        raise InputError(
            f"{source}: {', '.join(network.unexpected[:3])}{', …' if len(network.unexpected) > 3 else ''} beside its "
            f"{network.prefix or 'network'} are not known: refused; write the backbone's tensors alone to a file"
        )
    tensors, left_out = formats.translate(network, model, architecture, file)
    report = load_with_classifier(model, tensors, source)
    return replace(report, taken=network.prefix, left_out=(*left_out, *network.left_out))


def _from_folder(folder: Path, num_classes: int | None, args: ModelArgs, heads: int | None, seed: int) -> nn.Module:
    content = open_folder(folder)
    if content.kind == "timm":
        return _from_hub(content, num_classes, args, seed)
    if content.kind == "huggingface":
        return _from_recognised(huggingface.open_model(content), content.path, num_classes, args, heads, seed)
    if content.kind == "weights":
        return _from_recognised(recognise(content.read(), folder), folder, num_classes, args, heads, seed)
    check_description(content.config, str(content.path / "config.json"))
    return _rebuild(content.config, content.read(), str(content.path), num_classes, args, seed)


def _from_hub(folder: ModelFolder, num_classes: int | None, args: ModelArgs, seed: int) -> nn.Module:
    """The model of a folder in timm's hub layout, whose weights timm may have to translate."""
    config = folder.config
    if "pretrained_cfg" not in config:  # as timm wrote it at first: all in one
        config = {"architecture": config["architecture"], "pretrained_cfg": config, "num_classes": 0} | {
            key: config[key] for key in ("num_classes", "model_args") if key in config
        }

    def load(model: nn.Module) -> LoadReport:
        checkpoint = folder.read()
        network = formats.stored_network(checkpoint, model.state_dict()) or formats.unwrapped(checkpoint)
        return _load_network(model, network, config["architecture"].split(".")[0], folder.path, str(folder.path))

    return _build(config, load, str(folder.path), num_classes, args, seed, "timm")


def _rebuild(
    hub_config: ModelDescription,
    tensors: official.Tensors,
    source: str,
    num_classes: int | None,
    args: ModelArgs,
    seed: int,
    taken: str = "",
) -> nn.Module:
    """The model that this package's ``hub_config`` describes, with its tensors."""

    def load(model: nn.Module) -> LoadReport:
        return replace(load_with_classifier(model, tensors, source), taken=taken)

    return _build(hub_config, load, source, num_classes, args, seed, _OWN)


def _build(
    hub_config: ModelDescription,
    load: Callable[[nn.Module], LoadReport],
    source: str,
    num_classes: int | None,
    args: ModelArgs,
    seed: int,
    format_name: str,
) -> nn.Module:
    """The model that ``hub_config`` describes, with what ``load`` puts into it."""
    hub_config = check_description(hub_config, source)
    num_classes = hub_config["num_classes"] if num_classes is None else num_classes
    args = {**hub_config["model_args"], **args}
    try:
        model = _create(hub_config["architecture"], num_classes, args, seed)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    model.pretrained_cfg = {**model.pretrained_cfg, **hub_config["pretrained_cfg"]}
    report = replace(load(model), format=format_name)
    model = _finish(model, hub_config["architecture"], args, report)
    if report.classifier != "loaded":  # then its names are not the model's
        hub_config = {key: value for key, value in hub_config.items() if key not in ("label_names", "multilabel")}
    adopt_description(model, {**hub_config, "pretrained_cfg": {}})
    return model


def _create(name: str, num_classes: int, args: ModelArgs, seed: int, pretrained: bool = False) -> nn.Module:
    """timm.create_model, random weights drawn by seed; transformers get a dynamic image size and DINO's positions."""
    check_arguments(name, args, name)
    wanted = {**_IF_KNOWN, **_own_defaults(name), **args}
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
        except Exception as error:  # whatever an architecture makes of arguments that it was not made for
            if pretrained or isinstance(error, MemoryError):
                raise  # from the hub, or of the machine
            raise InputError(f"{name} cannot be built with {args}: {error}") from None
    if type(model) is VisionTransformer:
        model.__class__ = DinoVisionTransformer
    if "img_size" in args:
        size = args["img_size"]
        rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (args.get("in_chans", 3), rows, columns)}
    return model


def _own_defaults(architecture: str) -> ModelArgs:
    """What differs from timm's defaults: DINOv3's image feature is CLS, as its authors use it."""
    return {"global_pool": "token"} if re.search(r"_dinov3(_|\.|$)", architecture.split(".")[0]) else {}


def _finish(model: nn.Module, architecture: str, args: ModelArgs, report: LoadReport) -> nn.Module:
    rebuild = {k: v for k, v in {**_own_defaults(architecture), **args}.items() if k != "drop_path_rate"}
    if isinstance(model, VisionTransformer) or hasattr(model, "dynamic_img_size"):
        rebuild["dynamic_img_size"] = True
    channels, classifier = in_channels(model), model.pretrained_cfg.get("classifier")
    config = describe_images(model.pretrained_cfg, channels, model.num_classes, classifier)
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    model.hub_config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": rebuild,
        "pretrained_cfg": config,
    }
    model.load_report = report
    return model
