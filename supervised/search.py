"""Search for hyper-parameters over architectures: random trials first, then Bayesian ones that learn from them.

    python supervised/search.py --models resnet50 convnext_base --method random --trials 40 --data DIR --out OUT
    python supervised/search.py --models resnet50 convnext_base --method bayes --trials 40 --data DIR --out OUT

The same command again goes on where the search stopped; the same command beside it is a second worker, one for each GPU
(CUDA_VISIBLE_DEVICES=1 python …). Trials are judged on the validation patients alone. When the search is over, its
winner of each architecture is chosen and recorded, and then classifies the test split, once.
"""

import sys

from dino_oct.cli import one_line_errors
from dino_oct.devices import on_device
from supervised.config import load_options


def main() -> None:
    """Read the options, then search."""
    with one_line_errors():
        options = load_options(sys.argv[1:])
        from dino_oct.stopping import StopSignal
        from supervised import tuning

        with on_device(options.device), StopSignal():  # between trials; trainers have their own
            tuning.search(options)


if __name__ == "__main__":
    main()
