"""What a setting may be: limits that stand beside its type, and one walk that checks them all.

    lr: Annotated[float, Range(0)] = 5e-4
    ratio: Annotated[tuple[float, float], Range(0.01, 100), Ordered()] = (3 / 4, 4 / 3)

A limit holds for every entry of a tuple or list, and None passes. Without any, a float must be finite, a word one of
its choices, and a text usable as a path: an entry of a list is not empty, and no text is of blanks alone.
"""

import dataclasses
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dino_oct.errors import InputError

_LONGEST_PART, _LONGEST_PATH = 255, 4095  # bytes, of Linux and macOS
_NEW_PART = 200


@dataclass(frozen=True)
class Range:
    """Limits of a number: ``least`` and ``most`` included, ``above`` and ``below`` not."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def need(self, value: Any) -> str:
        """What a value must be and is not; empty where it holds."""
        numbers = [x for x in _entries(value) if isinstance(x, (int, float)) and not isinstance(x, bool)]
        return "" if all(self._holds(x) for x in numbers) else f"must be {self}"

    def _holds(self, x: float) -> bool:
        return self.least <= x <= self.most and self.above < x < self.below  # False for NaN, and for infinities

    def __str__(self) -> str:
        least, most, above, below = (_number(x) for x in dataclasses.astuple(self))
        if least and most:
            return f"from {least} to {most}"
        low = f"{least} or more" if least else f"above {above}" if above else ""
        high = f"at most {most}" if most else f"below {below}" if below else ""
        return " and ".join(filter(None, (low, high))) or "a finite number"


@dataclass(frozen=True)
class Items:
    """Number of entries of a tuple or list, and whether none may come twice."""

    least: int = 0
    distinct: bool = False

    def need(self, value: Any) -> str:
        """As ``Range.need``."""
        if not isinstance(value, (tuple, list)):
            return ""
        if len(value) < self.least:
            return "must name at least one" if self.least == 1 else f"must name at least {self.least}"
        return "must name each once" if self.distinct and len(set(map(str, value))) < len(value) else ""


@dataclass(frozen=True)
class Ordered:
    """Two numbers, the smaller first; they may be equal."""

    def need(self, value: Any) -> str:
        """As ``Range.need``."""
        return "must have the smaller number first" if value is not None and value[0] > value[1] else ""


@dataclass(frozen=True)
class Text:
    """Length of a text, and of each of its parts between slashes in bytes, as file systems limit it.

    Attributes:
        least: characters. is_new: of a file or folder to be made: UTF-8, as TensorBoard wants it, with room for what is
            added to the name while it is written or moved aside.
    """

    least: int = 0
    is_new: bool = False

    def need(self, value: Any) -> str:
        """As ``Range.need``."""
        for text in (str(x) for x in _entries(value) if isinstance(x, (str, Path))):
            if len(text.strip()) < self.least or text.isspace():
                return "must not be empty"
            if "\0" in text:
                return "must not hold a NUL character"
            if self.is_new and text != text.encode(errors="replace").decode():
                return "must be UTF-8"
            if self.is_new and text and Path(text).name in ("", ".."):
                return "must name a file or folder of its own"
            parts = [len(part.encode(errors="surrogatepass")) for part in text.split("/")]
            most = _NEW_PART if self.is_new else _LONGEST_PART
            if max(parts) > most:
                return f"must be shorter: {max(parts)} bytes, {most} at most"
            if sum(parts) + len(parts) > _LONGEST_PATH:
                return f"must be shorter: {_LONGEST_PATH} bytes at most"
        return ""


@dataclass(frozen=True)
class _Choices:
    words: tuple[Any, ...]

    def need(self, value: Any) -> str:
        wrong = [x for x in _entries(value) if x is not None and x not in self.words]
        return f"must be {' or '.join(map(str, self.words))}" if wrong else ""


@dataclass(frozen=True)
class DeviceName:
    """A device as torch names it."""

    def need(self, value: Any) -> str:
        """As ``Range.need``."""
        is_known = value is None or re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,2})?", value)
        return "" if is_known else "must be auto, cpu, cuda, cuda:N or mps"


_LIMITS = (Range, Items, Ordered, Text, DeviceName)

Device = Annotated[str, Text(1), DeviceName()]

Seed = Annotated[int, Range(0, 2**32 - 1)]
"""As far as every library goes that takes one."""
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(above=0, most=1)]
Side = Annotated[int, Range(1, 4096)]
"""Rows or columns of an image that a network takes, in pixels."""
BatchSize = Annotated[int, Range(1, 65536)]
Epochs = Annotated[int, Range(1, 100_000)]
PartialEpochs = Annotated[float, Range(0, 100_000)]
Rate = Annotated[float, Range(0, 1000)]
"""A learning rate or weight decay."""
Heads = Annotated[int, Range(1, 1024)]
Blocks = Annotated[int, Range(1, 1000)]
DropPath = Annotated[float, Range(0, below=1)]
Scans = Annotated[int, Range(1, 10_000_000)]
Neighbours = Annotated[tuple[int, ...], Items(1, distinct=True), Range(1, 1_000_000)]
Resamples = Annotated[int, Range(0, 100_000)]
MaskValues = Annotated[tuple[int, ...], Items(distinct=True), Range(0, 65535)]
NewName = Annotated[str, Text(is_new=True)]
NewPath = Annotated[Path, Text(is_new=True)]
Name = Annotated[str, Text(1)]
"""A path or another name that must not be empty."""


@dataclass(frozen=True)
class Setting:
    """One setting of an options class.

    Attributes:
        name: with its sections, as ``optim.warmup_epochs``.
        hint: its type, without limits.
        positional: given without a name on a command line. aliases: further names there.
    """

    name: str
    hint: Any
    limits: tuple[Any, ...]
    positional: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The name as on a command line."""
        return self.name if self.positional else "--" + self.name.replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return bool({tuple, list} & _parts(self.hint))

    @property
    def most_values(self) -> float:
        """How many values it takes at most."""
        hints = (self.hint, *typing.get_args(self.hint))
        fixed = [typing.get_args(hint) for hint in hints if typing.get_origin(hint) is tuple]
        if fixed and Ellipsis not in fixed[0]:
            return len(fixed[0])
        return math.inf if self.is_list else 1

    @property
    def is_optional(self) -> bool:
        """Whether None is a value of it."""
        return type(None) in _parts(self.hint)

    @property
    def number(self) -> type[int] | type[float] | None:
        """The kind of number that it takes, if it takes any."""
        parts = _parts(self.hint)
        return float if float in parts else int if int in parts else None

    @property
    def is_text(self) -> bool:
        """Whether any text is a value of it."""
        return bool({str, Path} & _parts(self.hint))


@functools.cache
def all_settings(kind: type) -> tuple[Setting, ...]:
    """All settings of an options class, those of its sections included."""
    plain, annotated = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    settings = []
    for field in dataclasses.fields(kind):
        hint = plain[field.name]
        if dataclasses.is_dataclass(hint):
            inner = all_settings(hint)
            settings += [dataclasses.replace(setting, name=f"{field.name}.{setting.name}") for setting in inner]
            continue
        metadata = list(_metadata(annotated[field.name]))
        settings.append(
            Setting(
                field.name,
                hint,
                (*_implied(hint, metadata), *(item for item in metadata if isinstance(item, _LIMITS))),
                positional=any("Positional" in str(item) for item in metadata),
                aliases=tuple(alias for item in metadata for alias in getattr(item, "aliases", None) or ()),
            )
        )
    return tuple(settings)


def check_settings(settings: Any, prefix: str = "") -> None:
    """Check every setting of a dataclass and of its sections, then the rules that join several of them.

    Such a rule is a method ``mismatch`` of the section: the field's name and what is wrong with its value beside the
    others', or None.

    Args:
        prefix: of the section in the command's options, as ``dataset.``.

    Raises:
        InputError: one line that names the first setting out of its limits, as ``--optim.lr -1: must be 0 or more``.
    """
    for setting in all_settings(type(settings)):
        setting = dataclasses.replace(setting, name=prefix + setting.name)
        value = operator.attrgetter(setting.name.removeprefix(prefix))(settings)
        for limit in setting.limits:
            if need := limit.need(value):
                raise InputError(f"{setting.option} {_shown(value)}: {need}")
    _check_together(settings, prefix)


def _check_together(settings: Any, prefix: str) -> None:
    if (mismatch := settings.mismatch() if hasattr(settings, "mismatch") else None) is not None:
        name, need = mismatch
        setting = next(setting for setting in all_settings(type(settings)) if setting.name == name)
        option = dataclasses.replace(setting, name=prefix + name).option
        raise InputError(f"{option} {_shown(getattr(settings, name))}: {need}")
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(section := getattr(settings, field.name)):
            _check_together(section, f"{prefix}{field.name}.")


def _implied(hint: Any, metadata: list[Any]) -> list[Any]:
    """The limits of a type for which none are declared."""
    parts, limits = _parts(hint), []
    words = _words(hint)
    if words and not parts - {Literal, tuple, list, type(None)}:
        limits.append(_Choices(words))
    if float in parts and not any(isinstance(limit, Range) for limit in metadata):
        limits.append(Range())
    if {str, Path} & parts and not any(isinstance(limit, Text) for limit in metadata):
        limits.append(Text(1 if parts & {tuple, list} else 0))
    return limits


def _parts(hint: Any) -> set[Any]:
    """The types that a type is made of; ``Literal`` for words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {Literal}
    below = set().union(*map(_parts, (arg for arg in args if arg is not Ellipsis))) if args else set()
    return below if origin in (typing.Union, types.UnionType) else below | {origin or hint}


def _words(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(word for arg in typing.get_args(hint) if arg is not Ellipsis for word in _words(arg))


def _metadata(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Annotated:
        yield from hint.__metadata__
        hint = hint.__origin__
    for arg in typing.get_args(hint):
        yield from _metadata(arg)


def _entries(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _shown(value: Any) -> str:
    """A value as a user gives it, on one line and not too long."""
    text = " ".join(str(x) if str(x).strip() else repr(str(x)) for x in _entries(value))
    text = text if text.isprintable() else repr(text)
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return text or "''"


def _number(x: float) -> str:
    return "" if math.isinf(x) else f"{x:,}" if isinstance(x, int) else f"{x:g}"
