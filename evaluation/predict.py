"""Predictions for new scans: a row for each scan, eye and patient, and a page to look through.

    python evaluation/predict.py runs/resnet50 clinic/ --out predictions
    python evaluation/predict.py runs/vitb8 scan1.jpeg scan2.jpeg eye.vol
    python evaluation/predict.py timm:NAME@FILE clinic/ --data OCT2017      a probe fitted to labelled scans

A run's classifier is fitted and calibrated once, on its own scans, and kept in its export.
"""

from dino_oct.cli import run_command
from evaluation.config import PredictOptions as Options


def main(options: Options) -> None:
    """Predict, print what was found, and write tables and page."""
    from evaluation.protocols import predict

    predict.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.predict")
