"""Linear probe on frozen features, beside the controls it must beat, and how it fares with fewer labels.

    python evaluation/linear.py                              the newest run, on the data it was trained with
    python evaluation/linear.py --model timm:NAME --data DIR any other backbone
    python evaluation/linear.py --protocol dino              DINO's SGD protocol instead of logistic regression

C (or the epoch) is chosen on the validation patients; the scans of the test are classified once, by the chosen probe.
With a share of the labels it is chosen within the labelled patients, by a cross-validation over them.
"""

from dino_oct.cli import run_command
from evaluation.config import LinearOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write ``linear_PROTOCOL_SPLIT.json`` and the label-fraction curves beside it."""
    from evaluation.protocols import linear

    linear.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.linear")
