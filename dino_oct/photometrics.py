"""Intensity changes of views in [0, 1]: tone curve, blur, A-scan shadows, speckle, solarisation.

Every change is a pure function of the numbers in :class:`Photometrics`, so that both ways of applying it agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dino_oct.streams import generator


@dataclass(frozen=True)
class Photometrics:
    """Photometric parameters of N views. All fields are arrays of length N, or (N, shadows)."""

    gain: np.ndarray  # factor
    gamma: np.ndarray  # exponent
    contrast: np.ndarray  # factor around the view's mean
    contrast_first: np.ndarray  # bool: contrast before gain and gamma
    blur: np.ndarray  # Gaussian sigma in pixels of the view; 0: none
    solarize: np.ndarray  # bool: invert what is brighter than 0.5
    speckle: np.ndarray  # standard deviation of the factor around 1; 0: none
    noise_at: np.ndarray  # (N, 3) uniform in [0, 1): row, column and direction of the piece of the noise bank
    shadow_at: np.ndarray  # (N, shadows) centre, as a fraction of the view's width
    shadow_width: np.ndarray  # (N, shadows) Gaussian sigma, as a fraction of the view's width
    shadow_depth: np.ndarray  # (N, shadows) share of light lost in the centre; 0: none


def noise_bank(side: int) -> np.ndarray:
    """A fixed square of speckle-like noise to cut pieces from: float32 (side, side), mean 0, variance 1.

    Grains of one to two pixels; skewed to the bright side, as averaged speckle is. It repeats at its edges.
    """
    rng = generator("noise bank")
    noise = rng.gamma(2.0, size=(side, side))  # intensity of two averaged looks
    for axis in (0, 1):
        noise = np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def tone_curves(photometrics: Photometrics, views: torch.Tensor) -> torch.Tensor:
    """Gain, gamma and contrast of each view as a table over its 256 grey levels.

    Args:
        views: uint8 (N, S, S); every fourth row and column gives the mean that contrast turns around.

    Returns:
        (N, 256) float32 in [0, 1].
    """
    device = views.device
    gain, gamma, contrast = (
        torch.from_numpy(value.astype(np.float32)).to(device)[:, None]
        for value in (photometrics.gain, photometrics.gamma, photometrics.contrast)
    )
    thumbs = views[:, ::4, ::4].flatten(1).long()
    grey = (torch.arange(256, device=device, dtype=torch.float32) / 255).expand(len(views), -1)

    def lit(levels: torch.Tensor) -> torch.Tensor:
        return (levels * gain).clamp(0, 1) ** gamma

    def contrasted(levels: torch.Tensor) -> torch.Tensor:
        mean = levels.gather(1, thumbs).mean(1, keepdim=True)
        return (mean + (levels - mean) * contrast).clamp(0, 1)

    curves = contrasted(lit(grey))
    if photometrics.contrast_first.any():
        first = torch.from_numpy(photometrics.contrast_first).to(device)[:, None]
        curves = torch.where(first, lit(contrasted(grey)), curves)
    return curves


def gaussian_taps(sigma: np.ndarray) -> np.ndarray:
    """Half of each Gaussian kernel, cut at 3 sigma and normalised: sigma (N,) > 0 → float32 (N, reach + 1)."""
    reach = np.ceil(3 * sigma)[:, None]
    distance = np.arange(int(reach.max()) + 1)
    taps = np.where(distance <= reach, np.exp(-0.5 * (distance / sigma[:, None]) ** 2), 0)
    return (taps / (2 * taps.sum(1, keepdims=True) - taps[:, :1])).astype(np.float32)


def _blur(image: torch.Tensor, taps: Sequence, kind: type = torch.Tensor):
    """Separable symmetric convolution of (n, S, S); the border pixels continue outwards.

    Args:
        taps: from the centre outwards; numbers, or tensors (n, 1, 1).
        kind: numpy.ndarray to compute with numpy, whose calls cost less than torch's on small images.
    """
    size, reach = image.shape[-1], len(taps) - 1
    padded = torch.nn.functional.pad(image, (reach,) * 4, mode="replicate")
    padded = padded.numpy() if kind is np.ndarray else padded
    for axis in (-2, -1):
        shifted = [
            padded[..., k : k + size, :] if axis == -2 else padded[..., k : k + size] for k in range(2 * reach + 1)
        ]
        padded = shifted[reach] * taps[0]
        for k in range(1, reach + 1):
            pair = shifted[reach - k] + shifted[reach + k]
            pair *= taps[k]
            padded += pair
    return padded


def shadow_profiles(at: np.ndarray, width: np.ndarray, depth: np.ndarray, size: int) -> np.ndarray:
    """Light left in each column below vessels and opacities: three (N, shadows) → float32 (N, size) in [0, 1]."""
    x = (np.arange(size) + 0.5) / size
    distance = (x - at[..., None]) / width[..., None]  # (N, shadows, size)
    return (1 - depth[..., None] * np.exp(-0.5 * distance**2)).prod(1).astype(np.float32)


def _noise_pieces(photometrics: Photometrics, bank_side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First row and column (N, 2) of each view's piece of the bank, and whether it is upside down (N,)."""
    first = (photometrics.noise_at[:, :2] * (bank_side - size + 1)).astype(np.int64)
    return first, photometrics.noise_at[:, 2] < 0.5


def apply_native(views: np.ndarray, photometrics: Photometrics, bank: np.ndarray) -> torch.Tensor:
    """Apply ``photometrics`` view by view on the CPU: uint8 (N, S, S) → float32 (N, S, S) in [0, 1]."""
    size = views.shape[-1]
    result = np.empty(views.shape, np.float32)  # not torch.empty: numpy asks for huge pages, faster when fresh
    curves = tone_curves(photometrics, torch.from_numpy(views)).numpy()
    for curve, view, out in zip(curves, views, result, strict=True):
        curve.take(view, out=out, mode="clip")

    blurred = np.flatnonzero(photometrics.blur > 0)
    if len(blurred):
        for view, taps in zip(blurred, gaussian_taps(photometrics.blur[blurred]), strict=True):
            result[view] = _blur(torch.from_numpy(result[view])[None], taps[taps > 0], np.ndarray)[0]
    for view in np.flatnonzero(photometrics.solarize):
        np.subtract(1, result[view], out=result[view], where=result[view] > 0.5)
    shaded = np.flatnonzero(photometrics.shadow_depth.any(1))
    if len(shaded):
        shape = (photometrics.shadow_at[shaded], photometrics.shadow_width[shaded], photometrics.shadow_depth[shaded])
        for view, light in zip(shaded, shadow_profiles(*shape, size), strict=True):
            result[view] *= light
    speckled = np.flatnonzero(photometrics.speckle > 0)
    if len(speckled):
        first, reverse = _noise_pieces(photometrics, len(bank), size)
        factor = np.empty((size, size), np.float32)
        for view in speckled:
            top, left = first[view]
            piece = bank[top : top + size, left : left + size]
            np.multiply(piece[::-1] if reverse[view] else piece, np.float32(photometrics.speckle[view]), out=factor)
            factor += 1
            result[view] *= factor
            np.clip(result[view], 0, 1, out=result[view])
    return torch.from_numpy(result)


def apply_batched(views: torch.Tensor, photometrics: Photometrics, bank: torch.Tensor) -> torch.Tensor:
    """:func:`apply_native` for accelerators: all views together, on the device of ``views``."""
    device, size = views.device, views.shape[-1]

    def on_device(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(value).to(device)

    result = tone_curves(photometrics, views).gather(1, views.flatten(1).long()).view(views.shape)
    blurred = np.flatnonzero(photometrics.blur > 0)
    if len(blurred):
        taps = on_device(gaussian_taps(photometrics.blur[blurred]).T.copy())[:, :, None, None]  # (reach + 1, n, 1, 1)
        result[on_device(blurred)] = _blur(result[on_device(blurred)], taps)
    solarize = on_device(photometrics.solarize)[:, None, None]
    result = torch.where(solarize & (result > 0.5), 1 - result, result)
    if photometrics.shadow_depth.any():
        light = shadow_profiles(photometrics.shadow_at, photometrics.shadow_width, photometrics.shadow_depth, size)
        result *= on_device(light)[:, None]
    if photometrics.speckle.any():
        first, reverse = _noise_pieces(photometrics, len(bank), size)
        steps = np.arange(size)
        rows = on_device(first[:, :1] + np.where(reverse[:, None], steps[::-1], steps))
        columns = on_device(first[:, 1:] + steps)
        noise = bank[rows[:, :, None], columns[:, None]]
        result *= noise.mul_(on_device(photometrics.speckle.astype(np.float32))[:, None, None]).add_(1)
    return result.clamp_(0, 1)
