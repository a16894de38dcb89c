"""What a network gives for grey scans: features, class probabilities; and what features say about its health."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dino_oct import processes
from dino_oct.models.network import cls_feature, evaluating, normalise

_BATCH, _CHUNK = 64, 256  # scans per forward pass, and in memory at a time


def resize(scan: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A grey uint8 scan (H, W) resized to ``size`` (rows, columns) by Pillow's bicubic: (1, rows, columns) uint8.

    It is what timm's transforms do to the scan's file; torch's antialiased bicubic differs by a grey level here and
    there, and by more where a scan is stretched in one direction only.
    """
    rows, columns = size
    image = Image.fromarray(np.ascontiguousarray(scan)).resize((columns, rows), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image))[None]


def resize_all(scans: Iterable[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """Scans to one tensor (N, 1, rows, columns) uint8."""
    return torch.stack([resize(scan, size) for scan in scans])


@torch.no_grad()
def extract(
    backbone: nn.Module,
    images: torch.Tensor,
    device: torch.device,
    batch_size: int = 64,
    bf16: bool = False,
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = cls_feature,
    before_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """CLS features (or the vector before the classifier) of images, shared out over the processes.

    Args:
        images: (N, 1, H, W) uint8 grey, the same on every process.
        forward: from the network and normalised images (B, C, H, W) to another output (B, D).
        before_batch: called equally often on every process; may raise to end the extraction.

    Returns:
        (N, D) float32, the same on every process.
    """
    n, workers = len(images), processes.count()
    rank = torch.distributed.get_rank() if workers > 1 else 0
    # Equal shares, as gathering needs; the last rows of a short share repeat and are cut off.
    share = -(-n // workers)
    mine = torch.arange(rank * share, (rank + 1) * share).clamp_max(n - 1)
    rows = []
    with evaluating(backbone):
        for positions in mine.split(batch_size):
            before_batch()
            batch = normalise(images[positions].to(device), backbone).to(next(backbone.parameters()).dtype)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                rows.append(forward(backbone, batch).float())
    return processes.gather_rows(torch.cat(rows))[:n].cpu().numpy()


def predict(
    model: nn.Module,
    images: torch.Tensor,
    device: torch.device,
    bf16: bool = False,
    before_batch: Callable[[], None] = lambda: None,
    multilabel: bool = False,
) -> np.ndarray:
    """Class probabilities (N, C) float64 of grey images (N, 1, H, W) uint8, shared out over the processes; see
    ``extract``.

    Args:
        multilabel: each logit is that of a label of its own, which a scan has or not.
    """
    logits = extract(
        model, images, device, _BATCH, bf16, forward=lambda network, batch: network(batch), before_batch=before_batch
    )
    logits = torch.from_numpy(logits).double()
    return (logits.sigmoid() if multilabel else logits.softmax(dim=1)).numpy()


def predict_scans(
    model: nn.Module,
    scans: Sequence[np.ndarray],
    positions: np.ndarray,
    size: tuple[int, int],
    device: torch.device,
    multilabel: bool = False,
) -> np.ndarray:
    """As ``predict``, of the scans at ``positions`` resized to ``size`` (rows, columns), a few in memory at a time."""
    chunks = [positions[start : start + _CHUNK] for start in range(0, len(positions), _CHUNK)]
    images = (resize_all((scans[i] for i in chunk), size) for chunk in chunks)
    return np.concatenate([predict(model, part, device, multilabel=multilabel) for part in images])


def unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def rankme(features: np.ndarray) -> float:
    """RankMe: exp of the entropy of the normalised singular values (Garrido et al. 2023); at most min(N, D)."""
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    p = singular / max(singular.sum(), 1e-12) + 1e-12
    return float(np.exp(-(p * np.log(p)).sum()))


def feature_spread(features: np.ndarray) -> float:
    """Standard deviation of unit features per dimension, mean over dimensions, times √D: 1 isotropic, 0 collapsed."""
    return float(unit(features).std(axis=0).mean() * np.sqrt(features.shape[1]))


def linear_cka(features: np.ndarray, others: np.ndarray) -> float:
    """Linear centred kernel alignment of two networks' features of the same scans (Kornblith et al. 2019, equation 3).

    1 for features that are the same up to rotation, one common scale and shift; 0 for unrelated ones of many scans.
    With fewer scans than dimensions unrelated features have clearly more than 0.

    Args:
        features: (N, D); others: (N, D'). 0 where either is constant.
    """
    a, b = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (features, others))
    norm = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norm) if norm > 0 else 0.0


def pixel_features(images: torch.Tensor, side: int = 48) -> np.ndarray:
    """The control without a network: the pixels of images (N, 1, H, W) uint8 resized to ``side``², less their mean."""
    small = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True).flatten(1)
    return (small - small.mean(dim=1, keepdim=True)).numpy()
