"""The front end and its cache: right against librosa, computed once, no leak into training."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import Tone

from nas.arch import FrontEnd
from nas.cache import cache_folder, clear_cache, locked
from nas.clips import Clip
from nas.dataset import Dataset, load
from nas.errors import UserError
from nas.features import compute, front_end, waveforms, windows

SMALL = FrontEnd(8000, 0.2, 256, 256, 80, 20)


@pytest.fixture
def dataset(tmp_path: Path, tone: Tone) -> Dataset:
    for label, pitch_hz in (("a", 300), ("b", 1500)):
        for i in range(8):
            tone(tmp_path / "data" / label / f"{label}{i}.wav", pitch_hz=pitch_hz)
    return load(tmp_path / "data")


def noise(samples: int, clips: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((clips, samples)).astype(np.float32) * 0.1)


# the front end

FRONT_ENDS = [
    FrontEnd(44100, 10.0, 2048, 2048, 1024, 128),
    FrontEnd(16000, 1.0, 1024, 400, 160, 40),
    FrontEnd(16000, 1.0, 512, 480, 160, 64, center=0),
    FrontEnd(8000, 0.6, 256, 256, 80, 40),
]


@pytest.mark.parametrize("settings", FRONT_ENDS, ids=str)
def test_the_log_mel_is_librosas_within_a_thousandth(settings: FrontEnd) -> None:
    audio = noise(settings.samples)
    expected = librosa.feature.melspectrogram(
        y=audio.numpy(),
        sr=settings.sample_rate_hz,
        n_fft=settings.fft,
        win_length=settings.window,
        hop_length=settings.hop,
        center=bool(settings.center),
        n_mels=settings.mels,
        htk=True,
        norm=None,
    )
    ours = front_end(audio, settings).numpy()[:, 0]
    assert np.abs(ours - np.log(np.maximum(expected, 1e-6))).max() < 1e-3


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (FrontEnd(44100, 10.0, 2048, 2048, 1024, 128), (1, 128, 431)),
        (FrontEnd(16000, 1.0, 512, 480, 160, 40), (1, 40, 101)),
        (FrontEnd(16000, 1.0, 512, 480, 160, 40, deltas=2), (3, 40, 101)),
        (FrontEnd(8000, 0.05, 1024, 800, 400, 8), (1, 8, 2)),
    ],
    ids=str,
)
def test_the_shape_is_the_one_that_the_architecture_expects(
    settings: FrontEnd, shape: tuple[int, ...]
) -> None:
    assert settings.shape == shape
    assert front_end(noise(settings.samples), settings).shape[1:] == shape


def test_deltas_are_the_slope_of_the_log_mel() -> None:
    settings = FrontEnd(8000, 1.0, 256, 256, 80, 8, deltas=2)
    growth = torch.exp(torch.arange(settings.samples) / 8000)  # one e-fold of amplitude a second
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(settings.samples) / 8000)
    mel, slope, bend = front_end((0.1 * growth * tone)[None], settings)[0, :, 3, 10:-10]
    per_frame = 2 * settings.hop / settings.sample_rate_hz
    assert slope.numpy() == pytest.approx(per_frame, abs=2e-3)
    assert bend.numpy() == pytest.approx(0, abs=2e-3)
    assert (mel[-1] - mel[0]) / (len(mel) - 1) == pytest.approx(per_frame, rel=0.02)


def test_a_level_of_one_hears_the_shape_of_the_sound_and_not_how_loud_it_is() -> None:
    settings = FrontEnd(8000, 1.0, 256, 256, 80, 20, deltas=1, level=1)
    audio = noise(settings.samples)
    loud, soft = front_end(audio, settings), front_end(0.1 * audio, settings)
    assert torch.allclose(loud, soft, atol=2e-3)
    assert loud[:, 0].exp().mean((1, 2)).numpy() == pytest.approx(1, rel=1e-3)
    plain = front_end(audio, replace(settings, level=0))
    assert torch.allclose(plain[:, 1], loud[:, 1], atol=1e-4)
    assert (plain - loud)[:, 0].flatten(1).std(1).max() < 1e-5
    silence = torch.zeros(1, settings.samples)
    assert front_end(silence, settings).abs().max() < 1e-5


# decoding


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        ("wav", "PCM_U8"),
        ("wav", "PCM_16"),
        ("wav", "PCM_24"),
        ("wav", "PCM_32"),
        ("wav", "FLOAT"),
        ("flac", "PCM_16"),
        ("ogg", "VORBIS"),
        ("mp3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (44100, 2), (48000, 1)])
def test_every_format_rate_and_channel_count_gives_the_same_waveform(
    tmp_path: Path, tone: Tone, suffix: str, subtype: str, rate_hz: int, channels: int
) -> None:
    for i in range(6):
        tone(
            tmp_path / "ab"[i % 2] / f"{i}.{suffix}",
            seconds=1,
            rate_hz=rate_hz,
            channels=channels,
            subtype=subtype,
        )
    dataset = load(tmp_path)
    audio = waveforms(dataset, windows(dataset.clips, 1.0), 16000, 1.0)
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert audio.shape == (6, 16000)
    assert audio.dtype == np.float32
    # the tone carries noise at -40 dB; lossy and 8-bit formats add some of their own
    middle = slice(2000, 14000)
    assert np.abs(audio[:, middle] - expected[middle]).std() < 0.03


def test_a_short_recording_is_repeated_until_it_fills_the_clip(dataset: Dataset) -> None:
    once = waveforms(dataset, windows(dataset.clips[:2], 0.2), 8000, 0.2)
    twice = waveforms(dataset, windows(dataset.clips[:2], 0.5), 8000, 0.5)
    assert np.array_equal(twice, np.concatenate([once, once, once[:, :800]], axis=1))


def test_a_gain_scales_and_a_part_is_where_it_says(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.linspace(0.1, 0.9, 8000), 8000, subtype="FLOAT")
    rows = [f"x.wav,{'ab'[i % 2]},{i / 10},{i / 10 + 0.2}" for i in range(6)]
    (tmp_path / "m.csv").write_text("\n".join(["filename,label,start,end", *rows]))
    dataset = load(tmp_path)
    audio = waveforms(dataset, windows(dataset.clips, 0.2), 8000, 0.2)
    assert audio[:, 0] == pytest.approx([0.1 + 0.08 * i for i in range(6)], abs=1e-3)


@pytest.mark.parametrize(
    ("duration_s", "starts"),
    [(0.4, [0]), (1.0, [0]), (1.05, [0]), (1.5, [0, 0.5]), (3.0, [0, 1, 2]), (2.5, [0, 0.75, 1.5])],
)
def test_a_long_recording_is_covered_by_windows_of_equal_length(
    duration_s: float, starts: list[float]
) -> None:
    clip = Clip("x.wav", "a", start_s=10, duration_s=duration_s)
    cut = windows([clip], 1.0)
    assert [window.start_s - 10 for window in cut] == pytest.approx(starts)
    assert {window.length_s for window in cut} == {min(1.0, duration_s)}


def test_windows_of_one_recording_share_its_index_and_label(tmp_path: Path, tone: Tone) -> None:
    for i in range(6):
        tone(tmp_path / "ab"[i % 2] / f"{i}.wav", seconds=0.5 + 0.2 * (i % 3))
    dataset = load(tmp_path)
    training = compute(dataset, SMALL).split("train")
    assert len(training.features) == len(training.labels) == len(training.recordings)
    assert len(training.features) > len(training.clips)
    for row, recording in enumerate(training.recordings):
        clip = training.clips[recording]
        assert dataset.classes[training.labels[row]] == clip.label
    assert set(training.recordings) == set(range(len(training.clips)))


# the cache


def test_cached_features_are_the_normalised_front_end_of_the_waveforms(dataset: Dataset) -> None:
    settings = FrontEnd(8000, 0.2, 256, 256, 80, 20, deltas=1)
    features = compute(dataset, settings, splits=("train", "validation", "test"))
    for name, split in features.splits.items():
        audio = waveforms(dataset, windows(dataset.split(name), 0.2), 8000, 0.2)
        mel = front_end(torch.from_numpy(audio), settings).numpy()
        expected = (mel - features.mean[None, :, :, None]) / features.std[None, :, :, None]
        assert split.features.shape == (len(split.clips), *settings.shape)
        assert np.abs(split.features - expected).max() < (0.03 if name == "train" else 1e-5)
    training = np.asarray(features.split("train").features, np.float64)
    assert training.mean((0, 3)) == pytest.approx(0, abs=1e-2)


def test_the_normalisation_is_of_the_training_split_alone(tmp_path: Path, tone: Tone) -> None:
    for split, level in (("train", 5), ("validation", 5), ("test", 5)):
        for i in range(2 * level):
            tone(tmp_path / split / "ab"[i % 2] / f"{i}.wav")
    before = compute(load(tmp_path), SMALL)
    for i in range(10):
        tone(tmp_path / "validation" / "ab"[i % 2] / f"{i}.wav", pitch_hz=3000)
        tone(tmp_path / "test" / "ab"[i % 2] / f"{i}.wav", pitch_hz=3000)
    after = compute(load(tmp_path), SMALL)
    assert np.array_equal(before.mean, after.mean)
    assert np.array_equal(before.std, after.std)
    training = (before.split("train").features, after.split("train").features)
    assert np.array_equal(*training)
    tone(tmp_path / "train" / "a" / "0.wav", pitch_hz=3000)
    assert not np.array_equal(before.mean, compute(load(tmp_path), SMALL).mean)


def test_the_test_split_is_not_touched_until_it_is_asked_for(dataset: Dataset) -> None:
    for clip in dataset.split("test"):
        (dataset.root / clip.path).unlink()
    assert set(compute(dataset, SMALL).splits) == {"train", "validation"}
    with pytest.raises(UserError, match="changed or removed after it was checked"):
        compute(dataset, SMALL, splits=("test",))


def test_cached_features_need_no_recordings(dataset: Dataset) -> None:
    first = compute(dataset, SMALL)
    for clip in dataset.clips:
        (dataset.root / clip.path).unlink()
    second = compute(dataset, SMALL)
    assert np.array_equal(first.split("train").features, second.split("train").features)


def test_any_number_of_threads_gives_the_same_bytes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for workers in (1, 3):
        monkeypatch.setenv("NAS_CACHE", str(tmp_path / f"{workers}"))
        found.append(compute(dataset, SMALL, workers=workers))
    assert np.array_equal(found[0].split("train").features, found[1].split("train").features)
    assert np.array_equal(found[0].std, found[1].std)


RACE = """
import sys
from nas.arch import FrontEnd
from nas.dataset import load
from nas.features import compute
features = compute(load(sys.argv[1]), FrontEnd(8000, 0.2, 256, 256, 80, 20))
print(float(features.split("train").features.astype("f8").sum()))
"""


def test_two_processes_at_once_compute_one_entry(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "shared"))
    command = [sys.executable, "-c", RACE, str(dataset.root)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert results[0] == results[1]
    entries = [path for path in cache_folder("features").iterdir() if path.is_dir()]
    assert len(entries) == 1
    names = sorted(path.name for path in entries[0].iterdir())
    assert names == ["normalisation.npy", "train.npy", "validation.npy"]


def test_what_a_killed_process_left_is_neither_read_nor_kept(dataset: Dataset) -> None:
    whole = np.array(compute(dataset, SMALL).split("train").features)
    [entry] = [
        path.parent
        for path in cache_folder("features").rglob("train.npy")
        if np.array_equal(np.load(path), whole)
    ]
    (entry / "train.npy").rename(entry / ".new-half")
    (entry / ".new-half").write_bytes((entry / ".new-half").read_bytes()[:1000])
    assert np.array_equal(compute(dataset, SMALL).split("train").features, whole)
    assert not list(entry.glob(".new-*"))


def test_the_least_recently_used_front_end_is_dropped_first(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "small"))
    settings = [FrontEnd(8000, 0.2, 256, 256, 80, mels) for mels in (20, 21, 22)]
    first = compute(dataset, settings[0])
    compute(dataset, settings[1])
    folder = cache_folder("features")
    by_age = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in by_age:
        os.utime(path, (1e9, 1e9))
    compute(dataset, settings[0])  # used again, so the other one is the oldest now
    kept = {path for path in by_age if path.stat().st_mtime != 1e9}
    one = sum(path.stat().st_size for path in next(iter(kept)).iterdir())
    monkeypatch.setenv("NAS_CACHE_GB", str(2.5 * one / 2**30))
    compute(dataset, settings[2])
    left = {path for path in folder.iterdir() if path.is_dir()}
    assert len(left) == 2
    assert kept < left
    assert np.isfinite(first.split("train").features).all()


def test_clearing_the_cache_frees_it_and_the_next_call_computes_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "mine"))
    before = compute(dataset, SMALL)
    stored = sum(path.stat().st_size for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert clear_cache() == stored > 0
    left = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" for path in left)
    after = compute(dataset, SMALL)
    assert np.array_equal(before.split("train").features, after.split("train").features)


def test_features_that_another_process_is_computing_are_not_cleared(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "busy"))
    compute(dataset, SMALL)
    [entry] = [path for path in cache_folder("features").iterdir() if path.is_dir()]
    with locked(entry):
        clear_cache()
        assert (entry / "train.npy").exists()
    clear_cache()
    assert not entry.exists()


def test_a_cache_folder_that_cannot_be_made_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set NAS_CACHE to a folder you can write to"):
        compute(dataset, SMALL)


@pytest.mark.parametrize("limit", ["lots", "-1", "nan", "inf"])
def test_a_cache_limit_that_is_no_number_of_gigabytes_is_named(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("NAS_CACHE_GB", limit)
    with pytest.raises(UserError, match=f"NAS_CACHE_GB is '{limit}'"):
        compute(dataset, SMALL)
