"""The folder c/ of a bundle: an int8 network and its front end as C99, with a test of both.

Everything is static: constant tables, one arena that network and front end share, no heap and no
double precision. The bundle's README.md says how to build and call it.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from nas.arch import Architecture, FrontEnd
from nas.classifier import mel_points_hz
from nas.csource import network_source
from nas.errors import UserError
from nas.features import FLOOR, front_end
from nas.measure import logits

STATIC = Path(__file__).parent / "assets" / "c"
Floats = NDArray[np.float32]
Core = Literal["m4", "m7"]
FEATURE_STEP = 1 / 256  # of golden features: fixed-point numbers that float32 holds exactly
CORES: tuple[Core, ...] = ("m4", "m7")
_RING = 5
_GOLDEN_BYTES = 2_000_000
TIMEOUT_S = 300


@dataclass(frozen=True)
class Golden:
    """Clips with what ONNX Runtime answers: 16-bit `waveforms` [N, samples] and their `labels`;
    `features` [N, C, F, T] of the same clips as multiples of FEATURE_STEP and their `logits`."""

    waveforms: NDArray[np.int16]
    labels: NDArray[np.int64]
    features: NDArray[np.int16]
    logits: Floats


def golden(artifact: bytes, settings: FrontEnd, mean: Floats, std: Floats, audio: Floats) -> Golden:
    """Golden vectors of clips [N, samples] from -1 to 1, as many of them as a test board holds."""
    clips = audio[: max(1, _GOLDEN_BYTES // (2 * (settings.samples + math.prod(settings.shape))))]
    waveforms = _sixteen_bits(clips * 32768)
    mel = front_end(torch.from_numpy(waveforms / np.float32(32768)), settings).numpy()
    features = (mel - mean[:, :, None]) / std[:, :, None]
    steps = _sixteen_bits(features / FEATURE_STEP)
    exact = steps * np.float32(FEATURE_STEP)
    return Golden(waveforms, logits(artifact, features).argmax(1), steps, logits(artifact, exact))


def _sixteen_bits(values: Floats) -> NDArray[np.int16]:
    return np.rint(values).clip(-32768, 32767).astype(np.int16)


def firmware(
    artifact: bytes,
    architecture: Architecture,
    mean: Floats,
    std: Floats,
    labels: Sequence[str],
    audio: Floats,
) -> dict[str, bytes]:
    """Files of c/ by name, with golden vectors of the clips `audio` [N, samples].

    `artifact` is the int8 network; `mean` and `std` are the features' normalisation [C, F].
    Raises UserError if the network is not int8 or has an operator that has no C.
    """
    refuse_without_c(architecture)
    settings = architecture.front_end
    try:
        network = network_source(artifact, workspace_bytes(settings))
    except UserError as error:
        kinds = ", ".join(dict.fromkeys(stage.kind for stage in architecture.stages))
        raise UserError(f"{error}; the network's blocks are {kinds}: choose others") from None
    made = {
        "network.c": network.text,
        "frontend_tables.h": _tables(settings, mean, std),
        "classifier.h": _header(settings, labels),
    }
    static = {path.name: path.read_bytes() for path in STATIC.iterdir()}
    vectors = golden(artifact, settings, mean, std, audio)
    return {
        **static,
        **{name: text.encode() for name, text in made.items()},
        "golden.h": _golden_header(vectors, _tolerance(architecture)),
    }


def refuse_without_c(architecture: Architecture) -> None:
    """Raises UserError if no network of this architecture can be written in C."""
    scheme, fft = architecture.quantization, architecture.front_end.fft
    if scheme.scheme != "int8":
        raise UserError(
            f"C for microcontrollers needs an int8 network, this one is {scheme}: "
            "choose a trial in int8"
        )
    if fft % 2:
        raise UserError(
            f"the FFT of the front end in C has an even length, this one has {fft}: "
            "choose a trial with an even one"
        )


def workspace_bytes(settings: FrontEnd) -> int:
    """What the front end keeps in memory: two buffers of the FFT, and frames to take slopes of."""
    frames = _RING * (1 + settings.deltas) if settings.deltas else 1
    return 4 * (2 * settings.fft + frames * settings.mels)


def _header(settings: FrontEnd, labels: Sequence[str]) -> str:
    names = ", ".join(json.dumps(label, ensure_ascii=False) for label in labels)
    return f"""/* Generated. A clip is {settings.clip_s:g} s of mono audio from -1 to 1. */

#ifndef CLASSIFIER_H
#define CLASSIFIER_H

#define SAMPLE_RATE_HZ {settings.sample_rate_hz}
#define SAMPLES {settings.samples}
#define CLASSES {len(labels)}
#define LABELS {names}

/* Label number of a clip of SAMPLES samples; writes CLASSES logits. Not reentrant. */
int classify(const float *waveform, float *logits);

/* The same from normalised features [channel][band][frame]. */
int classify_features(const float *features, float *logits);

#endif
"""


def _tables(settings: FrontEnd, mean: Floats, std: Floats) -> str:
    """Constants of the front end as C: FFT, window, mel bands, normalisation."""
    fft, window, bands = settings.fft, settings.window, settings.mels
    angle = 2 * np.pi * np.arange(fft // 2) / fft
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window // 2 + 1) / window)
    edges, rising = _mel(settings)
    numbers = {
        "FFT": fft,
        "WINDOW": window,
        "HOP": settings.hop,
        "CENTER": settings.center,
        "FRAMES": settings.frames,
        "BANDS": bands,
        "DELTAS": settings.deltas,
        "LEVEL": settings.level,
    }
    channels = 1 + settings.deltas
    return "\n".join(
        [
            "/* Generated: tables of the front end. */\n",
            "#include <stdint.h>\n",
            *(f"#define {name} {value}" for name, value in numbers.items()),
            f"#define FLOOR {FLOOR}f\n",
            "/* cosine and minus sine of 2 pi k / FFT */",
            _array(f"float TURNS[{fft // 2}][2]", np.stack([np.cos(angle), -np.sin(angle)], 1)),
            *[_array(f"float HANN[{len(hann)}]", hann)] * (window != fft),
            "/* first bin of each edge of the bands; share of each bin in the band that rises */",
            _array(f"uint16_t EDGES[{bands + 2}]", edges),
            _array(f"float RISING[{len(rising)}]", rising),
            _array(f"float MEAN[{channels}][{bands}]", mean),
            _array(f"float DEVIATION[{channels}][{bands}]", std),
            "",
        ]
    )


def _mel(settings: FrontEnd) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bins where each segment between two mel points starts, and the place of each bin in its
    segment, 0 to 1: it rises in one triangle as it falls in the one before."""
    points = mel_points_hz(settings)
    hz = np.linspace(0, settings.sample_rate_hz // 2, settings.fft // 2 + 1)
    edges = np.searchsorted(hz, points)
    segment = np.clip(np.searchsorted(points, hz, side="right") - 1, 0, settings.mels)
    return edges, (hz - points[segment]) / (points[segment + 1] - points[segment])


def _array(declaration: str, values: NDArray[np.generic]) -> str:
    """A constant array in C; values of more than one axis are written row by row."""
    rows = values.reshape(len(values), -1) if values.ndim > 1 else values[None]
    lines = [
        textwrap.fill(", ".join(_literal(v) for v in row.tolist()), 98, break_on_hyphens=False)
        for row in rows
    ]
    body = lines[0] if values.ndim == 1 else ",\n".join(f"{{{line}}}" for line in lines)
    return f"static const {declaration} = {{\n{body}\n}};"


def _literal(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{np.float32(value).item().hex()}f"


def _tolerance(architecture: Architecture) -> float:
    """Of a logit, as a share of the largest. Where values that float arithmetic made are quantised,
    one between two integers may go to either; elsewhere only sums of logits differ in order."""
    norms = any(stage.response_norm for stage in architecture.stages)
    stem = architecture.quantization.keep_float in ("stem", "both")
    return 1e-3 if norms or stem else 1e-5


def _golden_header(vectors: Golden, tolerance: float) -> bytes:
    """golden.h: inputs in 16 bits, what must come out, and how far a logit may be off."""
    clips, samples = vectors.waveforms.shape
    most = tolerance * max(1.0, float(np.abs(vectors.logits).max()))
    return "\n".join(
        [
            "/* Generated: clips with the labels and logits that they must give. */\n",
            "#include <stdint.h>\n",
            f"#define CLIPS {clips}",
            f"#define FEATURES {vectors.features[0].size}",
            f"#define FEATURE_STEP {_literal(FEATURE_STEP)}",
            f"#define TOLERANCE {_literal(most)}\n",
            _array(f"int16_t WAVEFORMS[CLIPS][{samples}]", vectors.waveforms),
            _array("int WAVEFORM_LABELS[CLIPS]", vectors.labels),
            _array("int16_t FEATURE_STEPS[CLIPS][FEATURES]", vectors.features.reshape(clips, -1)),
            _array("float LOGITS[CLIPS][CLASSES]", vectors.logits),
            "",
        ]
    ).encode()


class Board(msgspec.Struct, frozen=True):
    """The classifier on a simulated board, by its golden vectors: `clips` of them, how many agree,
    instructions (not cycles) of one clip, and flash and RAM of the linked image without stack."""

    core: str
    clips: int
    equal_labels: int
    equal_logits: int
    equal_features: int
    equal_waveform_labels: int
    network_instructions: int
    front_end_instructions: int
    flash_bytes: int
    ram_bytes: int

    @property
    def right(self) -> bool:
        """Whether all agrees on all clips."""
        equal = self.equal_labels, self.equal_logits, self.equal_features
        return min(*equal, self.equal_waveform_labels) == self.clips


_PRINTED = set(Board.__struct_fields__) - {"core", "flash_bytes", "ram_bytes"}


def missing_tools() -> list[str]:
    """Programs that `simulate` needs and that are not installed here."""
    tools = ("make", "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    return [tool for tool in tools if not shutil.which(tool)]


def simulate(folder: Path, core: Core) -> Board:
    """Builds c/ in `folder` for a Cortex-M4 or M7 and runs it in QEMU, some seconds.

    Raises UserError if a tool is missing, or if it does not build or run to its end.
    """
    if missing := missing_tools():
        raise UserError(f"a simulated board needs {', '.join(missing)}: install them")
    _make(folder, f"check.{core}", f"size.{core}")
    # make fails where clips do not agree, which the figures tell
    printed, _ = _output(["make", "--silent", core], folder)
    spoken = [line.split() for line in printed.splitlines()]
    figures = {words[0]: int(words[1]) for words in spoken if words and words[0] in _PRINTED}
    if figures.keys() != _PRINTED:
        raise UserError(f"the simulated board did not run to its end: {_last_line(printed)}")
    sizes, _ = _output(["arm-none-eabi-size", f"size.{core}"], folder)
    text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
    return Board(core=core, flash_bytes=text + data, ram_bytes=data + bss, **figures)


def _make(folder: Path, *goals: str) -> None:
    said, failed = _output(["make", "--silent", *goals], folder)
    if failed:
        raise UserError(f"`make --silent {' '.join(goals)}` in c/ failed: {_last_line(said)}")


def _output(command: Sequence[str], folder: Path) -> tuple[str, bool]:
    """What the command printed, and whether it failed."""
    # a board speaks to standard error
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        spoken = " ".join(command)
        raise UserError(f"`{spoken}` in c/ did not end within {TIMEOUT_S} s") from None
    return done.stdout, done.returncode != 0


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


@dataclass(frozen=True)
class Firmware:
    """The files of c/ and the boards that ran them, or why none did."""

    files: dict[str, bytes]
    boards: list[Board]
    unmeasured: str = ""


def tried(files: dict[str, bytes]) -> Firmware:
    """`files` on simulated boards of all CORES, if the tools for it are installed."""
    try:
        with tempfile.TemporaryDirectory() as name:
            for path, content in files.items():
                (Path(name) / path).write_bytes(content)
            return Firmware(files, [simulate(Path(name), core) for core in CORES])
    except (UserError, OSError) as error:  # a full disk is no reason to lose the training
        return Firmware(files, [], str(error))
