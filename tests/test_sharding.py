"""Two processes that share out the networks train as two that each hold them; one launch for all settings."""

import json
import subprocess
import sys
import unittest.mock
from pathlib import Path

import pytest
import torch
from conftest import REFERENCE, REPOSITORY, TINY_RUN, environment, views_of_reference
from reference_run import learner_and_schedules

from dino_oct import pretraining, sharding
from dino_oct.checkpoint import read_metrics
from dino_oct.config import ModelConfig, PretrainingRunConfig, load_config
from dino_oct.errors import InputError
from dino_oct.masking import block_masks
from dino_oct.models.backbone import load_backbone
from dino_oct.models.official import backbone_tensors, read_checkpoint
from dino_oct.runtime import start_processes

TOLERANCE = 1e-4
CLIP = 0.05  # of each tensor's gradient: most are cut
SETTINGS = {  # micro-batches, loss, model
    "center": (1, {}, {}),
    "ibot and anchors of the last blocks, accumulated and recomputed": (
        2, {"ibot_weight": 1.0, "anchor_weight": 1.0, "gram_weight": 1.0},
        {"grad_checkpointing": True, "train_blocks": 2},
    ),
    "lora": (1, {"centering": "sinkhorn", "koleo_weight": 0.1}, {"lora_rank": 3}),
}  # fmt: skip
RUN = [*TINY_RUN, "--model.drop-path", 0, "--loss.anchor-weight", 0.5, "--run.log-every", 1, "--optim.epochs", 2]
needs_cpu_sharding = pytest.mark.skipif(not sharding.RUNS_ON_CPUS, reason="this torch shards on GPUs alone")


class Training:
    """The reference run with a share of its scans."""

    def __init__(self, name, rank=0, count=1, accelerator=None, compiled=False, **run):
        torch.manual_seed(0)  # adapters are drawn
        self.parts, loss, model = SETTINGS[name]
        settings = json.loads((REFERENCE / "record.json").read_text())["config"] | {"clip_grad_per_parameter": CLIP}
        self.learner, self.schedules = learner_and_schedules(
            settings, accelerator, ModelConfig(**model), PretrainingRunConfig(**run), **loss
        )
        if compiled:
            with unittest.mock.patch("torch.compile", lambda function, **_: function):  # the real one takes seconds
                self.learner.compile()
        self.share = slice(4 // count * rank, 4 // count * (rank + 1))

    def steps(self, first, last):
        """Loss and joint norm of the gradients of each step."""
        trace = []
        for step in range(first, last):
            groups = [group[:, self.share].chunk(self.parts, dim=1) for group in views_of_reference()[step]]
            masks = torch.from_numpy(block_masks((4, 4), range(4)[self.share], step, 0, 0.5, (0.1, 0.5)))
            metrics = self.learner.step(
                list(zip(*groups, strict=True)), self.schedules[step], masks.chunk(self.parts, dim=1)
            )
            trace.append([metrics["loss"], metrics["grad_norm"]])
        return torch.tensor(trace)

    def outcome(self, first=0):
        """Steps up to the sixth and what they leave, whole."""
        learner, trace = self.learner, self.steps(first, 6)
        gradients = {name: p.grad for name, p in learner.student.named_parameters() if p.grad is not None}
        held = [*learner.student.parameters(), *learner.teacher.parameters(), *gradients.values()]
        held += [tensor for moments in learner.optimizer.state.values() for tensor in moments.values()]
        views = [group[:, :2] for group in views_of_reference()[0]]
        statistics = learner.teacher_statistics(views, 0.04)
        learner.check_weights()
        with torch.no_grad():
            features = learner.whole_teacher().backbone(views[0].flatten(0, 1))
        return {
            "trace": trace,
            "tensors": sharding.gathered({"gradients": gradients, **learner.state_dict()}),
            "bytes": sum(sharding.local(tensor).nbytes for tensor in held),
            "features": features,
            "statistics": torch.tensor(list(statistics.values())),
        }


def of_two_processes(folder):
    """Run by each of them; the main one writes the outcomes by setting."""
    accelerator, _ = start_processes(PretrainingRunConfig(precision="fp32"))
    rank, outcomes = torch.distributed.get_rank(), {}

    def begin(name, shard, **run):
        return Training(name, rank, 2, accelerator, shard=shard, **run)

    for name in SETTINGS:
        for shard in (False, True):
            outcomes[name, "sharded" if shard else "whole"] = begin(name, shard).outcome()
    outcomes["center", "compiled"] = begin("center", True, compiled=True).outcome()
    outcomes["center", "summed in bf16"] = begin("center", True, reduce="bf16").steps(0, 3)
    for shard in (False, True):
        before, file = begin("lora", shard), folder / f"{shard}.pt"
        before.steps(0, 3)
        state = before.learner.state_dict()
        if rank == 0:
            torch.save(state, file)
        torch.distributed.barrier()
        after = begin("lora", not shard)
        after.learner.load_state_dict(torch.load(file, weights_only=True))
        outcomes["lora", "resumed whole" if shard else "resumed sharded"] = after.outcome(first=3)
    if rank == 0:
        torch.save(outcomes, folder / "outcomes.pt")
    pretraining.train(load_config([*map(str, RUN), "--run.shard", "True", "--out", str(folder / "two")]))


@pytest.fixture(scope="module")
def launched(cache_root, tmp_path_factory):
    """The folder that two processes filled."""
    folder = tmp_path_factory.mktemp("sharded")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "tests/test_sharding.py", folder], cwd=REPOSITORY, timeout=120, capture_output=True, text=True,
        env=environment(cache_root) | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def outcomes(launched):
    return torch.load(launched / "outcomes.pt", weights_only=True)


def tensors_in(state, name=""):
    """Name → tensor, of all that a state holds."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in tensors_in(value, f"{name}.{key}").items()}
    return {name: state} if isinstance(state, torch.Tensor) else {}


def assert_same(ours, theirs):
    torch.testing.assert_close(ours["trace"], theirs["trace"][-len(ours["trace"]) :], rtol=TOLERANCE, atol=0)
    for name in ("features", "statistics"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=TOLERANCE, atol=TOLERANCE)
    ours, theirs = tensors_in(ours["tensors"]), tensors_in(theirs["tensors"])
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        difference, scale = (tensor - ours[name]).abs(), tensor.abs().max().clamp_min(1e-12)
        if name.endswith("qkv.bias"):
            # The keys' bias has no gradient in exact arithmetic; AdamW scales its rounding noise up to full steps.
            difference = torch.cat([difference.chunk(3)[0], difference.chunk(3)[2]])
        assert difference.max() / scale < TOLERANCE, name


@needs_cpu_sharding
@pytest.mark.parametrize("name", SETTINGS)
def test_shards_train_as_wholes(outcomes, name):
    """Losses, gradients after clipping, moments, student, teacher and centre; and each process holds half."""
    whole, sharded = outcomes[name, "whole"], outcomes[name, "sharded"]
    assert_same(sharded, whole)
    assert 0.5 <= sharded["bytes"] / whole["bytes"] < 0.51


@needs_cpu_sharding
def test_compiled_blocks_are_still_gathered(outcomes):
    assert_same(outcomes["center", "compiled"], outcomes["center", "whole"])


@needs_cpu_sharding
def test_two_shards_train_as_one_process(outcomes):
    trace = outcomes["center", "sharded"]["trace"]
    torch.testing.assert_close(trace, Training("center").steps(0, 6), rtol=TOLERANCE, atol=0)


@needs_cpu_sharding
@pytest.mark.parametrize("how", ["resumed whole", "resumed sharded"])
def test_either_way_goes_on_from_the_other(outcomes, how):
    assert_same(outcomes["lora", how], outcomes["lora", "whole"])


@needs_cpu_sharding
def test_gradients_summed_in_bf16(outcomes):
    rounded, exact = outcomes["center", "summed in bf16"], outcomes["center", "sharded"]["trace"][:3]
    assert 0 < (rounded / exact - 1)[:, 0].abs().max() < 0.01


@needs_cpu_sharding
def test_a_sharded_run_writes_what_any_other_does(launched, call, tmp_path):
    """Evaluated, drawn, saved and exported; and a single process goes on with it."""
    done = call("dino_oct/train.py", *RUN, "--run.shard", True, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert "run.shard True does nothing" in done.stdout
    two, one = (read_metrics(folder / "metrics.jsonl")[0] for folder in (launched / "two", tmp_path / "one"))
    assert [(line["step"], line.keys()) for line in two] == [(line["step"], line.keys()) for line in one]
    compared = {"loss", "anchor", "center_norm", "rankme", "attention_entropy", "weight_drift", "teacher_student_kl"}
    assert all(any(key in line for line in one) for key in compared)
    for a, b in zip(two, one, strict=True):
        for key in compared & a.keys():
            assert a[key] == pytest.approx(b[key], rel=2e-3), (a["step"], key)
    checkpoint = read_checkpoint(launched / "two" / "checkpoints" / "last.pt")
    exported = load_backbone(str(launched / "two" / "export")).state_dict()
    for name, tensor in backbone_tensors(checkpoint).items():
        assert torch.equal(tensor, exported[name]), name
    done = call("dino_oct/train.py", *RUN, "--optim.epochs", 3, "--out", launched / "two")
    assert done.returncode == 0, done.stderr
    assert "done:" in done.stdout


def test_what_has_no_blocks_is_refused():
    with pytest.raises(InputError, match=r"run.shard True: .* ResNet is not a plain transformer"):
        sharding.check_can_shard(load_backbone("random:test_resnet"), torch.device("cpu"))


if __name__ == "__main__":  # one of two processes
    of_two_processes(Path(sys.argv[1]))
