"""Relevance maps of transformers (figure 7 of the paper): the patches that a class's logit rests on.

    python evaluation/relevance.py --model RUN                       scans of RUN's test split
    python evaluation/relevance.py SCAN.jpeg … --model RUN           image files, no labels needed
    python evaluation/relevance.py --method gradient lrp rollout     one row of a page each; lrp is the paper's choice

A DINO backbone gets a linear probe of its features as classifier. For CNNs there is evaluation/gradcam.py.
"""

from dino_oct.cli import run_command
from evaluation.config import RelevanceOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``relevance.npz``, ``relevance.json`` and TensorBoard images."""
    from evaluation.protocols import relevance

    relevance.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.relevance")
