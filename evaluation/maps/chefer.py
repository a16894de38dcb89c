"""Which patches a transformer's logit rests on: relevance maps, without rewritten model classes.

Three methods of one shape. With E of a block a matrix (N, N) over its tokens, the map is the CLS row of the product of
I + E over the blocks, the last on the left (Chefer, Gur, Wolf):

    gradient   E = mean over heads of (∂y/∂A ⊙ A)⁺      ICCV 2021, arXiv 2103.15679
    lrp        E = mean over heads of (∂y/∂A ⊙ R_A)⁺    CVPR 2021, arXiv 2012.09838; R_A is A's share of the relevance
    rollout    E = mean over heads of A, rows of I + E normalised; the same for every class (Abnar & Zuidema 2020)

Only that row is carried, as a vector from the last block down, and attention matrices are recomputed from queries and
keys head by head. Fused attention stays on: its inputs and outputs are read where they pass, which holds for any block
(norms of queries and keys, rotary positions), and ∂y/∂A is the gradient at its output times the values.

Maps are of tokens. Where a stem normalises over the whole image (GroupNorm of hybrid models), evidence in one place
changes all tokens before attention, and a map may rightly point to other ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Mlp
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dino_oct.errors import InputError
from dino_oct.models.backbone import check_size, patch_size
from dino_oct.models.network import evaluating
from evaluation.config import RelevanceMethod

PATENT_NOTICE = "LRP-based relevance (method lrp) is subject to patents; check what your use of it needs"


def relevance(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | Sequence[int] | None,
    method: RelevanceMethod = "gradient",
    start_layer: int = 0,
) -> Tensor:
    """Relevance of every patch for one class of each image. The map of an image does not depend on its batch.

    Args:
        model: a timm vision transformer (ViT, DeiT, DINO, DINOv2; DINOv3 without lrp) with a classifier; in whatever
            mode it is, it runs in evaluation mode.
        images: (B, C, H, W) normalised, H and W multiples of the patch.
        targets: (B,) class indices; rollout needs neither these nor a classifier.
        method: see the module.
        start_layer: the lowest block that is followed, from 0.

    Returns:
        (B, rows, columns) float32 ≥ 0, not normalised. Where the model averages patches instead of reading CLS, the row
        is the mean of the patches' rows, less their identity.

    Raises:
        InputError: as ``check_model``; or an image size, class or layer that the model does not have.
    """
    check_model(model, method)
    _check_input(model, images, targets, method, start_layer)
    passes = _run(model, images, targets, method, start_layer)
    with torch.no_grad():
        row = _rollout(passes) if method == "rollout" else _follow(passes, method)
    patches = row[:, model.num_prefix_tokens :].float()
    return rearrange(patches, "b (rows columns) -> b rows columns", rows=images.shape[-2] // patch_size(model))


def check_model(model: nn.Module, method: RelevanceMethod) -> None:
    """Raise InputError unless the method can explain the model; the message names another way."""
    kind = type(model).__name__
    if not isinstance(model, (VisionTransformer, Eva)):
        raise InputError(f"{kind} is not a plain vision transformer, which relevance needs; use dino-oct gradcam")
    if getattr(model, "attn_pool", None) is not None or model.global_pool not in ("token", "avg"):
        raise InputError(f"{kind} pools its tokens by '{model.global_pool}': relevance knows 'token' and 'avg' only")
    if method == "rollout":
        return
    if not all(isinstance(head, nn.Linear) for head in _heads(model)):
        raise InputError(
            "the model has no classifier, so no class to explain: give a supervised run, or a linear probe on the "
            "backbone (--classifier probe), or use rollout, which needs none"
        )
    if method == "lrp":
        for block in model.blocks:
            attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
            plain = type(block) is Block and type(attn) is Attention and type(mlp) is Mlp
            if not plain or attn.gate is not None or not isinstance(mlp.fc1, nn.Linear):
                raise InputError(f"lrp has no rules for the blocks of this {kind}; use --method gradient")


def _check_input(
    model: nn.Module, images: Tensor, targets: Tensor | Sequence[int] | None, method: RelevanceMethod, start_layer: int
) -> None:
    size = tuple(images.shape[-2:])
    check_size(size, model, "image size")
    embed = model.patch_embed
    if getattr(embed, "strict_img_size", False) and size != tuple(embed.img_size):
        own = " ".join(map(str, embed.img_size))
        raise InputError(f"image size {size[0]} {size[1]}: this model was built for {own} only")
    if not 0 <= start_layer < len(model.blocks):
        raise InputError(f"start layer {start_layer}: the model has {len(model.blocks)} blocks, counted from 0")
    if method == "rollout":
        return
    if targets is None or len(targets) != len(images):
        given = "no" if targets is None else len(targets)
        raise InputError(f"{given} classes for {len(images)} images: give one class index for each")
    wrong = [int(target) for target in targets if not 0 <= int(target) < model.num_classes]
    if wrong:
        raise InputError(f"class {wrong[0]}: the model has classes 0 to {model.num_classes - 1}")


@dataclass
class _Attention:
    """What one fused attention took and gave, (B, heads, N, d) each, and the gradient of the score at its output."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    scale: float
    gradient: Tensor | None = None

    @property
    def heads(self) -> range:
        return range(self.q.shape[1])

    def weights(self, head: int) -> Tensor:
        """A of a head, (B, N, N)."""
        return (self.q[:, head] @ self.k[:, head].mT).mul_(self.scale).softmax(dim=-1)

    def gradient_at_weights(self, head: int) -> Tensor:
        """∂y/∂A of a head, (B, N, N)."""
        return self.gradient[:, head] @ self.v[:, head].mT


class _Watch(TorchFunctionMode):
    """Keeps what passes through fused attention, call by call.

    Args:
        plain_values: give the values of PyTorch's plain kernel, with the fused kernel's gradients. lrp divides by sums
            near 0, so that a fused kernel's rounding alone moves its maps by 1e-4.
    """

    def __init__(self, plain_values: bool):
        super().__init__()
        self.plain_values = plain_values
        self.calls: list[_Attention] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            if self.plain_values:
                with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                    correction = function(*args, **kwargs) - result
                result = result + correction
            q, k, v = args[:3]
            self.calls.append(_Attention(q.detach(), k.detach(), v.detach(), result, q.shape[-1] ** -0.5))
        return result


@dataclass
class _Passes:
    """One forward and backward pass: attention of the followed blocks, upwards, and what lrp reads on its way down.

    Attributes:
        start: (B, N) weights of the tokens that the classifier reads, of sum 1.
        passed: module → its input and output.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    attentions: list[_Attention]
    start: Tensor
    passed: dict[nn.Module, tuple[Tensor, Tensor]]
    one_hot: Tensor | None


def _run(
    model: nn.Module, images: Tensor, targets: Tensor | Sequence[int] | None, method: RelevanceMethod, start_layer: int
) -> _Passes:
    """Pass the images through the model, and the targets' logits back to every attention output that is followed."""
    passed: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def begin_graph(block, args):
        # Below this nothing is differentiated, so nothing is kept for it.
        return args[0].detach().requires_grad_(), *args[1:]

    def keep(module, args, output):
        passed[module] = (args[0].detach(), output.detach())

    # Weights without gradients: the graph then leads to attention outputs alone and keeps no inputs for weights.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    watch, explained = _Watch(plain_values=method == "lrp"), method != "rollout"
    with ExitStack() as hooks, evaluating(model), watch, torch.set_grad_enabled(explained):
        if explained:
            hooks.callback(model.blocks[start_layer].register_forward_pre_hook(begin_graph).remove)
        for module in _needed_for_lrp(model, start_layer) if method == "lrp" else ():
            hooks.callback(module.register_forward_hook(keep).remove)
        logits = functional_call(model, weights, (images,))
    attentions = watch.calls[start_layer:]
    if len(watch.calls) != len(model.blocks):
        raise InputError(
            f"{type(model).__name__} called fused attention {len(watch.calls)} times in {len(model.blocks)} blocks, "
            "not once in each: unset TIMM_FUSED_ATTN, or take a plain vision transformer"
        )
    read = _tokens_read(model, attentions[0].q)
    start = read.mean(dim=0).expand(len(images), -1)
    one_hot = None
    if explained:
        index = torch.as_tensor(targets, device=logits.device, dtype=torch.long)
        one_hot = F.one_hot(index, logits.shape[1]).to(logits.dtype)
        gradients = torch.autograd.grad((logits * one_hot).sum(), [attention.out for attention in attentions])
        for attention, gradient in zip(attentions, gradients, strict=True):
            attention.out, attention.gradient = attention.out.detach(), gradient
    return _Passes(model, model.blocks[start_layer:], attentions, start, passed, one_hot)


def _heads(model: nn.Module) -> list[nn.Module]:
    """The classifiers, whose logits the model averages: one, or two in distilled models."""
    return [model.head, model.head_dist] if isinstance(model, VisionTransformerDistilled) else [model.head]


def _tokens_read(model: nn.Module, tokens: Tensor) -> Tensor:
    """Weights of tokens (…, N, D) that each classifier reads, (heads, N), of sum 1: its own token, or mean patches."""
    n_tokens, like = tokens.shape[-2], {"dtype": tokens.dtype, "device": tokens.device}
    if model.global_pool == "token":
        return torch.eye(len(_heads(model)), n_tokens, **like)
    weights = torch.ones(1, n_tokens, **like)
    if not getattr(model, "pool_include_prefix", False):
        weights[:, : model.num_prefix_tokens] = 0
    return weights / weights.sum()


def _rollout(passes: _Passes) -> Tensor:
    """The starting row through every block's mean attention, half of it past each by the residual: (B, N)."""
    row = passes.start
    for attention in reversed(passes.attentions):
        # Rows of A sum to 1, so those of I + A sum to 2.
        row = (row + _step(row, map(attention.weights, attention.heads))) / 2
    return row


def _follow(passes: _Passes, method: RelevanceMethod) -> Tensor:
    """start · (the product of I + E over the blocks − I), (B, N): without the identity, which favours no patch."""
    gained = torch.zeros_like(passes.start)
    lrp = _Lrp(passes) if method == "lrp" else None
    for block, attention in reversed(list(zip(passes.blocks, passes.attentions, strict=True))):
        factors = lrp.down(block, attention) if lrp else map(attention.weights, attention.heads)
        gradients = map(attention.gradient_at_weights, attention.heads)
        edges = (gradient.mul_(factor).clamp_(min=0) for factor, gradient in zip(factors, gradients, strict=True))
        gained = gained + _step(passes.start + gained, edges)
    return gained


def _step(row: Tensor, edges: Iterable[Tensor]) -> Tensor:
    """row · E, (B, N), E the mean of edges (B, N, N) over heads."""
    steps = [torch.einsum("bi,bij->bj", row, edge) for edge in edges]
    return torch.stack(steps).mean(dim=0)


class _Lrp:
    """Relevance of one class on its way from its logit down to attention (Chefer et al. 2021, CVPR, section 3.1).

    Every rule keeps samples apart. Normalisations, activations, dropout, LayerScale and softmax pass relevance on.
    """

    def __init__(self, passes: _Passes):
        self.passed = passes.passed
        model, heads = passes.model, _heads(passes.model)
        tokens = self.passed[model.norm][1]  # (B, N, D)
        # The heads' logits are averaged: one linear layer over their inputs together.
        inputs = torch.cat([self.passed[head][0] for head in heads], dim=-1)
        weight = torch.cat([head.weight for head in heads], dim=-1)
        vectors = _through_linear(inputs, weight, passes.one_hot).chunk(len(heads), dim=-1)
        self.relevance = torch.zeros_like(tokens)  # (B, N, D), of the tokens where the walk stands
        read = _tokens_read(model, tokens)
        for vector, weights in zip(vectors, read, strict=True):
            shares = tokens * weights[:, None]
            self.relevance += shares * _divide(vector, shares.sum(dim=1))[:, None]

    def down(self, block: Block, attention: _Attention) -> Iterator[Tensor]:
        """From the block's output to its input; yields the relevance of its attention, (B, N, N), head by head."""
        past, branch = self._split(block.norm2, block.drop_path2, self.relevance)
        branch = self._linear(block.mlp.fc1, self._linear(block.mlp.fc2, branch))
        past, branch = self._split(block.norm1, block.drop_path1, past + branch)
        heads = len(attention.heads)
        at_output = rearrange(self._linear(block.attn.proj, branch), "b n (heads d) -> b heads n d", heads=heads)
        parts = []
        for head in attention.heads:
            q, k, v = attention.q[:, head], attention.k[:, head], attention.v[:, head]
            weights = attention.weights(head)
            # A product gives each operand half.
            per_output = _divide(at_output[:, head], attention.out[:, head]) / 2
            of_v = v * (weights.mT @ per_output)
            of_weights = weights * (per_output @ v.mT)
            yield of_weights
            per_logit = _divide(of_weights, q @ k.mT) / 2
            parts.append(torch.stack([q * (per_logit @ k), k * (per_logit.mT @ q), of_v]))
        of_qkv = rearrange(torch.stack(parts), "heads qkv b n d -> b n (qkv heads d)")
        self.relevance = past + self._linear(block.attn.qkv, of_qkv)

    def _split(self, norm: nn.Module, branch_end: nn.Module, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance of a residual sum to what went past the branch, the input of its norm, and to the branch."""
        return _through_sum(self.passed[norm][0], self.passed[branch_end][1], relevance)

    def _linear(self, layer: nn.Linear, relevance: Tensor) -> Tensor:
        return _through_linear(self.passed[layer][0], layer.weight, relevance)


def _needed_for_lrp(model: nn.Module, start_layer: int) -> Iterator[nn.Module]:
    yield from (model.norm, *_heads(model))
    for block in model.blocks[start_layer:]:
        yield from (block.norm1, block.attn.qkv, block.attn.proj, block.drop_path1)
        yield from (block.norm2, block.mlp.fc1, block.mlp.fc2, block.drop_path2)


def _through_linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of a linear layer's input (…, in): shares of x⁺w⁺ + x⁻w⁻ in their sum; the bias takes none."""
    positive, negative = x.clamp(min=0), x.clamp(max=0)
    w_positive, w_negative = weight.clamp(min=0), weight.clamp(max=0)
    ratio = _divide(relevance, positive @ w_positive.mT + negative @ w_negative.mT)
    return positive * (ratio @ w_positive) + negative * (ratio @ w_negative)


def _through_sum(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of two summands (B, N, D): elementwise shares, their totals brought to |Σa| : |Σb| of the sample."""
    ratio = _divide(relevance, a + b)
    a, b = a * ratio, b * ratio
    sums = torch.stack([part.sum(dim=(1, 2)) for part in (a, b)])  # (2, B)
    wanted = sums.abs() / sums.abs().sum(dim=0) * relevance.sum(dim=(1, 2))
    scale_a, scale_b = _divide(wanted, sums)
    return a * scale_a[:, None, None], b * scale_b[:, None, None]


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0; never by less than 1e-9."""
    small = denominator.abs() < 1e-9
    safe = torch.where(small, torch.copysign(torch.full_like(denominator, 1e-9), denominator), denominator)
    return torch.where(denominator == 0, 0, numerator / safe)
