"""A network for other programs: timm, Hugging Face, ONNX, torch.export, with preprocessing and model card.

    python evaluation/export_model.py runs/vitb8 --format hf onnx --out exported
    python evaluation/export_model.py runs/vitb8 --format onnx --attention True
    python evaluation/export_model.py runs/vitb8 --format card

What is written is read back and compared with the network; what differs is not kept.
"""

from dino_oct.cli import run_command
from evaluation.config import ExportOptions as Options


def main(options: Options) -> None:
    """Write every form that is asked for, and print how much each differs."""
    from dino_oct.devices import on_device
    from evaluation.protocols import export_model

    with on_device("cpu"):
        export_model.run(options)


if __name__ == "__main__":
    run_command(main, Options, "evaluation.protocols.export_model")
