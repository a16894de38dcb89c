"""Every random stream has its purpose in its key, so that a user's seed never gives two things the same numbers."""

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_oct.models.backbone import load_backbone, save_export
from dino_oct.networks import build_networks
from dino_oct.streams import generator, seed_of, short_seed_of
from evaluation.inputs.model import open_model, random_control
from evaluation.inputs.sources import Source
from evaluation.maps.randomisation import fresh_weights

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = {"seed_of", "short_seed_of", "generator"}
SEEDING = {"manual_seed", "manual_seed_all", "default_rng", "SeedSequence", "Philox", "PCG64", "RandomState", "Random"}
SEEDED = {"RandomSampler", "TPESampler", "FanovaImportanceEvaluator"}  # of other libraries, by an argument ``seed``
# Pictures of phantoms must not change; their generator names its purpose in a spawn key of its own.
APART = {"dino_oct/streams.py", "dino_oct/data/phantom_draw.py"}


def calls():
    for package in ("dino_oct", "evaluation", "supervised"):
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            name = file.relative_to(REPOSITORY).as_posix()
            if name not in APART:
                tree = ast.parse(file.read_text())
                yield from ((name, tree, node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_keyed(value: ast.expr, tree: ast.Module) -> bool:
    """Whether a value is made by ``seed_of`` or its short form, directly or by a variable."""
    if isinstance(value, ast.Name):
        made = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and _assigns(node, value.id)]
        return bool(made) and all(is_keyed(value, tree) for value in made)
    return isinstance(value, ast.Call) and called(value) in OURS


def _assigns(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def bare(name: str, tree: ast.Module, node: ast.Call) -> bool:
    """Whether a call seeds something by anything else than a stream's key."""
    given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg in ("seed", "key"))]
    if called(node) in SEEDING | SEEDED:
        return not given or not all(is_keyed(value, tree) for value in given)
    return any(not is_keyed(keyword.value, tree) for keyword in node.keywords if keyword.arg == "random_state")


def test_no_seed_is_used_bare():
    assert [f"{name}:{node.lineno}" for name, tree, node in calls() if bare(name, tree, node)] == []


def test_bare_uses_are_found():
    """The check itself: each of these would be one."""
    for text in ("np.random.default_rng(seed)", "torch.manual_seed(seed + 1)", "KFold(5, random_state=seed)",
                 "Philox(key=[seed, epoch])", "RandomSampler(seed=0)", "random.Random(3)"):  # fmt: skip
        tree = ast.parse(text)
        assert bare("", tree, tree.body[0].value), text
    tree = ast.parse("own = seed_of('x', seed)\ntorch.manual_seed(own)")
    assert not bare("", tree, tree.body[1].value)


def test_no_two_streams_have_the_same_purpose():
    purposes = [node.args[0] for _, _, node in calls() if called(node) in OURS and node.args]
    assert len(purposes) > 20
    assert all(isinstance(purpose, (ast.Constant, ast.JoinedStr)) for purpose in purposes)
    counts = Counter(ast.unparse(purpose) for purpose in purposes)
    assert [purpose for purpose, count in counts.items() if count > 1] == []


def test_seeds_differ_with_purpose_and_every_number():
    keys = [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("a", 0, 0),
        ("a", 0, 1),
        ("a", 1, 0),
        ("a", 10),
        ("a1", 0),
        ("a",),
        ("a", -1),
    ]
    seeds = [seed_of(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seed_of("a", np.int64(1)) == seed_of("a", 1)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seed_of("x", i) for i in range(100)) > 2**63  # all 64 bits are used
    assert all(0 <= short_seed_of("x", i) < 2**32 for i in range(100))
    assert seed_of("weights", 0) == 13166967591293718111  # the same on every machine and in every version
    torch.manual_seed(max(seeds))
    assert (generator("a", 0).random(3) != generator("b", 0).random(3)).all()
    np.testing.assert_array_equal(generator("a", 0).random(3), generator("a", 0).random(3))


TINY = {"patch_size": 8, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = "random:vit_tiny_patch16_224"


@pytest.mark.parametrize("seed", [0, 1])
def test_start_control_and_randomised_weights_are_three_networks(seed, tmp_path):
    """With one seed the randomisation test would give a run the weights it started from, and find nothing changed."""
    start = load_backbone(VIT, model_args=TINY, seed=seed)
    save_export(start, tmp_path / "start")
    model = open_model(Source(str(tmp_path / "start")))
    control = random_control(model, seed).model.state_dict()
    randomised = fresh_weights(model.model, seed)
    networks = [start.state_dict(), control, randomised]
    for i, network in enumerate(networks):
        for other in networks[:i]:
            for name in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.weight"):
                correlation = np.corrcoef(network[name].flatten().numpy(), other[name].flatten().numpy())[0, 1]
                assert abs(correlation) < 0.1, name


def test_the_head_does_not_repeat_the_backbone_of_the_next_seed():
    from dino_oct.config import LossConfig, ModelConfig

    config = ModelConfig(args=[f"{name}={value}" for name, value in TINY.items()], out_dim=64, hidden_dim=32)
    config.bottleneck_dim, config.init = 32, "fan_in"
    built = [build_networks(VIT, config, LossConfig(), seed, None, lambda text: None).student for seed in (0, 1)]
    head, backbone = (w.detach() for w in (built[0].head.mlp[0].weight, built[1].backbone.blocks[0].attn.proj.weight))
    assert head.shape == backbone.shape
    assert abs(float(torch.corrcoef(torch.stack([head.flatten(), backbone.flatten()]))[0, 1])) < 0.2
