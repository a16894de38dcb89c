"""OCT multi-crop: the views of DINO, drawn per sample on the training device.

A sample's views depend on (seed, epoch, sample) and the settings alone: not on its batch, its place in it, the number
of processes or loader workers. Views vary what varies between OCT scans: position and size of the scanned field, left
and right eye, tilt of the beam, gain and display curve of the device, speckle, focus, and the shadows of vessels and
opacities. Scans have no colour, and no device shows them inverted: there is no hue and no solarisation.

Source of the scheme: Caron et al. 2021, arXiv 2104.14294 (two global and several local random resized crops).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from dino_oct.config import AugmentConfig, CropConfig, ViewConfig
from dino_oct.photometrics import Photometrics, apply_batched, apply_native, noise_bank
from dino_oct.streams import seed_of
from dino_oct.views import Crops, choose_boxes, resize_matmul, resize_native

CANDIDATES = 10
"""Boxes drawn per view, to choose one that fits and shows tissue; as many as torchvision tries."""
SHADOWS = 3
"""Most shadows in one view."""
SHADOW_WIDTH = (0.004, 0.02)
"""Gaussian sigma of a shadow as a fraction of the scan's width: vessels of about 0.1 to 0.5 mm on 6 to 9 mm."""

# One row of uniform numbers per view. Every number is drawn whatever the settings are, so that changing one setting
# leaves all else of a view as it was.
_DRAWS = {
    "area": CANDIDATES, "ratio": CANDIDATES, "top": CANDIDATES, "left": CANDIDATES, "flip": 1, "tilt": 2,
    "tone": 1, "gain": 1, "contrast": 1, "gamma": 1, "order": 1, "blur": 2, "solarize": 1, "speckle": 2, "noise_at": 3,
    "shadow": 2, "shadow_at": SHADOWS, "shadow_width": SHADOWS, "shadow_depth": SHADOWS,
}  # fmt: skip


class Views(NamedTuple):
    """Views of a batch, grouped by size, view by view: float32 in [0, 1]."""

    globals: torch.Tensor
    """(2, B, 1, global_size, global_size)"""
    locals: torch.Tensor
    """(n_local, B, 1, local_size, local_size)"""


class _Cropper:
    """Views of scans by one of two methods; see ``MultiCrop``."""

    def __init__(
        self,
        config: ViewConfig,
        largest: int,
        seed: int,
        device: str | torch.device,
        method: Literal["native", "matmul"] | None,
    ):
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.method = method or ("native" if self.device.type == "cpu" else "matmul")
        self._bank = noise_bank(2 * largest)
        self._device_bank = torch.from_numpy(self._bank).to(self.device)

    def _views(
        self,
        scans: Sequence[np.ndarray],
        tissue: np.ndarray | None,
        draws: dict[str, np.ndarray],
        views: range,
        size: int,
        scale: tuple[float, float],
    ) -> torch.Tensor:
        """Views number ``views`` of every scan, (len(views), B, 1, size, size)."""
        scans = [np.asarray(scan) for scan in scans]
        tissue = None if tissue is None else np.asarray(tissue)
        n = len(draws["area"])
        if len(scans) != n or (tissue is not None and len(tissue) != n):
            raise ValueError(f"{len(scans)} scans, {n} samples, and tissue of {np.shape(tissue)} differ")
        if any(scan.ndim != 2 or scan.dtype != np.uint8 or scan.size == 0 for scan in scans):
            raise ValueError("scans must be uint8 (H, W)")
        if not (len(views) and len(scans)):
            return torch.empty((len(views), len(scans), 1, size, size), device=self.device)
        draws = {name: values[:, views.start : views.stop] for name, values in draws.items()}
        crops = draw_crops(self.config, draws, np.array([scan.shape for scan in scans]), tissue, scale)
        draws = {name: np.concatenate(values.swapaxes(0, 1)) for name, values in draws.items()}  # view-major
        if self.config.preset == "parity":
            photometrics = draw_parity_photometrics(draws, np.repeat(np.array(views), len(scans)))
        else:
            width_share = crops.width / np.array([scan.shape[1] for scan in scans])[crops.scan]
            photometrics = draw_photometrics(self.config, draws, width_share)
        if self.method == "native":
            pixels = apply_native(resize_native(scans, crops, size), photometrics, self._bank).to(self.device)
        else:
            with torch.autocast(self.device.type, enabled=False):  # resizing in half precision would add noise
                pixels = apply_batched(resize_matmul(scans, crops, size, self.device), photometrics, self._device_bank)
        return pixels.view(len(views), len(scans), 1, size, size)


class MultiCrop(_Cropper):
    """Two global and ``n_local`` local views of each scan of a batch.

    Args:
        config: the settings.
        seed: of the run, 0 or more.
        device: where the views are made and returned.
        method: ``native``: one view after the other by vectorised 8-bit routines, on the CPU; ``matmul``: all views
            together by matrix products on ``device``. Both give the same values within 8-bit rounding.
            None takes ``native`` on the CPU, ``matmul`` elsewhere.
    """

    config: AugmentConfig

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        device: str | torch.device = "cpu",
        method: Literal["native", "matmul"] | None = None,
    ):
        super().__init__(config, max(config.global_size, config.local_size), seed, device, method)

    @torch.no_grad()
    def __call__(
        self,
        scans: Sequence[np.ndarray],
        tissue: np.ndarray | None,
        samples: Sequence[int],
        epoch: int,
        partners: tuple[Sequence[np.ndarray], np.ndarray | None] | None = None,
    ) -> Views:
        """Make the views.

        Args:
            scans: B grey scans, uint8 (H, W) of any sizes.
            tissue: (B, rows, columns) share of tissue in each cell of a coarse grid over each scan, in [0, 1];
                None takes boxes anywhere.
            samples: the scans' numbers in the data set, which key their random draws.
            epoch: 0 or more.
            partners: scans and tissue of the second global views; None: they are of the same scans.

        Raises:
            ValueError: scans of another shape or type, or counts that differ.
        """
        config = self.config
        draws = draw_uniform(self.seed, epoch, samples, 2 + config.n_local)
        size, scale = config.global_size, config.global_scale
        if partners is None:
            globals_ = self._views(scans, tissue, draws, range(2), size, scale)
        else:
            first = self._views(scans, tissue, draws, range(1), size, scale)
            globals_ = torch.cat([first, self._views(*partners, draws, range(1, 2), size, scale)])
        return Views(
            globals_,
            self._views(scans, tissue, draws, range(2, 2 + config.n_local), config.local_size, config.local_scale),
        )


class SingleCrop(_Cropper):
    """One view of each scan of a batch, drawn as the first global view of ``MultiCrop`` is.

    Args:
        config: the settings.
        size: side of the view in pixels.
        seed, device, method: as ``MultiCrop``.
    """

    config: CropConfig

    def __init__(
        self,
        config: CropConfig,
        size: int,
        seed: int,
        device: str | torch.device = "cpu",
        method: Literal["native", "matmul"] | None = None,
    ):
        super().__init__(config, size, seed, device, method)
        self.size = size

    @torch.no_grad()
    def __call__(
        self, scans: Sequence[np.ndarray], tissue: np.ndarray | None, samples: Sequence[int], epoch: int
    ) -> torch.Tensor:
        """Make the views: (B, 1, size, size) float32 in [0, 1]; arguments as ``MultiCrop``'s."""
        draws = draw_uniform(self.seed, epoch, samples, 1)
        return self._views(scans, tissue, draws, range(1), self.size, self.config.scale)[0]


def draw_uniform(seed: int, epoch: int, samples: Sequence[int], n_views: int) -> dict[str, np.ndarray]:
    """Uniform numbers in [0, 1) of each sample's views: name → (B, n_views, count).

    A counter-based generator (Philox) is placed by its key (of seed and epoch) and counter (sample): no state is
    carried.
    """
    width = sum(_DRAWS.values())
    numbers = np.empty((len(samples), n_views, width))
    key = seed_of("views", seed, epoch)
    for row, sample in zip(numbers, samples, strict=True):
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 1, int(sample)])).random(out=row)
    ends = np.cumsum(list(_DRAWS.values()))
    return dict(zip(_DRAWS, np.split(numbers, ends[:-1], axis=-1), strict=True))


def draw_crops(
    config: ViewConfig,
    draws: dict[str, np.ndarray],
    sizes: np.ndarray,
    tissue: np.ndarray | None,
    scale: tuple[float, float],
) -> Crops:
    """Boxes, tilts and flips from uniform numbers (B, n, count), view by view: N = n · B.

    Args:
        sizes: (B, 2) height and width of the scans.
    """
    boxes = choose_boxes(draws, sizes, tissue, scale, config.ratio, config.min_tissue, config.frame == "square")
    top, left, height, width = (box.T.reshape(-1) for box in boxes)
    chance, amount = draws["tilt"].T  # (n, B)
    tilt = 0.0 if config.preset == "parity" else config.tilt
    slope = np.where(chance < config.tilt_p, tilt * (2 * amount - 1), 0.0) * (sizes[:, 0] / sizes[:, 1])
    scan = np.tile(np.arange(len(sizes)), len(slope))
    return Crops(scan, top, left, height, width, slope.reshape(-1), (draws["flip"] < config.flip)[..., 0].T.reshape(-1))


def draw_photometrics(config: ViewConfig, draws: dict[str, np.ndarray], width_share: np.ndarray) -> Photometrics:
    """Intensity changes of the OCT preset from uniform numbers (N, count).

    Args:
        width_share: (N,) width of each view as a fraction of its scan's; shadows are wider in a closer view.
    """

    def factor(name: str, strength: float) -> np.ndarray:
        # As often up as down: uniform in the logarithm.
        log = np.where(draws["tone"][:, 0] < config.tone_p, 2 * draws[name][:, 0] - 1, 0.0)
        return np.exp(np.log1p(strength) * log)

    def amount(name: str, p: float, low: float, high: float) -> np.ndarray:
        return np.where(draws[name][:, 0] < p, low + (high - low) * draws[name][:, 1], 0.0)

    n_shadows = np.ceil(amount("shadow", config.shadow_p, 0, SHADOWS))
    low, high = SHADOW_WIDTH
    return Photometrics(
        gain=factor("gain", config.gain),
        gamma=factor("gamma", config.gamma),
        contrast=factor("contrast", config.contrast),
        contrast_first=np.zeros(len(width_share), bool),
        blur=amount("blur", config.blur_p, *config.blur),
        solarize=np.zeros(len(width_share), bool),
        speckle=amount("speckle", config.speckle_p, 0, config.speckle),
        noise_at=draws["noise_at"],
        shadow_at=draws["shadow_at"],
        shadow_width=(low + (high - low) * draws["shadow_width"]) / width_share[:, None],
        shadow_depth=config.shadow * draws["shadow_depth"] * (np.arange(SHADOWS) < n_shadows[:, None]),
    )


def draw_parity_photometrics(draws: dict[str, np.ndarray], number: np.ndarray) -> Photometrics:
    """Intensity changes of DINO's recipe for natural images, on grey, from uniform numbers (N, count).

    Args:
        number: (N,) number of each view: 0 and 1 are the global views.
    """
    jitter = draws["tone"][:, 0] < 0.8
    blur_p = np.select([number == 0, number == 1], [1.0, 0.1], 0.5)
    n = len(number)
    return Photometrics(
        gain=np.where(jitter, 0.6 + 0.8 * draws["gain"][:, 0], 1.0),
        gamma=np.ones(n),
        contrast=np.where(jitter, 0.6 + 0.8 * draws["contrast"][:, 0], 1.0),
        contrast_first=draws["order"][:, 0] < 0.5,
        blur=np.where(draws["blur"][:, 0] < blur_p, 0.1 + 1.9 * draws["blur"][:, 1], 0.0),
        solarize=(number == 1) & (draws["solarize"][:, 0] < 0.2),
        speckle=np.zeros(n),
        noise_at=draws["noise_at"],
        shadow_at=draws["shadow_at"],
        shadow_width=np.ones((n, SHADOWS)),
        shadow_depth=np.zeros((n, SHADOWS)),
    )
