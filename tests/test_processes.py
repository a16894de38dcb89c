"""Two processes, or two micro-batches, train as one (losses, centre, weights to 1e-4); a dead process ends the run."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, environment
from reference_run import learner_and_schedules

from dino_oct import precision
from dino_oct.config import RunConfig
from dino_oct.masking import block_masks
from dino_oct.runtime import start_processes

TOLERANCE = 1e-4
SETTINGS = {
    "center": {},
    "sinkhorn+koleo": {"centering": "sinkhorn", "koleo_weight": 0.1},
    "ibot+anchors": {"ibot_weight": 1.0, "anchor_weight": 1.0, "gram_weight": 1.0},
    "ibot+sinkhorn": {"ibot_weight": 1.0, "centering": "sinkhorn"},
}


def train(record, views, loss, share=slice(None), parts=1, accelerator=None):
    """Six steps on a share of each batch, in equal parts; returns the trace and the final tensors."""
    learner, schedules = learner_and_schedules(record["config"], accelerator, **SETTINGS[loss])
    trace = []
    for step, groups in enumerate(views):
        mine = [group[:, share] for group in groups]
        micro_batches = list(zip(*[group.chunk(parts, dim=1) for group in mine], strict=True))
        masks = torch.from_numpy(block_masks((4, 4), range(4)[share], step, 0, 0.5, (0.1, 0.5)))
        metrics = learner.step(micro_batches, schedules[step], masks.chunk(parts, dim=1))
        trace.append((metrics["loss"], metrics["center_norm"]))
    return trace, learner.state_dict()


def assert_same(first, second):
    for (loss_a, center_a), (loss_b, center_b) in zip(first[0], second[0], strict=True):
        assert loss_a == pytest.approx(loss_b, rel=TOLERANCE)
        assert center_a == pytest.approx(center_b, rel=TOLERANCE)
    for part in ("student", "teacher", "dino_loss"):
        for name, tensor in first[1][part].items():
            difference, scale = (tensor - second[1][part][name]).abs(), tensor.abs().max().clamp_min(1e-12)
            if name.endswith("qkv.bias"):
                # The keys' bias has no gradient in exact arithmetic; AdamW scales its rounding noise up to full steps.
                difference = torch.cat([difference.chunk(3)[0], difference.chunk(3)[2]])
            assert difference.max() / scale < TOLERANCE, (part, name)


@pytest.mark.parametrize("loss", ["center", "ibot+anchors", "ibot+sinkhorn"])
def test_accumulation_over_two_half_batches(record, reference_views, loss):
    """KoLeo is left out: its neighbours are those of a micro-batch."""
    assert_same(train(record, reference_views, loss), train(record, reference_views, loss, parts=2))


def two_processes(cache_root, folder, *names, reduce="fp32"):
    """What the main one of two processes has after each of some settings, in one launch."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launch, __file__, str(folder / "two.pt"), reduce, *names],
        cwd=REPOSITORY / "tests", env=environment(cache_root), check=True, timeout=120,
    )  # fmt: skip
    return torch.load(folder / "two.pt", weights_only=True)


@pytest.fixture(scope="module")
def of_two(cache_root, tmp_path_factory):
    return two_processes(cache_root, tmp_path_factory.mktemp("two"), *SETTINGS)


@pytest.mark.parametrize("loss", SETTINGS)
def test_two_processes(record, reference_views, loss, of_two):
    assert_same(train(record, reference_views, loss), of_two[loss])


def test_gradients_summed_in_bf16(record, reference_views, cache_root, tmp_path):
    """The same training, but for rounding: eight bits of each gradient's mantissa."""
    trace, _ = two_processes(cache_root, tmp_path, "center", reduce="bf16")["center"]
    losses = torch.tensor([loss for loss, _ in trace])
    exact = torch.tensor([loss for loss, _ in train(record, reference_views, "center")[0]])
    assert 0 < (losses / exact - 1).abs().max() < 0.01


@pytest.mark.parametrize("faster", [True, False])
def test_bf16_on_a_processor_only_where_it_is_faster(faster, monkeypatch):
    """Whatever this one has: the flag and the trial decide."""
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_is_faster_in_bf16", lambda: faster)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: "flags: avx512_bf16")
    assert precision.use_bf16("auto") is faster
    monkeypatch.setattr(Path, "read_text", lambda path: "flags: avx512f")
    assert precision.use_bf16("auto") is False
    assert precision.use_bf16("bf16") is True


@pytest.mark.parametrize("pace", [6e8, 5e10, 3e12])
def test_the_peak_of_any_processor_is_measured_within_seconds(pace, monkeypatch):
    """Without instructions for bf16 a product of the size that others need takes half a minute."""
    asked = []

    def product(device, bf16, side, times):
        asked.extend([(side, 2 * side**3 / pace)] * times)
        return [2 * side**3 / pace] * times

    monkeypatch.setattr(precision, "_product", product)
    assert precision.matrix_peak(torch.device("cpu"), bf16=True) == pytest.approx(pace)
    assert sum(seconds for _, seconds in asked) < 2
    assert asked[-1][0] == {6e8: 256, 5e10: 1024, 3e12: 2048}[pace]


@pytest.mark.parametrize(("slower", "said"), [(55, "55 times slower in bf16 than in fp32"), (0.4, "")])
def test_slow_bf16_is_said_once_to_who_asks_for_it(slower, said, monkeypatch, capsys):
    monkeypatch.setattr(precision, "matrix_peak", lambda device, bf16, side: 1e9 if bf16 else slower * 1e9)
    precision.warn_of_slow_bf16.cache_clear()
    for _ in range(2):
        precision.warn_of_slow_bf16(torch.device("cpu"))
    printed = capsys.readouterr().err
    assert printed.count("warning") == bool(said)
    assert said in printed
    precision.warn_of_slow_bf16.cache_clear()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_killed_process_ends_the_others(cache_root, tmp_path):
    """Started by hand, without a launcher that would end them: the survivor itself must notice."""
    env = {**environment(cache_root), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "forever", "fp32", "center"], cwd=REPOSITORY / "tests", stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert workers[0].stdout.readline().startswith("training")
        workers[1].kill()
        started = time.monotonic()
        assert workers[0].wait(timeout=60) not in (0, None)
        assert time.monotonic() - started < 60
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


if __name__ == "__main__":  # one of two processes
    from conftest import REFERENCE, views_of_reference

    out, reduce, *names = sys.argv[1:]
    accelerator, _ = start_processes(RunConfig(precision="fp32", reduce=reduce))
    rank = torch.distributed.get_rank()
    record, half, kept = json.loads((REFERENCE / "record.json").read_text()), slice(2 * rank, 2 * rank + 2), {}
    if out == "forever":
        print("training", flush=True)
        while True:
            train(record, views_of_reference(), names[0], half, accelerator=accelerator)
    for name in names:
        trace, state = train(record, views_of_reference(), name, half, accelerator=accelerator)
        parts = ("student", "teacher", "dino_loss")
        kept[name] = trace, {part: {k: v.clone() for k, v in state[part].items()} for part in parts}
    if rank == 0:
        torch.save(kept, out)
    torch.distributed.destroy_process_group()
