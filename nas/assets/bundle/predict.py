"""Says what recordings hold: python predict.py FILE_OR_FOLDER... [--top N] [--json]

--stream reads raw samples from stdin instead, --microphone listens: an answer every half clip.
Needs onnxruntime, numpy and soundfile (requirements.txt); --microphone needs sounddevice as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported

try:
    import numpy as np
    import onnxruntime
    import soundfile
except ImportError as error:
    sys.exit(f"predict.py needs {error.name}: pip install -r requirements.txt")

AUDIO = {".wav", ".wave", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"}
OVERHANG = 0.1  # a remainder shorter than this share of a clip gets no window of its own
Array = Any


class Classifier:
    """classifier.onnx and what its metadata say: labels, sample rate, samples of one clip."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Else int8 sums overflow on x86 CPUs without VNNI; other CPUs ignore it.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        facts = self.session.get_modelmeta().custom_metadata_map
        self.labels: list[str] = json.loads(facts["labels"])
        self.rate_hz, self.samples = int(facts["sample_rate_hz"]), int(facts["samples"])
        self.clip_s = float(facts["clip_s"])

    def probabilities(self, path: Path) -> Array:
        """[classes], the mean over windows of one clip length that cover the recording."""
        total, count = np.zeros(len(self.labels)), 0
        for window in self.windows(path):
            total, count = total + self.run(window), count + 1
        return total / count

    def run(self, waveform: Array) -> Array:
        """[classes] for [samples] of audio at the classifier's own rate."""
        result: Array = self.session.run(["probabilities"], {"waveform": waveform[None]})[0][0]
        return result

    def windows(self, path: Path) -> Iterator[Array]:
        """Equally spaced windows, the last one ending where the recording ends; a recording that
        is shorter than a clip is repeated until it fills it. As in training."""
        with soundfile.SoundFile(path) as file:
            rate, length_s = file.samplerate, file.frames / file.samplerate
            if not file.frames:
                raise ValueError("holds no samples")
            count = max(1, math.ceil(length_s / self.clip_s - OVERHANG))
            spare_s = max(0.0, length_s - self.clip_s) if count > 1 else 0.0
            for i in range(count):
                start = round(spare_s * i / max(1, count - 1) * rate)
                file.seek(min(start, file.frames - 1))
                length = round(min(self.clip_s, length_s) * rate)
                part = file.read(length, dtype="float32", always_2d=True)
                if len(part) < min(length, file.frames - start):
                    raise ValueError("is truncated")
                if not np.isfinite(part).all():
                    raise ValueError("holds NaN or infinite samples")
                audio = resample(part.mean(axis=1), rate, self.rate_hz)
                yield np.resize(audio, self.samples).astype(np.float32)


def resample(audio: Array, rate_hz: int, wanted_hz: int) -> Array:
    """[samples] at another rate: a sinc of 32 zero crossings a side under a Kaiser window, its
    cut-off at 95 % of the lower of the two half rates; zeros beyond the ends."""
    if rate_hz == wanted_hz:
        return audio
    common = math.gcd(rate_hz, wanted_hz)
    up, down = wanted_hz // common, rate_hz // common
    cutoff = 0.95 * min(1, up / down)
    half = math.ceil(32 / cutoff)
    rows = np.lib.stride_tricks.sliding_window_view(np.pad(audio, half), 2 * half)
    out = np.empty(max(1, round(len(audio) * up / down)), np.float32)
    for first in range(min(up, len(out))):  # every up-th sample sees the same taps
        position, phase = divmod(first * down, up)
        away = phase / up - np.arange(1 - half, 1 + half)
        kaiser = np.i0(9 * np.sqrt(1 - (away / half) ** 2)) / np.i0(9)
        taps = (cutoff * np.sinc(cutoff * away) * kaiser).astype(np.float32)
        same = out[first::up]
        same[:] = rows[position + 1 :: down][: len(same)] @ taps
    return out


def recordings(paths: list[Path]) -> Iterator[Path]:
    """The files as given, and the audio files in the folders, sorted; no hidden ones."""
    for path in paths:
        if path.is_dir():
            within = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO)
            yield from (p for p in within if not hidden(p.relative_to(path)))
        else:
            yield path


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def best(labels: list[str], probabilities: Array, top: int) -> list[dict[str, Any]]:
    """The most probable labels, best first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"label": labels[i], "probability": float(probabilities[i])} for i in order]


def words(found: list[dict[str, Any]]) -> str:
    return ", ".join(f"{f['label']} ({f['probability']:.0%})".replace("%", " %") for f in found)


def predict(classifier: Classifier, paths: list[Path], top: int, as_json: bool) -> int:
    """Prints a line per recording, or one JSON list; 2 if one of them could not be read."""
    status, documents = 0, []
    files = list(recordings(paths))
    if not files:
        print(f"predict.py: no audio files in {', '.join(map(str, paths))}", file=sys.stderr)
        status = 2
    for path in files:
        try:
            found = best(classifier.labels, classifier.probabilities(path), top)
        # soundfile raises TypeError for a file of raw samples
        except (OSError, ValueError, TypeError, soundfile.LibsndfileError) as error:
            reason = getattr(error, "error_string", error)
            print(f"predict.py: {path}: cannot be read as audio: {reason}", file=sys.stderr)
            status = 2
            continue
        if as_json:
            documents.append({"path": str(path), **found[0], "top": found})
        else:
            print(f"{path}: {words(found)}", flush=True)
    if as_json:
        print(json.dumps(documents, indent=2, ensure_ascii=False))
    return status


def follow(classifier: Classifier, blocks: Iterator[Array], top: int) -> int:
    """Prints what the last clip length of a stream holds, after each block of half a clip; a
    stream that ends before its first clip is full is repeated until it fills it."""
    heard, samples = np.zeros(0, np.float32), 0
    for block in blocks:
        heard = np.concatenate([heard, block])[-classifier.samples :]
        samples += len(block)
        if len(heard) == classifier.samples:
            say(classifier, heard, samples, top)
    if not samples:
        print("predict.py: the stream holds no samples", file=sys.stderr)
        return 2
    if samples < classifier.samples:
        say(classifier, np.resize(heard, classifier.samples), samples, top)
    return 0


def say(classifier: Classifier, waveform: Array, samples: int, top: int) -> None:
    found = words(best(classifier.labels, classifier.run(waveform), top))
    print(f"{samples / classifier.rate_hz:.2f} s: {found}", flush=True)


def stdin_blocks(count: int) -> Iterator[Array]:
    """Blocks of `count` samples of little-endian float32 from stdin, the last one shorter."""
    while len(data := sys.stdin.buffer.read(4 * count)) >= 4:
        yield np.frombuffer(data[: len(data) // 4 * 4], "<f4")


def listen(classifier: Classifier, top: int) -> int:
    """Follows the microphone until interrupted."""
    try:
        import sounddevice  # type: ignore[import-not-found]
    except (ImportError, OSError) as error:
        print(
            "predict.py: --microphone needs the package sounddevice and the PortAudio library "
            f"({error}): pip install sounddevice",
            file=sys.stderr,
        )
        return 2
    step = max(1, classifier.samples // 2)
    try:
        with sounddevice.InputStream(classifier.rate_hz, channels=1, dtype="float32") as stream:
            blocks = (stream.read(step)[0][:, 0] for _ in iter(int, 1))
            return follow(classifier, blocks, top)
    except sounddevice.PortAudioError as error:
        print(f"predict.py: the microphone cannot be opened: {error}", file=sys.stderr)
        return 2


def main() -> int:
    parser = argparse.ArgumentParser(description="Says what recordings hold.")
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--microphone", action="store_true", help="listen instead")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read raw mono float32 samples at the classifier's rate from stdin instead",
    )
    parser.add_argument("--top", type=int, default=1, metavar="N", help="labels to name")
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")
    options = parser.parse_args()
    if options.top < 1:
        parser.error(f"--top is {options.top}, it must be 1 or more")
    if [bool(options.paths), options.microphone, options.stream].count(True) != 1:
        parser.error("give recordings, or --microphone, or --stream")
    classifier = Classifier(Path(__file__).resolve().parent / "classifier.onnx")
    if options.microphone:
        return listen(classifier, options.top)
    if options.stream:
        return follow(classifier, stdin_blocks(max(1, classifier.samples // 2)), options.top)
    return predict(classifier, options.paths, options.top, options.json)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` perhaps, has had enough
        sys.stderr.close()
