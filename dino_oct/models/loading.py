"""Tensors into a model, with an account of what became of each."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import nn

from dino_oct.errors import InputError
from dino_oct.models import formats, official


@dataclass(frozen=True)
class LoadReport:
    """What a load did: tensors that matched, that the file lacked, and that the model has no place for.

    Attributes:
        classifier: "loaded", "new" (the source has none of this size), "left out" (the source has one that was not
            asked for) or "" (there is none on either side); a classifier new or left out is not counted above.
        taken: which of the file's copies, as ``teacher.backbone``; empty where the file is one.
        left_out: tensors of the file that are known by name not to belong to the backbone.
        assumed: what the file does not tell, one sentence each.
        format: name of the source's format, as its keys tell it; two, joined by " or ", where they are of both; empty
            for random weights.
    """

    source: str
    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    classifier: str = ""
    taken: str = ""
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    format: str = ""

    @property
    def counts(self) -> str:
        """All but the source, in one line."""
        if not self.matched:
            return "random weights"
        parts = [f"{self.matched} tensors loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"]
        if self.format:
            parts[0] = " or ".join(f"{name}'s" for name in self.format.split(" or ")) + f" format, {parts[0]}"
        parts[0] += f", classifier {self.classifier}" if self.classifier else ""
        if self.taken:
            parts.append(f"taken: {self.taken}")
        if self.left_out:
            groups = list(dict.fromkeys(_below(name, self.taken) for name in self.left_out))
            parts.append(f"left out: {', '.join(groups[:4])}{', …' if len(groups) > 4 else ''}")
        return "; ".join([*parts, *self.assumed])

    def __str__(self) -> str:
        return f"{self.source}: {self.counts}"


def _below(name: str, taken: str) -> str:
    """The part of a tensor's name that tells it from the copy that was taken."""
    parts, shared = name.split("."), taken.split(".")
    return next((part for i, part in enumerate(parts) if i >= len(shared) or part != shared[i]), name)


def classifier_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors of a timm model's classifier; none where it was built without."""
    classifier = model.get_classifier()
    layers = classifier if isinstance(classifier, (tuple, list)) else [classifier]  # distilled models have two
    own = {id(tensor) for layer in layers for tensor in layer.parameters()}
    return [name for name, tensor in model.named_parameters() if id(tensor) in own]


def load_into(model: nn.Module, tensors: official.Tensors, source: str, keep: Collection[str] = ()) -> LoadReport:
    """Load tensors into a model, counting.

    Args:
        keep: names of tensors that stay as they are in the model.

    Raises:
        InputError: a tensor of the model is missing, of another shape or not finite, or the model has no place for one.
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
    if unexpected:
        raise InputError(
            f"{source}: the model has no place for {len(unexpected)} of its tensors ({', '.join(unexpected[:3])}"
            f"{', …' if len(unexpected) > 3 else ''}), without which it is another network: refused; if timm knows the "
            "architecture, give timm:NAME@FILE"
        )
    if not all(tensors[name].isfinite().all() for name in wanted):
        raise InputError(f"{source}: weights that are not finite (NaN), from a run that diverged; give earlier weights")
    model.load_state_dict({name: tensors[name] for name in wanted}, strict=not keep)
    return LoadReport(source, len(wanted), missing, unexpected)


def load_with_classifier(model: nn.Module, tensors: official.Tensors, source: str) -> LoadReport:
    """Load a backbone, with its classifier if model and source have one of the same size."""
    ours = {name: model.get_parameter(name) for name in classifier_tensors(model)}
    if ours and all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in ours.items()):
        return replace(load_into(model, tensors, source), classifier="loaded")
    backbone = model.state_dict().keys() - ours.keys()
    theirs = {name for name in tensors if formats.is_classifier(name, model) and name not in backbone}
    report = load_into(model, {n: t for n, t in tensors.items() if n not in theirs}, source, keep=ours)
    return replace(report, classifier=fate_of_classifier(bool(theirs), bool(ours)))


def fate_of_classifier(in_source: bool, in_model: bool) -> str:
    """What became of a classifier that was not loaded."""
    return "new" if in_model else "left out" if in_source else ""
