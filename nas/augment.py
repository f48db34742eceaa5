"""Augmentation of one batch of normalised log-mel features, each kind with a strength of its own.

On the CPU, and cheap beside the training step of a small network: masks are drawn as one row of
bands and one row of frames per clip, and every other kind is one pass over the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchaudio import transforms

from nas.record import Proxy

STYLE_BETA = 0.3  # of freq-MixStyle, as in the baselines of DCASE Task 1
_SMALLEST_VARIANCE = 1e-6


class Augmentation:
    """What a recipe does to the batches of one training; a strength of 0 leaves its kind out."""

    def __init__(self, recipe: Proxy, bands: int, frames: int, seed: int) -> None:
        self.recipe = recipe
        self.random = np.random.default_rng(seed)
        self.bands = torch.ones(bands, 1)
        self.frames = torch.ones(1, frames)
        self.mask_bands = transforms.FrequencyMasking(
            min(recipe.frequency_mask, bands // 2), iid_masks=True
        )
        self.mask_frames = transforms.TimeMasking(
            int(recipe.time_mask_share * frames), iid_masks=True
        )

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch as training sees it: x float32 [N, C, F, T], y [N, classes] probabilities.

        In this order: time shift, level, freq-MixStyle, SpecAugment masks (Park et al. 2019),
        mixup (Zhang et al. 2018). The masks are torchaudio's, which draws them from torch's own
        generator; all else is drawn from the seed.
        """
        recipe = self.recipe
        x = shifted(x, int(recipe.time_shift_share * x.shape[3]), self.random)
        x = louder_or_softer(x, recipe.gain, self.random)
        x = styles_mixed(x, recipe.mixstyle_share, self.random)
        return mixed(self.masked(x), y, recipe.mixup, self.random)

    def masked(self, x: Tensor) -> Tensor:
        """Each clip without some adjacent bands and some adjacent frames, set to their mean, 0."""
        if self.mask_bands.mask_param:
            x = x * self.mask_bands(self.bands.expand(len(x), 1, -1, -1))
        if self.mask_frames.mask_param:
            x = x * self.mask_frames(self.frames.expand(len(x), 1, -1, -1))
        return x


def shifted(x: Tensor, most: int, random: np.random.Generator) -> Tensor:
    """Each clip turned in time by up to `most` frames; what leaves one end enters at the other."""
    if not most:
        return x
    shifts = random.integers(-most, most, len(x), endpoint=True)
    return torch.stack([clip.roll(by, -1) for clip, by in zip(x, shifts.tolist(), strict=True)])


def louder_or_softer(x: Tensor, most: float, random: np.random.Generator) -> Tensor:
    """Every second clip at another level: on log-mel, a constant, which deltas do not hear. The
    other clips keep theirs, as it may tell classes apart."""
    if not most:
        return x
    levels = random.uniform(-most, most, len(x))
    levels[::2] = 0
    changed = x.clone()
    changed[:, 0] += torch.from_numpy(levels).to(x.dtype)[:, None, None]
    return changed


def styles_mixed(x: Tensor, share: float, random: np.random.Generator) -> Tensor:
    """Freq-MixStyle, for devices that are not in the training recordings (Kim et al. 2022, after
    Zhou et al. 2021): a `share` of the batches get, clip by clip, a blend of their own mean and
    deviation of every band over time with those of another clip."""
    if random.random() >= share:
        return x
    mean = x.mean(3, keepdim=True)
    power = torch.linalg.vector_norm(x, dim=3, keepdim=True).square() / x.shape[3]
    deviation = (power - mean.square()).clamp_min(_SMALLEST_VARIANCE).sqrt()
    blend, other = _partners(x, STYLE_BETA, random)
    scale = torch.lerp(deviation[other], deviation, blend) / deviation
    styled: Tensor = x * scale + (torch.lerp(mean[other], mean, blend) - mean * scale)
    return styled


def mixed(x: Tensor, y: Tensor, beta: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup: each clip and its label blended with another by a share of Beta(beta, beta)."""
    if not beta:
        return x, y
    blend, other = _partners(x, beta, random)
    return torch.lerp(x[other], x, blend), torch.lerp(y[other], y, blend[:, :, 0, 0])


def _partners(x: Tensor, beta: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """[N, 1, 1, 1] shares of each clip that stay, and [N] the clip that gives the rest."""
    shares = torch.from_numpy(random.beta(beta, beta, len(x))).to(x.dtype)
    return shares[:, None, None, None], torch.from_numpy(random.permutation(len(x)))
