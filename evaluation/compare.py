"""One report that compares models: self-supervised against supervised, on the same test scans.

    python evaluation/compare.py --model runs/quickstart runs/phantoms_resnet  on the data of the first run
    python evaluation/compare.py --model RUN RUN timm:NAME --data DIR --masks DIR --out report

It reuses what the single evaluations cached, and its own finished steps (OUT/cache), so the same command goes on where
an earlier one was stopped. A model that cannot give a number or a map leaves a gap with its reason.
"""

from dino_oct.cli import run_command
from evaluation.config import ComparisonOptions as Options


def main(options: Options) -> None:
    """Compare, print, and write the page, numbers and figures."""
    from evaluation.report import comparison

    comparison.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.report.comparison")
