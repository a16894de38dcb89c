"""Ways to continue from pretrained weights without losing what they know."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import TINY_RUN
from torch import nn

from dino_oct.config import LossConfig, ModelConfig, OptimConfig
from dino_oct.errors import InputError
from dino_oct.learner import Learner, StepValues, parameter_groups
from dino_oct.limits import check_settings
from dino_oct.loss import anchor, gram_anchor, ibot_cross_entropy
from dino_oct.masking import block_masks
from dino_oct.models.backbone import load_backbone
from dino_oct.models.head import DinoHead
from dino_oct.models.lora import adapter_state, merged_state
from dino_oct.models.network import DinoNetwork
from dino_oct.models.trainable import layer_scales

DEPTH, WIDTH, K = 3, 24, 16
VALUES = StepValues(lr=1e-2, weight_decay=0.04, teacher_momentum=0.9, teacher_temperature=0.04)


def network(loss: LossConfig | None = None) -> DinoNetwork:
    loss = loss or LossConfig()
    args = {"patch_size": 4, "img_size": 16, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
    backbone = load_backbone("random:vit_tiny_patch16_224", model_args=args)
    torch.manual_seed(0)
    heads = [DinoHead(WIDTH, K, 32, 8, init="fan_in") for _ in range(2)]
    own = heads[1] if loss.ibot_weight and loss.ibot_head == "own" else None
    return DinoNetwork(backbone, heads[0], bool(loss.ibot_weight), own)


def learner(loss: LossConfig | None = None, model: ModelConfig | None = None, optim: OptimConfig | None = None):
    loss = loss or LossConfig()
    return Learner(network(loss), loss, optim or OptimConfig(clip_grad=0), Accelerator(cpu=True), model=model)


def views(seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    sizes = ((2, 3, 3, 16, 16), (3, 3, 3, 8, 8))
    return [torch.randn(size, generator=random) for size in sizes]


def masks(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(block_masks((4, 4), [0, 1, 2], 0, seed, 0.7, (0.2, 0.6)))


def changed(before: dict, after: dict) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- layer-wise decay ------------------------------------------------------------------------------------------------
def test_each_block_learns_slower_than_the_one_behind_it():
    backbone = network().backbone
    scales = layer_scales(backbone, 0.5)
    assert scales.keys() == dict(backbone.named_parameters()).keys()
    assert scales["norm.weight"] == scales["norm.bias"] == 1.0
    of_blocks = [scales[f"blocks.{i}.attn.qkv.weight"] for i in range(DEPTH)]
    assert of_blocks == [0.25, 0.5, 1.0]
    assert scales["patch_embed.proj.weight"] == scales["cls_token"] == scales["pos_embed"] == 0.125


def test_the_optimiser_takes_these_rates_and_heads_the_full_one():
    taught = learner(optim=OptimConfig(layer_decay=0.5, clip_grad=0))
    taught.step([views()], VALUES)
    rate = {id(p): g["lr"] for g in taught.optimizer.param_groups for p in g["params"]}
    named = dict(taught.student.named_parameters())
    assert rate[id(named["head.mlp.0.weight"])] == VALUES.lr
    assert rate[id(named["backbone.blocks.0.attn.qkv.weight"])] == VALUES.lr / 4
    decay = {id(p): g["weight_decay"] for g in taught.optimizer.param_groups for p in g["params"]}
    assert decay[id(named["backbone.blocks.0.attn.qkv.weight"])] == VALUES.weight_decay
    assert decay[id(named["backbone.blocks.0.norm1.weight"])] == 0
    of_all = [p for g in parameter_groups(taught.student, 0.5) for p in g.parameters]
    assert len(of_all) == len({id(p) for p in of_all}) == sum(p.requires_grad for p in taught.student.parameters())


# ---- last blocks -----------------------------------------------------------------------------------------------------
def test_only_the_last_blocks_learn():
    taught = learner(model=ModelConfig(train_blocks=1))
    before = copy_of(taught.student.backbone)
    taught.step([views()], VALUES)
    moved = changed(before, taught.student.backbone.state_dict())
    assert moved
    assert all(name.startswith((f"blocks.{DEPTH - 1}.", "norm.")) for name in moved)


def test_more_blocks_than_there_are_is_one_line():
    with pytest.raises(InputError, match="4 last blocks: the model has 3"):
        learner(model=ModelConfig(train_blocks=DEPTH + 1))


# ---- LoRA ------------------------------------------------------------------------------------------------------------
def test_adapters_start_as_the_network_and_the_teacher_follows_their_sums():
    pytest.importorskip("peft")
    taught = learner(model=ModelConfig(lora_rank=2))
    plain = copy_of(taught.teacher)
    merged = merged_state(taught.student)
    assert merged.keys() == plain.keys()
    assert not changed(plain, merged)
    base = {n: t.clone() for n, t in adapter_state(taught.student).items() if ".base_layer." in n}
    for seed in range(3):
        taught.step([views(seed)], VALUES)
    assert not changed(base, adapter_state(taught.student))
    merged = merged_state(taught.student)
    moved = {n for n in changed(plain, merged) if n.startswith("backbone.")}
    assert moved == {f"backbone.blocks.{i}.attn.{part}.weight" for i in range(DEPTH) for part in ("qkv", "proj")}
    # An ordinary network with the sums gives what the adapted one gives, and the teacher moved towards them.
    twin = network()
    twin.load_state_dict(merged)
    taught.student.eval()
    torch.testing.assert_close(twin.eval()(views()).logits, taught.student(views()).logits)
    name = "backbone.blocks.0.attn.qkv.weight"
    toward = (taught.teacher.state_dict()[name] - plain[name]) * (merged[name] - plain[name])
    assert toward.sum() > 0


def test_adapters_or_blocks():
    with pytest.raises(InputError, match=r"lora-rank 4: give it or train_blocks"):
        check_settings(ModelConfig(lora_rank=4, train_blocks=2), "model.")


# ---- anchors ---------------------------------------------------------------------------------------------------------
def test_anchors_are_zero_at_the_start_and_known_elsewhere():
    features = torch.randn(5, 8)
    assert anchor(features, 3 * features).item() == pytest.approx(0, abs=1e-6)
    assert anchor(features, -features).item() == pytest.approx(2, abs=1e-6)
    patches = torch.randn(2, 6, 8)
    turned = patches @ torch.linalg.qr(torch.randn(8, 8))[0]
    assert gram_anchor(patches, turned).item() == pytest.approx(0, abs=1e-6)  # similarities do not turn
    one = torch.zeros(1, 2, 2)
    one[0, :, 0] = 1  # two equal patches, against two at right angles: 2 of 4 similarities differ by 1
    assert gram_anchor(one, torch.eye(2)[None]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("term", ["anchor", "gram"])
def test_an_anchor_keeps_the_student_closer(term):
    def distance(weight: float) -> float:
        taught = learner(LossConfig(**{f"{term}_weight": weight or 1e-9}))
        for seed in range(6):
            metrics = taught.step([views(seed)], VALUES)
        return metrics[term]

    assert distance(20.0) < 0.7 * distance(0.0)


def test_the_anchor_itself_never_moves():
    taught = learner(LossConfig(anchor_weight=1.0))
    before = copy_of(taught.start)
    taught.step([views()], VALUES)
    assert not changed(before, taught.start.state_dict())
    assert changed(before, taught.teacher.backbone.state_dict())


# ---- iBOT ------------------------------------------------------------------------------------------------------------
def test_masks_hide_blocks_of_the_share_that_was_asked_for():
    hidden = block_masks((14, 10), list(range(200)), 3, 1, 0.5, (0.1, 0.5))
    assert hidden.shape == (2, 200, 14, 10)
    shares = hidden.mean(axis=(2, 3)).ravel()
    assert 0.4 < (shares > 0).mean() < 0.6
    of_masked = shares[shares > 0]
    assert of_masked.min() > 0.09
    assert of_masked.max() < 0.51
    assert 0.25 < of_masked.mean() < 0.35
    beside = (hidden[..., 1:] & hidden[..., :-1]).sum() / hidden[..., 1:].sum()
    assert beside > 0.6  # blocks, not single patches: those would have a hidden neighbour in 30 % of cases


def test_masks_depend_on_the_scan_and_not_on_its_batch():
    together = block_masks((8, 8), [3, 4, 5], 2, 0, 0.9, (0.1, 0.5))
    alone = block_masks((8, 8), [4], 2, 0, 0.9, (0.1, 0.5))
    assert np.array_equal(together[:, [1]], alone)
    assert not np.array_equal(alone, block_masks((8, 8), [4], 3, 0, 0.9, (0.1, 0.5)))


def test_the_ibot_term_equals_the_loop_over_patches():
    torch.manual_seed(0)
    hidden = masks()
    count = int(hidden.sum())
    student, teacher = torch.randn(count, K), torch.randn(count, K).softmax(-1)
    total, position = 0.0, 0
    for view in hidden.flatten(0, 1):
        of_view = []
        for _ in range(int(view.sum())):
            log_p = (student[position] / 0.1).log_softmax(-1)
            of_view.append(-sum(teacher[position][k] * log_p[k] for k in range(K)))
            position += 1
        total += sum(of_view) / len(of_view) if of_view else 0
    expected = float(total) / len(hidden.flatten(0, 1))
    assert ibot_cross_entropy(student, teacher, hidden, 0.1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
@pytest.mark.parametrize("head", ["shared", "own"])
def test_the_ibot_loss_of_a_step_is_that_of_an_independent_computation(head, centering):
    """Written from the paper: patches put in by hand, every view by itself, softmax of the teacher's patches."""
    loss = LossConfig(ibot_weight=2.0, ibot_head=head, centering=centering)
    taught, hidden = learner(loss), masks()
    student, teacher = taught.student, taught.teacher
    with torch.no_grad():
        student.mask_token.normal_()
        if taught.patch_targets is not None:
            taught.patch_targets.center.normal_()
    patch_head = {"shared": "head", "own": "patch_head"}[head]

    def patches(net, images, of_view=None):
        backbone = net.backbone
        tokens = backbone.patch_embed(images)
        if of_view is not None:
            tokens = tokens.clone()
            tokens[of_view] = net.mask_token
        x = backbone._pos_embed(tokens)
        for block in backbone.blocks:
            x = block(x)
        return backbone.norm(x)

    groups = views()
    answers, targets, cls = [], [], []
    with torch.no_grad():
        for v in range(2):
            seen = patches(teacher, groups[0][v])[:, 1:][hidden[v].flatten(1)]
            targets.append(getattr(teacher, patch_head)(seen))
            out = patches(student, groups[0][v], hidden[v])
            answers.append(getattr(student, patch_head)(out[:, 1:][hidden[v].flatten(1)]))
            cls.append(student.head(out[:, 0]))
    logits, student_logits = torch.cat(targets), torch.cat(answers)
    if centering == "center":
        p = ((logits - taught.patch_targets.center) / VALUES.teacher_temperature).softmax(-1)
    else:
        p = (logits.double() / VALUES.teacher_temperature).exp()
        for _ in range(3):
            p = p / p.sum(0, keepdim=True)
            p = p / p.sum(1, keepdim=True)
    of_patch = -(p * F.log_softmax(student_logits / 0.1, -1)).sum(-1)
    views_of = torch.cat([torch.full((int(m.sum()),), i) for i, m in enumerate(hidden.flatten(0, 1))])
    of_views = [float(of_patch[views_of == i].mean()) for i in views_of.unique().tolist()]
    expected = sum(of_views) / len(hidden.flatten(0, 1))
    metrics = taught.step([groups], VALUES, [hidden])
    assert metrics["ibot_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["loss"] == pytest.approx(metrics["dino_loss"] + 2 * metrics["ibot_loss"], rel=1e-6)


def test_what_is_hidden_is_not_seen_by_the_student_and_seen_by_the_teacher():
    net = network(LossConfig(ibot_weight=1.0)).eval()
    hidden = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    hidden[:, :, 1, 2] = True
    groups = views()
    other = [groups[0].clone(), groups[1]]
    other[0][..., 4:8, 8:12] += 1  # the hidden patch alone
    with torch.no_grad():
        assert torch.equal(net(groups, hidden).logits, net(other, hidden).logits)
        assert not torch.equal(net(groups, hidden, hide=False).logits[:2], net(other, hidden, hide=False).logits[:2])


def test_two_micro_batches_and_one_without_masks_count_as_one():
    loss = LossConfig(ibot_weight=1.0)
    hidden = masks()
    hidden[:, 2] = False
    whole = learner(loss).step([views()], VALUES, [hidden])
    parts = [[group[:, :2] for group in views()], [group[:, 2:] for group in views()]]
    taught = learner(loss)
    divided = taught.step(parts, VALUES, [hidden[:, :2], hidden[:, 2:]])
    assert math.isfinite(divided["ibot_loss"])
    equal = learner(loss).step([[g[:, :1] for g in views()], [g[:, 1:2] for g in views()]], VALUES,
                               [hidden[:, :1], hidden[:, 1:2]])  # fmt: skip
    both = learner(loss).step([[g[:, :2] for g in views()]], VALUES, [hidden[:, :2]])
    assert equal["ibot_loss"] == pytest.approx(both["ibot_loss"], rel=1e-5)
    assert whole["loss"] > 0


# ---- the command -----------------------------------------------------------------------------------------------------
WAYS = {
    "decay": ["--optim.layer-decay", "0.7"],
    "blocks": ["--model.train-blocks", "1"],
    "lora": ["--model.lora-rank", "2"],
    "anchors": ["--loss.anchor-weight", "1", "--loss.gram-weight", "1"],
    "ibot": ["--loss.ibot-weight", "1", "--loss.ibot-head", "own"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_resumes_as_if_it_had_never_stopped(call, tmp_path, way):
    """The first half, then the rest, against both at once: same losses and weights to the last bit."""
    if way == "lora":
        pytest.importorskip("peft")
    settings = [*TINY_RUN, *WAYS[way], "--run.log-every", "1", "--run.keep-every", "4"]
    whole = call("dino_oct/train.py", *settings, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    half = tmp_path / "whole" / "checkpoints" / "step_0000004.pt"
    rest = call("dino_oct/train.py", *settings, "--out", tmp_path / "rest", "--resume", half)
    assert rest.returncode == 0, rest.stderr

    def losses(run):
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line and line["step"] > 4}

    assert losses("whole") == losses("rest")
    assert losses("rest")
    first, second = (
        torch.load(tmp_path / run / "checkpoints" / "last.pt", weights_only=True) for run in ("whole", "rest")
    )
    assert not changed(first["student"], second["student"])
    # The export is an ordinary network, whatever the way.
    backbone = load_backbone(str(tmp_path / "whole"))
    assert backbone.load_report.missing == ()
    assert not any("lora" in name for name in backbone.state_dict())


def test_the_ibot_term_needs_a_transformer(call, tmp_path):
    finished = call("dino_oct/train.py", *TINY_RUN, "--init", "random:resnet18", "--loss.ibot-weight", "1",
                    "--out", tmp_path / "run")  # fmt: skip
    assert finished.returncode == 2
    assert "\n" not in finished.stderr.strip()
