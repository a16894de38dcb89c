"""What the results of all evaluations have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_oct.files import private_folder
from evaluation.config import EvaluationOptions
from evaluation.inputs.sources import Source, short_names


def of_source(source: Source) -> dict[str, Any]:
    """Which source was evaluated, and how it was chosen."""
    return {"source": source.name, "run": source.run, "chosen": source.chosen}


def of_bootstrap(options: EvaluationOptions) -> dict[str, Any]:
    """How intervals were made."""
    return {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed}


def shared_patients(tested: set[str], trained: set[str], way_out: str = "use --dataset.split patient") -> list[str]:
    """A note where classified patients also have training scans."""
    shared = len(tested & trained)
    if not shared:
        return []
    return [
        f"{shared} of {len(tested)} classified patients also have training scans, which flatters every row; {way_out}"
    ]


def folders(sources: Sequence[Source], evaluation: str, out: str | None) -> list[Path]:
    """A folder for the results of each source, new ones for their owner alone; several share ``out``, one below it
    each."""
    names = short_names(sources)
    if out is None or len(sources) == 1:
        places = [source.results_folder(evaluation, out) for source in sources]
    else:
        places = [Path(out, name.replace("/", "_")) for name in names]
    return [private_folder(place) for place in places]
