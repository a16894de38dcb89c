"""Limits of settings: declared beside each field, checked in one place, told in one line."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from campaigns.draw_settings import Command, commands

from dino_oct import pretraining
from dino_oct.cli import parse_options
from dino_oct.config import LossConfig, MonitorConfig, OptimConfig, TrainConfig
from dino_oct.data.index import DatasetConfig
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.limits import Items, NewPath, Ordered, Range, Text, all_settings, check_settings
from evaluation import knn
from evaluation.inputs.sources import Source
from evaluation.protocols import knn as protocol
from supervised import training, tuning
from supervised.config import SearchOptions, SupervisedConfig

COMMANDS = commands()


@dataclass
class Section:
    share: Annotated[float, Range(0, 1)] = 0.5
    high: float = 1.0

    def mismatch(self) -> tuple[str, str] | None:
        return ("high", "must be above the share") if self.high <= self.share else None


@dataclass
class Example:
    count: Annotated[int, Range(1, 10)] = 1
    gap: Annotated[float | None, Range(above=0, below=1)] = None
    pair: Annotated[tuple[float, float], Range(0), Ordered()] = (0.0, 1.0)
    several: Annotated[tuple[int, ...], Items(1, distinct=True), Range(1)] = (1,)
    name: Annotated[str, Text(1, is_new=True)] = "x"
    path: Path = Path("x")
    new_path: NewPath = Path("x")
    text: str = ""
    texts: list[str] = field(default_factory=list)
    word: Literal["a", "b"] = "a"
    range_or_auto: Annotated[float | Literal["auto"], Range(above=0)] = "auto"
    a_section: Section = field(default_factory=Section)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "--count 0: must be from 1 to 10"),
        ({"count": 10**25}, f"--count {10**25}: must be from 1 to 10"),
        ({"gap": 1.0}, "--gap 1.0: must be above 0 and below 1"),
        ({"gap": math.nan}, "--gap nan: must be above 0 and below 1"),
        ({"pair": (1.0, 0.5)}, "--pair 1.0 0.5: must have the smaller number first"),
        ({"pair": (0.0, math.inf)}, "--pair 0.0 inf: must be 0 or more"),
        ({"several": ()}, "--several '': must name at least one"),
        ({"several": (2, 2)}, "--several 2 2: must name each once"),
        ({"several": (2, -2)}, "--several 2 -2: must be 1 or more"),
        ({"name": ""}, "--name '': must not be empty"),
        ({"name": "é" * 101}, f"--name {'é' * 57}…: must be shorter: 202 bytes, 200 at most"),
        ({"name": "a\udcff"}, r"--name 'a\udcff': must be UTF-8"),
        ({"text": " "}, "--text ' ': must not be empty"),
        ({"texts": ["a", ""]}, "--texts a '': must not be empty"),
        ({"name": "."}, "--name .: must name a file or folder of its own"),
        ({"new_path": Path("")}, "--new-path .: must name a file or folder of its own"),
        ({"new_path": Path("a/..")}, "--new-path a/..: must name a file or folder of its own"),
        ({"path": Path("x" * 256)}, f"--path {'x' * 57}…: must be shorter: 256 bytes, 255 at most"),
        ({"path": Path("a/" * 2100)}, f"--path {'a/' * 28}a…: must be shorter: 4095 bytes at most"),
        ({"name": "a\0b"}, r"--name 'a\x00b': must not hold a NUL character"),
        ({"name": "a\n\0"}, r"--name 'a\n\x00': must not hold a NUL character"),
        ({"word": "c"}, "--word c: must be a or b"),
        ({"range_or_auto": -math.inf}, "--range-or-auto -inf: must be above 0"),
        ({"a_section": Section(share=1.5)}, "--a-section.share 1.5: must be from 0 to 1"),
        ({"a_section": Section(high=math.nan)}, "--a-section.high nan: must be a finite number"),
        ({"a_section": Section(high=0.5)}, "--a-section.high 0.5: must be above the share"),
    ],
)
def test_one_line_names_the_setting_its_value_and_its_limits(changes, message):
    with pytest.raises(InputError) as error:
        check_settings(dataclasses.replace(Example(), **changes))
    assert str(error.value) == message


def test_what_is_within_the_limits_passes():
    check_settings(Example())
    small = Section(1, 1.01)
    extremes = Example(10, 1e-300, (1.0, 1.0), (3, 1), "é" * 100, Path("/a" * 2000), Path("é" * 100), a_section=small)
    check_settings(extremes)


def test_a_prefix_is_part_of_the_name():
    with pytest.raises(InputError, match=r"^--base\.a-section\.share 2: "):
        check_settings(Section(share=2), "base.a_section.")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.script)
def test_every_number_of_every_command_has_limits_of_its_own(command: Command):
    for setting in all_settings(command.kind):
        if setting.number:
            ranges = [limit for limit in setting.limits if isinstance(limit, Range) and limit != Range()]
            assert ranges, f"{command.script}: {setting.name} has no range"
            # Whole numbers of any size overflow somewhere.
            assert setting.number is float or all(math.isfinite(limit.most) for limit in ranges), setting.name


def test_every_trainer_and_evaluation_checks_settings_made_in_python(tmp_path):
    wrong = TrainConfig(out=str(tmp_path / "run"), optim=OptimConfig(lr=-1))
    with pytest.raises(InputError, match=r"^--optim\.lr -1: "):
        pretraining.train(wrong)
    config = SupervisedConfig(out=str(tmp_path / "run"))
    config.network.drop_path = 1
    with pytest.raises(InputError, match=r"^--network\.drop-path 1: "):
        training.train(config)
    options = SearchOptions(models=["resnet18"], out=str(tmp_path / "search"), base=config)
    with pytest.raises(InputError, match=r"^--base\.network\.drop-path 1: "):
        tuning.search(options)
    with pytest.raises(InputError, match=r"^--k '': must name at least one"):
        protocol.evaluate(Source("random:resnet18"), knn.Options(k=()))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        *((OptimConfig, {"lr": value}) for value in (-1, math.nan, math.inf)),
        *((OptimConfig, {"weight_decay": value}) for value in (-1, math.nan, math.inf)),
        *((OptimConfig, {"clip_grad": value}) for value in (-1, math.nan, math.inf)),
        (OptimConfig, {"teacher_momentum": 1.1}),
        (OptimConfig, {"warmup_epochs": math.nan}),
        (OptimConfig, {"freeze_backbone_epochs": -1.0}),
        (LossConfig, {"student_temperature": math.inf}),
        (LossConfig, {"teacher_temperature": math.nan}),
        (LossConfig, {"center_momentum": 2}),
        (MonitorConfig, {"k": ()}),
        (MonitorConfig, {"image_size": (0, 224)}),
        (MonitorConfig, {"every_epochs": 0}),
        (MonitorConfig, {"max_val": 0}),
        (DatasetConfig, {"val_fraction": 0.5, "test_fraction": 0.5}),
        (DatasetConfig, {"max_side": 0}),
        (PhantomConfig, {"size": (1, 1)}),
        (PhantomConfig, {"patients": 100_000, "scans_per_patient": 10_000}),
    ],
)  # fmt: skip
def test_absurd_settings_are_refused(section, changes):
    with pytest.raises(InputError, match=f"^--({'|'.join(changes)}) ".replace("_", "-")):
        check_settings(section(**changes))


@pytest.mark.parametrize(
    "args",
    ["--optim.lr 0", "--optim.weight-decay 0", "--optim.clip-grad 0", "--loss.koleo-weight 0", "--augment.n-local 0",
     "--run.workers 0", "--run.keep-every 0", "--optim.warmup-epochs 0", "--optim.teacher-momentum 1",
     "--model.drop-path 0", "--optim.epochs 3000", "--optim.batch-size 4096", "--optim.freeze-backbone-epochs None",
     "--phantom.depth .4", "--dataset.val-fraction 0", "--run.save-every 1000000", "--seed 4294967295"],
)  # fmt: skip
def test_usual_settings_pass(args):
    parse_options(TrainConfig, args.split())
