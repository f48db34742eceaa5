"""Augmentation: what each kind changes and what it leaves, and that a seed decides it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from nas.augment import Augmentation, louder_or_softer, mixed, shifted, styles_mixed
from nas.record import Proxy

NONE = Proxy(mixup=0, gain=0, frequency_mask=0, time_mask_share=0)
BANDS, FRAMES = 20, 50


def clips(count: int = 64, channels: int = 2) -> Tensor:
    """Features that are nowhere 0: every clip, band and frame has a value of its own."""
    random = np.random.default_rng(3)
    return torch.from_numpy(random.uniform(1, 2, (count, channels, BANDS, FRAMES))).float()


def labels(count: int = 64) -> Tensor:
    return torch.eye(4)[torch.arange(count) % 4]


def augmented(recipe: Proxy, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return Augmentation(recipe, BANDS, FRAMES, seed)(x.clone(), labels(len(x)))


def test_a_recipe_without_augmentation_changes_nothing() -> None:
    x, y = augmented(NONE, clips())
    assert torch.equal(x, clips())
    assert torch.equal(y, labels())


KINDS = {
    "mixup": 0.3,
    "gain": 1.5,
    "frequency_mask": 8,
    "time_mask_share": 0.2,
    "time_shift_share": 0.2,
    "mixstyle_share": 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_setting_and_is_decided_by_the_seed(kind: str) -> None:
    recipe = msgspec.structs.replace(NONE, **{kind: KINDS[kind]})
    first, again, other = (augmented(recipe, clips(), seed) for seed in (1, 1, 2))
    assert not torch.equal(first[0], clips())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1], labels()) == (kind != "mixup")


def test_masks_blank_adjacent_bands_and_frames_of_all_channels_up_to_their_strength() -> None:
    augmentation = Augmentation(Proxy(frequency_mask=8, time_mask_share=0.2), BANDS, FRAMES, 0)
    x = augmentation.masked(clips(count=300))
    assert torch.equal(x[x != 0], clips(count=300)[x != 0])
    blank = (x == 0).numpy()
    assert (blank[:, 0] == blank[:, 1]).all()
    for axis, most in ((2, 8), (1, 10)):
        rows = blank[:, 0].all(axis=axis).astype(int)
        edges = np.abs(np.diff(rows, axis=1, prepend=0, append=0)).sum(1)
        assert edges.max() == 2  # one block
        assert most - 1 <= rows.sum(1).max() <= most
        assert len(set(rows.sum(1))) > most / 2


def test_a_mask_never_takes_more_than_half_of_the_bands() -> None:
    augmentation = Augmentation(Proxy(frequency_mask=99, time_mask_share=0), BANDS, FRAMES, 0)
    shares = (augmentation.masked(clips(count=300))[:, 0, :, 0] == 0).float().mean(1)
    assert shares.max() <= 0.5


def test_a_shift_turns_each_clip_by_its_own_number_of_frames() -> None:
    x = clips()
    moved = shifted(x, 5, np.random.default_rng(0))
    found = {
        by
        for before, after in zip(x, moved, strict=True)
        for by in range(-5, 6)
        if torch.equal(before.roll(by, -1), after)
    }
    assert found == set(range(-5, 6))


def test_the_level_of_every_second_clip_changes_in_the_log_mel_alone() -> None:
    change = louder_or_softer(clips(), 1.5, np.random.default_rng(0)) - clips()
    assert not change[::2].any()
    assert not change[:, 1].any()
    levels = change[1::2, 0].flatten(1)
    assert levels.std(1).max() < 1e-6
    assert 1 < levels.abs().max() <= 1.5


def test_mixstyle_gives_a_band_another_mean_and_deviation_but_keeps_its_course() -> None:
    x = clips() * torch.linspace(1, 3, 64)[:, None, None, None]
    styled = styles_mixed(x, 1.0, np.random.default_rng(0))

    def course(features: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(features, 3, keepdim=True, correction=0)
        return (features - mean) / deviation

    assert torch.allclose(course(styled), course(x), atol=1e-3)
    before, after = x.mean(3), styled.mean(3)
    assert (after - before).abs().max() > 0.5
    assert after.min() >= before.min() - 1e-3
    assert after.max() <= before.max() + 1e-3


def test_mixstyle_changes_its_share_of_the_batches() -> None:
    random, x = np.random.default_rng(0), clips(count=20)
    changed = [not torch.equal(styles_mixed(x, 0.4, random), x) for _ in range(500)]
    assert np.mean(changed) == pytest.approx(0.4, abs=0.06)


def test_mixup_blends_clip_and_label_by_the_same_share() -> None:
    x = torch.arange(4).repeat(16).float()[:, None, None, None].expand(-1, 1, BANDS, FRAMES)
    blended, y = mixed(x, labels(), 0.5, np.random.default_rng(0))
    assert torch.allclose(y.sum(1), torch.ones(64))
    assert torch.allclose(blended[:, 0, 0, 0], y @ torch.arange(4).float(), atol=1e-5)
    assert 0.1 < (y.max(1).values < 0.95).float().mean() < 0.9
