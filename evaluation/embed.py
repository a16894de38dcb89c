"""Features of any scans, with their file names and what else is known of them, as one file.

    python evaluation/embed.py runs/vitb8 clinic/ --out clinic.parquet
    python evaluation/embed.py runs/vitb8 scan1.jpeg scan2.jpeg eye.vol --features cls+mean-patch
    python evaluation/embed.py timm:NAME@FILE clinic/ --image-size 224 448

Scans are decoded ahead by other processes and not kept, so that memory grows by the features alone.
"""

from dino_oct.cli import run_command
from evaluation.config import EmbedOptions as Options


def main(options: Options) -> None:
    """Compute, print what was found, and write the file."""
    from evaluation.protocols import embed

    embed.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.embed")
