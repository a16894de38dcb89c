"""The paper's architectures and what of them evaluations read.

    python supervised/zoo.py                       the table
    python supervised/zoo.py --filter convnext

Any other model of timm, run, export or file of weights can be trained as well.
"""

from dino_oct.cli import run_command
from supervised.config import ZooOptions as Options


def main(options: Options) -> None:
    """Print the table."""
    from supervised.architectures import overview

    print(overview(options.names()))


if __name__ == "__main__":
    run_command(main, Options)
