"""One page a scan: every method and every model side by side.

    python evaluation/side_by_side.py --model RUN RUN2 RUN3     scans of RUN's test split, all usual methods
    python evaluation/side_by_side.py SCAN.jpeg … --model RUN   image files, no labels needed
    python evaluation/side_by_side.py --figure 5 --model RUN …  as the paper's 5 Grad-CAM, 6 occlusion,
                                                                7 relevance (LRP), 9 attention of every head

Where lesion masks are at hand they are outlined, and each map tells how it prefers the lesion to the retina.
"""

from dino_oct.cli import run_command
from evaluation.config import SideBySideOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``side_by_side.npz``, ``side_by_side.json`` and TensorBoard images."""
    from evaluation.protocols import side_by_side

    side_by_side.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.side_by_side")
