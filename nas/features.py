"""Log-mel features of a data set, computed once per front end and memory-mapped by all workers.

One entry of the cache is one data set (by fingerprint) under one front end: an array per split,
normalised by the training split's mean and deviation, and those two. The training split is in
float16; the others are in float32, so that a network is scored on what it hears once shipped. Clips
longer than the front end's are cut into windows, shorter ones are repeated until they fill it.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio
from torch import Tensor

from nas.arch import FrontEnd
from nas.audio import Waveform, read
from nas.cache import cache_folder, evict, explained, locked, write_whole
from nas.clips import Clip, Split
from nas.dataset import Dataset
from nas.errors import UserError

FLOOR = 1e-6
_VERSION = 2
_OVERHANG = 0.1  # a remainder shorter than this share of a clip gets no window of its own
_SMALLEST_DEVIATION = 0.1
_BATCH_SAMPLES = 1 << 20


class Window(NamedTuple):
    """One clip length of a recording; `recording` counts the clips that were cut."""

    recording: int
    clip: Clip
    start_s: float
    length_s: float


@dataclass(frozen=True)
class SplitFeatures:
    """Features of one split, and which recording each row belongs to.

    `features` is [windows, 1 + deltas, mel bands, frames], mapped from disk, float16 for training
    and float32 else; `labels` and `recordings` are int64 [windows]; `clips` has one entry per
    recording.
    """

    features: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    recordings: npt.NDArray[np.int64]
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Features:
    """The splits that were asked for; `mean` and `std` are float32 [1 + deltas, mel bands]."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    splits: dict[Split, SplitFeatures]

    def split(self, name: Split) -> SplitFeatures:
        """One of the splits that were asked for."""
        return self.splits[name]


def front_end(waveforms: Tensor, settings: FrontEnd) -> Tensor:
    """Natural-log mel power spectrogram: [N, samples] float32 to [N, 1 + deltas, mels, frames].

    Hann window, HTK mel scale from 0 Hz to half the rate, no filter normalisation, floor 1e-6;
    centred frames see zeros beyond the ends. With `level` the logarithm of the clip's mean power
    is taken away. Deltas are slopes over five frames.
    """
    power = _mel_spectrogram(settings)(waveforms).clamp_min(FLOOR)
    mean = power.mean((1, 2), keepdim=True)
    channels = [power.log_() - mean.log() if settings.level else power.log_()]
    for _ in range(settings.deltas):
        channels.append(torchaudio.functional.compute_deltas(channels[-1]))
    return torch.stack(channels, dim=1)


def front_end_ms(settings: FrontEnd, runs: int = 10) -> float:
    """Milliseconds for the features of one clip on this machine: the least of some runs."""
    clip = torch.zeros(1, settings.samples)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        front_end(clip, settings)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


@lru_cache(maxsize=64)
def _mel_spectrogram(settings: FrontEnd) -> torchaudio.transforms.MelSpectrogram:
    with warnings.catch_warnings():
        # a band too narrow for the FFT stays at the floor, which the search may find out
        warnings.filterwarnings("ignore", message="At least one mel filterbank")
        return torchaudio.transforms.MelSpectrogram(
            sample_rate=settings.sample_rate_hz,
            n_fft=settings.fft,
            win_length=settings.window,
            hop_length=settings.hop,
            f_min=0.0,
            f_max=settings.sample_rate_hz / 2,
            n_mels=settings.mels,
            power=2.0,
            center=bool(settings.center),
            pad_mode="constant",
            norm=None,
            mel_scale="htk",
        )


def windows(clips: Sequence[Clip], clip_s: float) -> list[Window]:
    """Equally spaced windows that cover each clip, the last one ending where the clip ends."""
    cut = []
    for recording, clip in enumerate(clips):
        count = max(1, math.ceil(clip.duration_s / clip_s - _OVERHANG))
        spare = max(0.0, clip.duration_s - clip_s) if count > 1 else 0.0
        for i in range(count):
            start_s = clip.start_s + spare * i / max(1, count - 1)
            cut.append(Window(recording, clip, start_s, min(clip_s, clip.duration_s)))
    return cut


def waveforms(
    dataset: Dataset, part: Sequence[Window], sample_rate_hz: int, clip_s: float
) -> Waveform:
    """Raw audio of some windows: float32 [windows, samples]."""
    samples = round(sample_rate_hz * clip_s)
    out = np.empty((len(part), samples), np.float32)
    for row, window in zip(out, part, strict=True):
        path = dataset.root / window.clip.path
        try:
            audio = read(path, window.start_s, window.length_s, sample_rate_hz)
        except (OSError, soundfile.LibsndfileError):
            raise UserError(
                f"{path}: cannot be read any more; it was changed or removed after it was checked"
            ) from None
        # a short recording is repeated until it fills the window
        row[:] = np.resize(audio, samples) * np.float32(window.clip.gain)
    return out


def compute(
    dataset: Dataset,
    settings: FrontEnd,
    *,
    splits: Sequence[Split] = ("train", "validation"),
    workers: int | None = None,
) -> Features:
    """Features of some splits, from the cache or computed into it by `workers` threads.

    Processes that need the same entry at the same moment compute it once. The cache keeps within
    $NAS_CACHE_GB (default 5) by dropping what was used longest ago.
    """
    key = f"{_VERSION} {dataset.fingerprint} {settings}"
    entry = cache_folder("features") / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    with explained(), locked(entry):
        entry.mkdir(exist_ok=True)
        for name in dict.fromkeys(("train", *splits)):
            if not (entry / f"{name}.npy").exists():
                _write_split(entry, dataset, settings, name, workers or os.cpu_count() or 1)
        os.utime(entry)
        mean, std = np.load(entry / "normalisation.npy")
        found = {name: _open_split(entry, dataset, settings, name) for name in splits}
    evict(entry.parent, entry, _limit_bytes())
    return Features(mean, std, found)


def _limit_bytes() -> int:
    text = os.environ.get("NAS_CACHE_GB") or "5"
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = math.nan
    if not 0 <= limit_gb < math.inf:
        raise UserError(f"NAS_CACHE_GB is '{text}', it must be a number of gigabytes, 0 or more")
    return int(limit_gb * 2**30)


def _open_split(entry: Path, dataset: Dataset, settings: FrontEnd, name: Split) -> SplitFeatures:
    clips = dataset.split(name)
    recordings = np.array([w.recording for w in windows(clips, settings.clip_s)], np.int64)
    classes = np.array([dataset.classes.index(clip.label) for clip in clips], np.int64)
    # copy on write, as torch warns about arrays that cannot be written to
    features = np.load(entry / f"{name}.npy", mmap_mode="c")
    return SplitFeatures(features, classes[recordings], recordings, clips)


class _RowFile:
    """An .npy array that several threads fill row by row; mapping it would count as memory."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        self.file, self.row_shape, self.offset = file, shape[1:], file.tell()
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize

    def write(self, start: int, rows: Tensor) -> None:
        data = memoryview(rows.numpy().astype(self.dtype, copy=False).tobytes())
        position = self.offset + start * self.row_bytes
        while data:
            written = os.pwrite(self.file.fileno(), data, position)
            data, position = data[written:], position + written

    def read(self, part: range) -> Tensor:
        position = self.offset + part.start * self.row_bytes
        data = os.pread(self.file.fileno(), len(part) * self.row_bytes, position)
        rows = np.frombuffer(data, self.dtype).reshape(len(part), *self.row_shape)
        return torch.from_numpy(rows.astype(np.float32))


def _write_split(
    entry: Path, dataset: Dataset, settings: FrontEnd, name: Split, workers: int
) -> None:
    """Add one split to the entry, in one step; training brings the normalisation with it."""
    cut = windows(dataset.split(name), settings.clip_s)
    for leftover in entry.glob(".new-*"):
        leftover.unlink()
    with tempfile.NamedTemporaryFile("w+b", dir=entry, prefix=".new-", delete=False) as file:
        try:
            kept = np.float16 if name == "train" else np.float32
            rows = _RowFile(file, (len(cut), *settings.shape), kept)
            if name == "train":
                _write_training(rows, entry, dataset, settings, cut, workers)
            else:
                scale = torch.from_numpy(np.load(entry / "normalisation.npy"))
                _fill(rows, dataset, settings, cut, scale, workers)
            os.fsync(file.fileno())
            os.replace(file.name, entry / f"{name}.npy")
        except BaseException:
            os.unlink(file.name)
            raise


def _write_training(
    rows: _RowFile,
    entry: Path,
    dataset: Dataset,
    settings: FrontEnd,
    cut: Sequence[Window],
    workers: int,
) -> None:
    """Write the features, then divide them in place by what they turned out to be."""
    sums = _fill(rows, dataset, settings, cut, None, workers)
    scale = _scale(sums / (len(cut) * settings.frames))
    for part in _parts(len(cut), settings):
        rows.write(part.start, _normalised(rows.read(part), scale))
    stored = io.BytesIO()
    np.save(stored, scale.numpy())
    write_whole(entry / "normalisation.npy", stored.getvalue())


def _parts(total: int, settings: FrontEnd) -> list[range]:
    """Batches of windows that are worked on at once."""
    size = max(1, _BATCH_SAMPLES // settings.samples)
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _fill(
    rows: _RowFile,
    dataset: Dataset,
    settings: FrontEnd,
    cut: Sequence[Window],
    scale: Tensor | None,
    workers: int,
) -> Tensor:
    """Decode, transform and write all windows; [2, C, M] sums of the features and their squares."""
    parts = _parts(len(cut), settings)
    # one array: small results kept among large buffers would fragment the heap, by gigabytes
    sums = torch.zeros(len(parts), 2, *settings.shape[:2], dtype=torch.float64)

    def fill(number: int) -> None:
        part = parts[number]
        mine = cut[part.start : part.stop]
        audio = waveforms(dataset, mine, settings.sample_rate_hz, settings.clip_s)
        with torch.inference_mode():
            mel = front_end(torch.from_numpy(audio), settings)
            rows.write(part.start, mel if scale is None else _normalised(mel, scale))
            sums[number, 0] = mel.sum((0, 3), dtype=torch.float64)
            sums[number, 1] = mel.square().sum((0, 3), dtype=torch.float64)

    _mel_spectrogram(settings)  # built before the threads start, as it silences a warning
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(fill, range(len(parts))):
            pass
    return sums.sum(0)


def _scale(means: Tensor) -> Tensor:
    """[2, C, M] mean and deviation from the means of the features and of their squares."""
    mean, square = means
    deviation = (square - mean.square()).clamp_min(0).sqrt().clamp_min(_SMALLEST_DEVIATION)
    return torch.stack([mean, deviation]).float()


def _normalised(features: Tensor, scale: Tensor) -> Tensor:
    mean, deviation = scale[:, None, :, :, None]
    normalised: Tensor = (features - mean) / deviation
    return normalised
