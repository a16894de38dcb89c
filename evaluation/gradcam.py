"""Grad-CAM of several classifiers side by side on the same scans (figure 5 of the paper).

    python evaluation/gradcam.py --model RUN RUN2 RUN3    scans of RUN's test split
    python evaluation/gradcam.py SCAN.jpeg … --model RUN  image files, no labels needed
    python evaluation/gradcam.py --methods gradcam hirescam --target CNV

A model without a classifier gets a linear probe of its features, or class prototypes (``--classifier prototype``).
"""

from dino_oct.cli import run_command
from evaluation.config import GradcamOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``gradcam.npz``, ``gradcam.json`` and TensorBoard images."""
    from evaluation.protocols import gradcam

    gradcam.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.gradcam")
