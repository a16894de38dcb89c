"""Where CLS looks, head by head: pages of attention maps, masks that hold most of the mass, numbers of their spread.

    python evaluation/attention.py                         scans of the test split of the newest run
    python evaluation/attention.py SCAN.jpeg … --model RUN  image files, no labels needed

Beside a run's weights stand those before its first step. Attention maps show where a network looks, not why it decides.
"""

from dino_oct.cli import run_command
from evaluation.config import AttentionOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``attention.npz``, ``attention.json`` and TensorBoard images."""
    from evaluation.protocols import attention

    attention.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.attention")
