"""The DINO loss (Caron et al. 2021), its two ways of centring the teacher, the iBOT term, KoLeo, and anchors.

Everything here is computed in float32, whatever the precision of the networks.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dino_oct import processes
from dino_oct.config import LossConfig


def dino_cross_entropy(
    student_logits: torch.Tensor, teacher_probabilities: torch.Tensor, student_temperature: float
) -> torch.Tensor:
    """Mean cross-entropy between every teacher view and every *other* student view.

    The double loop over views is folded into −mean[(Σ_q p_q)·(Σ_v log p_v) − Σ_q p_q·log p_q] / terms: two dot
    products instead of 2·V − 2, and no (views × views) intermediate.

    Args:
        student_logits: (V, B, K); the first Q views are the teacher's, in the same order.
        teacher_probabilities: (Q, B, K), rows sum to 1.

    Returns:
        scalar float32. The uniform answer gives ln K.
    """
    n_views, n_teacher = len(student_logits), len(teacher_probabilities)
    log_p = F.log_softmax(student_logits.float() / student_temperature, dim=-1)  # (V, B, K)
    all_pairs = (teacher_probabilities.sum(0) * log_p.sum(0)).sum(-1)  # (B,)
    same_view = (teacher_probabilities * log_p[:n_teacher]).sum(-1).sum(0)  # (B,)
    return -(all_pairs - same_view).mean() / (n_teacher * n_views - n_teacher)


def ibot_cross_entropy(
    student_logits: torch.Tensor, teacher_probabilities: torch.Tensor, masks: torch.Tensor, student_temperature: float
) -> torch.Tensor:
    """Cross-entropy at hidden patches (Zhou et al. 2022, iBOT, equation 3): mean over the patches of a view, then over
    views; views without hidden patches count as 0, as in DINOv2.

    Args:
        student_logits: (M, K) at the hidden patches, in the order of ``masks``.
        teacher_probabilities: (M, K), rows sum to 1.
        masks: (n, B, rows, columns) bool, M of them True.

    Returns:
        scalar float32; 0 with a gradient of 0 where nothing is hidden.
    """
    log_p = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    of_patch = -(teacher_probabilities * log_p).sum(dim=-1)  # (M,)
    flat = masks.flatten(0, 1).flatten(1)  # (views, N)
    hidden = flat.sum(dim=1, keepdim=True).clamp_min(1)
    weights = (1.0 / hidden).expand_as(flat)[flat]
    return (of_patch * weights).sum() / len(flat)


def anchor(features: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Mean of 1 − cosine between features (…, D) and those of the starting network: 0 to 2."""
    return 1 - F.cosine_similarity(features.float(), start.float(), dim=-1).mean()


def gram_anchor(patches: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the cosine similarities between all patches of a view (Siméoni et al. 2025, DINOv3,
    section 4, there as a sum).

    Args:
        patches, start: (V, N, D) of this network and of the starting one.
    """
    similarities = [x @ x.transpose(1, 2) for x in (F.normalize(part.float(), dim=-1) for part in (patches, start))]
    return F.mse_loss(*similarities)


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """Assignments whose prototypes are used equally over the global batch (Caron et al. 2020, SwAV, section 3.1).

    Works on logarithms, so a temperature of .01 neither overflows nor empties a row.

    Args:
        logits: (N, K) rows of this process; the others' are counted in.

    Returns:
        (N, K) float32, rows sum to 1.
    """
    log_q = logits.float() / temperature
    for _ in range(iterations):
        log_q = log_q - processes.log_sum_exp(log_q.logsumexp(dim=0, keepdim=True))
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


def koleo(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Kozachenko–Leonenko regulariser: −mean log distance to the nearest neighbour on the sphere (Sablayrolles 2019).

    Args:
        features: (B, D) rows of this process; neighbours are searched among the rows of all processes.
    """
    own = F.normalize(features.float(), dim=-1)
    everyone = processes.gather_rows(own)
    if len(everyone) < 2:
        return features.sum() * 0.0
    with torch.no_grad():
        similarity = own @ everyone.T
        rank = torch.distributed.get_rank() if processes.count() > 1 else 0
        rows = torch.arange(len(own), device=own.device)
        similarity[rows, rows + rank * len(own)] = -2  # not its own neighbour
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(own, everyone[nearest], eps=eps)
    return -torch.log(distance + eps).mean()


class TeacherTargets(nn.Module):
    """Turns teacher logits into target distributions; holds the running centre.

    Attributes:
        center: (1, K) buffer, starts at 0 (official key ``dino_loss.center``).
    """

    def __init__(self, out_dim: int, config: LossConfig):
        super().__init__()
        self.config = config
        self.register_buffer("center", torch.zeros(1, out_dim))

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Target distributions under the present centre.

        Args:
            logits: (Q, B, K) of this process, all micro-batches of an optimiser step together.

        Returns:
            (Q, B, K) float32 probabilities.
        """
        logits = logits.float()
        if self.config.centering == "sinkhorn":
            return sinkhorn_knopp(logits.flatten(0, 1), temperature).view_as(logits)
        return F.softmax((logits - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, logits: torch.Tensor) -> None:
        """Move the centre towards the mean of the logits (Q, B, K) of all processes: once per optimiser step.

        Processes may have different numbers of rows, as of hidden patches; where none has any, the centre stays.
        """
        rows = logits.float().flatten(0, 1)
        sums = processes.total(torch.cat([rows.sum(dim=0), rows.new_full((1,), len(rows))]))
        count = sums[-1]
        moved = self.center * self.config.center_momentum
        moved = moved.add_((sums[:-1] / count.clamp_min(1))[None], alpha=1 - self.config.center_momentum)
        self.center.copy_(torch.where(count > 0, moved, self.center))


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of rows (…, K): 0 means one answer, ln K means uniform."""
    return -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1).mean()
