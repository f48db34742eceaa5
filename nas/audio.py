"""Opens audio files: a verdict on each, and mono waveforms at a wanted rate. No torch."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from stat import S_ISREG

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Waveform = npt.NDArray[np.float32]

SILENCE_PEAK = 2.0**-15  # one step of 16-bit audio
_BLOCK = 1 << 18
_OPEN_ENDED = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # chunk lengths that streaming writers leave behind
_SHORT_CHUNK = re.compile(r"(?:data|SSND) : (\d+) \(should be (\d+)\)")
_NO_LAST_PAGE = "without an End-Of-Stream flag"


class AudioFile(msgspec.Struct, frozen=True, array_like=True):
    """What decoding a file once has shown. `problem` is empty if it can be used."""

    size_bytes: int
    mtime_ns: int
    digest: str
    frames: int
    sample_rate_hz: int
    channels: int
    format: str
    problem: str

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate_hz if self.sample_rate_hz else 0.0


def examine(path: Path) -> AudioFile:
    """Decode the whole file and say what it is; never raises for a file's sake."""
    try:
        stat = os.stat(path)
        if not S_ISREG(stat.st_mode):
            return AudioFile(0, 0, "", 0, 0, 0, "", "not a file")
        digest = _digest(path)
    except OSError as error:
        return AudioFile(0, 0, "", 0, 0, 0, "", (error.strerror or "unreadable").lower())
    frames, rate, channels, kind = 0, 0, 0, ""
    try:
        with soundfile.SoundFile(path) as file:
            frames, rate, channels = file.frames, file.samplerate, file.channels
            kind = f"{file.format} {file.subtype}"
            problem = _decoding_problem(file)
    except (soundfile.LibsndfileError, MemoryError) as error:
        reason = getattr(error, "error_string", "too large").rstrip(".")
        problem = f"not readable as audio ({reason})" if stat.st_size else "empty file"
    return AudioFile(stat.st_size, stat.st_mtime_ns, digest, frames, rate, channels, kind, problem)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _decoding_problem(file: soundfile.SoundFile) -> str:
    peak, decoded = 0.0, 0
    # not file.blocks(), which hides that an MP3 ends before its header says
    while len(block := file.read(_BLOCK, dtype="float32")):
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
        if not np.isfinite(block).all():
            return "holds NaN or infinite samples"
        decoded += len(block)
    cut = _truncated(file, decoded)
    if cut or not decoded:
        return cut or "holds no samples"
    return "" if peak > SILENCE_PEAK else "silent"


def _truncated(file: soundfile.SoundFile, decoded: int) -> str:
    """libsndfile shortens a cut WAV, AIFF or Ogg silently, but its log tells."""
    log: str = file.extra_info
    chunk = _SHORT_CHUNK.search(log)
    if decoded < file.frames:
        return f"truncated ({decoded} of {file.frames} samples)"
    if chunk and int(chunk[1]) > int(chunk[2]) and int(chunk[1]) not in _OPEN_ENDED:
        return f"truncated ({chunk[2]} of {chunk[1]} bytes)"
    return "truncated (the last Ogg page is missing)" if _NO_LAST_PAGE in log else ""


def read(path: Path, start_s: float, length_s: float, sample_rate_hz: int) -> Waveform:
    """[samples] of a part of a file, channels averaged, resampled by soxr at high quality.

    Raises soundfile.LibsndfileError if the file cannot be read.
    """
    with soundfile.SoundFile(path) as file:
        rate: int = file.samplerate
        file.seek(min(round(start_s * rate), max(0, file.frames - 1)))
        part = file.read(round(length_s * rate), dtype="float32", always_2d=True)
    mono: Waveform = part[:, 0] if part.shape[1] == 1 else part.mean(axis=1)
    return mono if rate == sample_rate_hz else soxr.resample(mono, rate, sample_rate_hz)
