"""k-NN classification on frozen features, beside the controls it must beat.

    python evaluation/knn.py --k 5 10                      the newest run, on the data it was trained with
    python evaluation/knn.py --model timm:NAME --data DIR  any other backbone

Training scans vote (weighted k-NN, as DINO's protocol) on the scans of patients who were never seen.
"""

from dino_oct.cli import run_command
from evaluation.config import KnnOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write ``knn_SPLIT.json``."""
    from evaluation.protocols import knn

    knn.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.knn")
