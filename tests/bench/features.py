"""Features: computed once, then mapped

Decoding, resampling and log-mel (16 kHz, 64 bands, hop 320) of whole data sets, with the check
and hash of every file apart; the plain loop reads one file after the other with soundfile,
resamples and transforms it with torchaudio and keeps the result. A warm start is what a trial
waits for when its front end is in the cache. The last row, still to be measured, is 100,000
generated clips of one second, through the check, the features and one epoch of a training on six in
ten of them: its peak memory holds Python, torch (about 500 MB), the features that are mapped and
all else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import soundfile
import torch
import torchaudio

from nas.arch import FrontEnd
from nas.dataset import load
from nas.features import compute

Row = dict[str, object]
SPLITS = ("train", "validation", "test")


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Rows of the table: the built-in data set, ESC-10 if it is there, and a large one."""
    yield "synthetic-scenes, 1,100 x 2 s, 16 kHz WAV", partial(throughput, "synthetic-scenes")
    if os.environ.get("NAS_DATA"):
        esc10 = str(Path(os.environ["NAS_DATA"]) / "ESC-10")
        yield "ESC-10, 400 x 5 s, 44.1 kHz OGG", partial(throughput, esc10)
    yield "100,000 x 1 s, 16 kHz WAV, generated", many_clips


def throughput(path: str) -> Row:
    """Clips a second on one core and on all, against the plain loop on one core."""
    dataset = load(path)
    settings = FrontEnd(16000, dataset.clip_s, 1024, 1024, 320, 64)
    row: Row = {"clips": len(dataset.clips)}
    files = [str(dataset.root / clip.path) for clip in dataset.clips]
    row["plain loop, clips/s"] = round(len(files) / timed(partial(plain_loop, files, settings)))
    for workers in (1, os.cpu_count() or 1):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["NAS_CACHE"] = cache
            cold_s = timed(lambda w=workers: compute(dataset, settings, splits=SPLITS, workers=w))
            row[f"{workers} threads, clips/s"] = round(len(files) / cold_s)
            row["cold start, s"] = round(cold_s, 2)
            row["warm start, s"] = round(timed(partial(compute, dataset, settings)), 4)
    return row


def timed(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def plain_loop(files: list[str], settings: FrontEnd) -> None:
    """What one would write first: one file at a time, torchaudio for all but the decoding."""
    torch.set_num_threads(1)
    mel = torchaudio.transforms.MelSpectrogram(
        settings.sample_rate_hz, settings.fft, hop_length=settings.hop, n_mels=settings.mels
    )
    kept = []
    for path in files:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = torch.from_numpy(audio).mean(1)
        mono = torchaudio.functional.resample(mono, rate, settings.sample_rate_hz)
        kept.append(torch.log(mel(mono[: settings.samples]) + 1e-6))


LARGE = """
import resource, sys, time
from nas.arch import parse
from nas.dataset import load
from nas.features import compute
from nas.pipeline import Job, trained
from nas.record import Proxy
from nas.shipped import load_target

network = parse(sys.argv[2])
times = [time.perf_counter()]
dataset = load(sys.argv[1])
times.append(time.perf_counter())
training = compute(dataset, network.front_end).split("train")
times.append(time.perf_counter())
trained(network, Job(dataset, load_target("host"), Proxy(epochs=1, batch=256)), training, 0)
times.append(time.perf_counter())
print(*times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
TRAINED = (
    "logmel_r16000_t1_f512_w480_h160_m40_d0_c1/conv_n1_k3x3_s2x2_c8_relu_q0_g0_p0/gap_c0_p0/float32"
)


def many_clips(count: int = 100_000) -> Row:
    """Time and peak memory of a first and of a second trial of one epoch on generated clips."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        write_clips(root, count)
        environment = os.environ | {"NAS_CACHE": folder + "/cache"}
        cold, warm = (_trial(root, environment) for _ in range(2))
    return {
        "clips": count,
        "check, s": round(cold[0]),
        f"{os.cpu_count()} threads, clips/s": round(0.8 * count / cold[1]),
        "cold start, s": round(cold[0] + cold[1]),
        "warm check, s": round(warm[0], 1),
        "warm start, s": round(warm[1], 4),
        "training, clips/s": round(0.6 * count / warm[2]),
        "peak memory, MB": round(max(cold[3], warm[3])),
    }


def _trial(root: Path, environment: dict[str, str]) -> tuple[float, float, float, float]:
    """Seconds for the check, the features and the training, and MB of memory at most."""
    command = [sys.executable, "-c", LARGE, str(root), TRAINED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    start, checked, computed, trained, peak = map(float, done.stdout.split())
    return checked - start, computed - checked, trained - computed, peak


def write_clips(root: Path, count: int) -> None:
    noise = np.random.default_rng(0).integers(-8000, 8000, 16000 + count, dtype="<i2")
    for number in range(count):
        folder = root / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / f"{number:06}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(noise[number : number + 16000].tobytes())
