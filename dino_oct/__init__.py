"""Self-supervised DINO pretraining on retinal OCT scans, and the parts the other two packages share.

From Python:

    import dino_oct
    model = dino_oct.load("runs/vitb8")     features, predictions, maps: OctModel
    run = dino_oct.train("OCT2017")         pretraining; finetune: with labels
    dino_oct.evaluate.knn(model=run)        what the commands print, as a dict
    dino_oct.ScanDataset("OCT2017")         scans for torch; LinearProbe: for scikit-learn
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {  # imported when they are asked for: `import dino_oct` alone takes no time
    "load": "evaluation.api.model",
    "OctModel": "evaluation.api.model",
    "Transform": "evaluation.api.transform",
    "ScanDataset": "evaluation.api.transform",
    "train": "evaluation.api.commands",
    "finetune": "evaluation.api.commands",
    "LinearProbe": "dino_oct.probe",
    "InputError": "dino_oct.errors",
}
__all__ = [*_PLACES, "evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        return importlib.import_module("evaluation.api.commands")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'dino_oct' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
