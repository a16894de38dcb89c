"""UMAP maps of frozen features, before and after training and beside other models, with numbers from the features.

    python evaluation/embedding_map.py                             the newest run, on its test scans
    python evaluation/embedding_map.py --model RUN timm:NAME RUN2  several models on the same scans
    python evaluation/embedding_map.py --animate True              over a run's checkpoints

A map shows; it proves nothing. What is compared (silhouette, k-NN purity) is measured on the features themselves.
"""

from dino_oct.cli import run_command
from evaluation.config import EmbeddingMapOptions as Options


def main(options: Options) -> None:
    """Evaluate, print, and write figure, page, coordinates, projector export and JSON."""
    from evaluation.protocols import embedding_map

    embedding_map.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.embedding_map")
