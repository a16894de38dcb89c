"""Attention-based multiple-instance learning (Ilse et al. 2018): a class of a bag of scans from their features.

Only the bag has a class. The network learns which scans of it count.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_oct.errors import InputError
from dino_oct.streams import seed_of

WIDTH = 64  # of the attention's hidden layer
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2
EPOCHS, PATIENCE = 100, 10  # at most; without a better validation
SMALLEST_BATCH, MOST_STEPS = 16, 32  # bags; of an epoch


class GatedAttention(nn.Module):
    """Class logits of bags: a linear classifier of the weighted mean of their scans' features (equations 7 and 9).

    Args:
        dim: D, width of the features.
    """

    def __init__(self, dim: int, n_classes: int, width: int = WIDTH):
        super().__init__()
        self.content, self.gate, self.weight = nn.Linear(dim, width), nn.Linear(dim, width), nn.Linear(width, 1)
        self.classifier = nn.Linear(dim, n_classes)
        # It begins as the mean, undecided: random weights may turn the attention away from what tells, for good.
        for layer in (self.weight, self.classifier):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def attention(self, features: Tensor, is_scan: Tensor) -> Tensor:
        """Share of each scan in its bag (B, S), rows sum to 1.

        Args:
            features: (B, S, D), bags filled up to S scans; is_scan: (B, S) bool.
        """
        scores = self.weight(self.content(features).tanh() * self.gate(features).sigmoid()).squeeze(2)
        return scores.masked_fill(~is_scan, -torch.inf).softmax(dim=1)

    def forward(self, features: Tensor, is_scan: Tensor) -> Tensor:
        """Logits (B, C); arguments as of ``attention``."""
        pooled = (self.attention(features, is_scan)[:, None] @ features).squeeze(1)  # (B, D)
        return self.classifier(pooled)


class Bags:
    """Features of scans, bag by bag.

    Args:
        features: (N, D) float32.
        bag_of_scan: (N,) bag of each scan, all from 0 on; scans of a negative one do not count.
    """

    def __init__(self, features: Tensor, bag_of_scan: np.ndarray):
        self.features = features
        order = np.argsort(bag_of_scan, kind="stable")
        order = order[bag_of_scan[order] >= 0]
        counts = np.bincount(bag_of_scan[order])
        self._members = np.split(order, counts.cumsum()[:-1])

    def __len__(self) -> int:
        return len(self._members)

    def take(self, bags: list[int]) -> tuple[Tensor, Tensor]:
        """Features (B, S, D) of some bags, filled up to the largest, and which (B, S) are scans."""
        members = [torch.from_numpy(self._members[bag]) for bag in bags]
        rows = nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1).to(self.features.device)
        return self.features[rows.clamp_min(0)], rows >= 0

    def in_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All bags in their order."""
        return (
            self.take(list(range(i, min(i + SMALLEST_BATCH, len(self))))) for i in range(0, len(self), SMALLEST_BATCH)
        )


@torch.no_grad()
def probabilities(model: GatedAttention, bags: Bags) -> np.ndarray:
    """Class probabilities (B, C) float64 of bags."""
    return torch.cat([model(*batch) for batch in bags.in_batches()]).double().softmax(dim=1).cpu().numpy()


def fit(
    train: Bags, labels: np.ndarray, val: Bags, val_labels: np.ndarray, n_classes: int, seed: int
) -> GatedAttention:
    """Train by AdamW on the bags' cross-entropy, and keep the epoch of lowest loss on the validation bags.

    Args:
        train: features standardised to mean 0 and deviation 1, as those of ``val``; labels: (B,), val_labels: (V,).
        seed: of the first weights and the order of bags.

    Raises:
        InputError: training bags of fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise InputError("training bags of one class only: attention pooling needs at least two")
    device, dim = train.features.device, train.features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("first weights of attention pooling", seed))
        model = GatedAttention(dim, n_classes)  # drawn on the CPU: the same on every machine
    model.to(device)
    order = torch.Generator().manual_seed(seed_of("order of bags", seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    target, val_target = (torch.from_numpy(part).to(device) for part in (labels, val_labels))
    batch_size = max(SMALLEST_BATCH, -(-len(train) // MOST_STEPS))
    best, lowest, epoch_of_best = copy.deepcopy(model), np.inf, 0
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(train), generator=order).split(batch_size):
            with torch.enable_grad():
                loss = F.cross_entropy(model(*train.take(batch.tolist())), target[batch.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = torch.cat([model(*part) for part in val.in_batches()])
        val_loss = float(F.cross_entropy(logits, val_target))
        if val_loss < lowest:
            best, lowest, epoch_of_best = copy.deepcopy(model), val_loss, epoch
        elif epoch - epoch_of_best >= PATIENCE:
            break
    return best
