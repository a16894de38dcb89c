"""The blocks over all views at once, and attention by products, give what timm's own code gives."""

import copy

import pytest
import torch

from dino_oct.learner import Learner
from dino_oct.models.attention import cls_attention
from dino_oct.models.backbone import load_backbone
from dino_oct.models.packed import StochasticDepth, can_pack, open_rates, packed_block, packed_features
from dino_oct.models.plain_attention import PlainAttention, use_plain_attention

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
KINDS = {
    "DINO": ("vit_tiny_patch16_224", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {"init_values": 0.5}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.5}),
    "normalised queries": ("vit_tiny_patch16_224", {"qk_norm": True, "norm_layer": "layernorm"}),
}


def backbone(kind, drop_path=0.0):
    name, args = KINDS[kind]
    return load_backbone(f"random:{name}", model_args={**TINY, **args}, drop_path=drop_path)


def groups():
    torch.manual_seed(0)
    return [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_tokens_and_gradients_are_those_of_each_group_alone(kind, recomputes):
    apart = backbone(kind)
    together = copy.deepcopy(apart)
    together.set_grad_checkpointing(recomputes)
    assert can_pack(together)
    tokens = [apart.forward_features(x) for x in groups()]
    calls = []
    packed = packed_features(together, groups(), lambda *args: calls.append(0) or packed_block(*args))
    for a, b in zip(tokens, packed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for parts in (tokens, packed):
        sum(part.square().mean() for part in parts).backward()
    assert len(calls) == len(together.blocks) * (1 + recomputes)
    for (name, a), b in zip(apart.named_parameters(), together.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_by_products_is_timms(kind):
    timms = backbone(kind).eval()
    plain = copy.deepcopy(timms)
    use_plain_attention(plain)
    assert all(type(block.attn) is PlainAttention for block in plain.blocks)
    assert can_pack(plain)
    for x in groups():
        torch.testing.assert_close(plain.forward_features(x), timms.forward_features(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cls_attention(plain, x), cls_attention(timms, x), rtol=1e-4, atol=1e-6)
    masked = torch.zeros(1, 1, 17, 17)
    masked[..., 3] = -1e9
    x = torch.randn(2, 17, 32)
    expected = timms.blocks[0].attn(x, attn_mask=masked)
    torch.testing.assert_close(plain.blocks[0].attn(x, attn_mask=masked), expected, rtol=1e-4, atol=1e-5)


def test_whole_views_drop_out_at_their_rate():
    """A block's branch is either as it is, divided by the share that stays, or absent; the same for all its tokens."""
    network = backbone("DINO", drop_path=0.6).train()
    open_rates(network)
    layer = network.blocks[-1].drop_path1
    assert isinstance(layer, StochasticDepth)
    torch.manual_seed(0)
    kept = layer(torch.ones(4000, 5, 2))
    assert (kept == kept[:, :1, :1]).all()
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.4)]
    assert kept.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(layer.eval()(kept), kept)
    assert "keep" not in "".join(network.state_dict())  # a checkpoint has timm's names


def test_what_is_no_plain_transformer_is_not_packed():
    assert not can_pack(load_backbone("random:resnet18"))
    assert not can_pack(load_backbone("random:vit_small_patch16_dinov3", model_args={"depth": 2, "img_size": 32}))


def test_evaluations_between_compiled_steps_are_not_compiled(record, reference_views):
    from reference_run import learner_and_schedules

    learner, schedules = learner_and_schedules(record["config"])
    assert isinstance(learner, Learner)
    learner.compile(backend="eager")
    learner.step([reference_views[0]], schedules[0])
    assert learner.student.packs is None
    assert learner.teacher.packs is None
