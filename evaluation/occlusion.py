"""What each class loses when a window of the scan is hidden, and the mask that helps it most (figure 6 of the paper).

    python evaluation/occlusion.py --model RUN RUN2           scans of RUN's test split
    python evaluation/occlusion.py SCAN.jpeg … --model RUN    image files, no labels needed
    python evaluation/occlusion.py --fill black --window 0.1  another question: see --fill

D = logit of the scan − logit with the window hidden. Red: hiding hurts the class. Blue: hiding helps it. One sweep
serves every class.
"""

from dino_oct.cli import run_command
from evaluation.config import OcclusionOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``occlusion.npz``, ``occlusion.json`` and TensorBoard images."""
    from evaluation.protocols import occlusion

    occlusion.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.occlusion")
