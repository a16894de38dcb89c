"""Does a map find the lesion? Every method of every model scored against lesion masks, beside maps without a network.

    python evaluation/localization.py                                     the newest run, on its phantoms
    python evaluation/localization.py --model RUN RUN2 RUN3               several models on the same scans
    python evaluation/localization.py --model RUN --data DIR --masks DIR  scans with masks of their own
    python evaluation/localization.py --methods attention relevance lrp   other methods; see --help

A map on a lesion means little alone: the retina is bright and lesions lie in it. So each number stands beside maps that
need no network and beside the weights before training. Attention heads and thresholds are chosen on validation
patients; scores are of test patients.
"""

from dino_oct.cli import run_command
from evaluation.config import LocalizationOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write ``localization.json``, pages, ``localization.npz`` and TensorBoard images."""
    from evaluation.protocols import localization

    localization.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.localization")
