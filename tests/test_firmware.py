"""The C of a network gives ONNX Runtime's answers, on this machine and on simulated Cortex-M."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_network import awake
from test_quantize import BLOCKS, STEM, clips, quantized

from nas import features
from nas.arch import FrontEnd, Quantization, parse
from nas.cost import estimate
from nas.csource import network_source
from nas.errors import UserError
from nas.firmware import firmware, simulate, tried
from nas.measure import logits
from nas.network import build, to_onnx
from nas.published import architecture_named
from nas.quantize import quantize

CLASSES = 5
CHANNEL, BOTH_FLOAT = Quantization("int8"), Quantization("int8", "channel", "both")
OTHERS = [Quantization("int8", "tensor"), BOTH_FLOAT]
STRICT = "-std=c99 -pedantic -Wall -Wextra -Werror -Wdouble-promotion -O2 -fno-math-errno"
C_FLOAT = ctypes.POINTER(ctypes.c_float)

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
needs_board = pytest.mark.skipif(
    not shutil.which("qemu-system-arm") or not shutil.which("arm-none-eabi-gcc"),
    reason="needs qemu-system-arm, gcc-arm-none-eabi and libnewlib-arm-none-eabi",
)


def written(folder: Path, artifact, architecture, classes=CLASSES) -> Path:
    """c/ of the network in `folder`, for features of any normalisation and noise as audio."""
    shape = architecture.front_end.shape[:2]
    mean, std = np.full(shape, -3, np.float32), np.full(shape, 2.5, np.float32)
    noise = np.random.default_rng(1).standard_normal((3, architecture.front_end.samples))
    audio = noise.astype(np.float32) / 10
    labels = [f"class {i}" for i in range(classes)]
    folder.mkdir(exist_ok=True)
    for name, content in firmware(artifact, architecture, mean, std, labels, audio).items():
        (folder / name).write_bytes(content)
    return folder


def compiled(folder: Path, *sources: str):
    """These sources as a library of this process."""
    command = f"gcc {STRICT} -ffp-contract=off -shared -fPIC -o lib.so {' '.join(sources)} -lm"
    subprocess.run(command.split(), cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "lib.so"))


def answers(library, function: str, inputs, classes=CLASSES):
    """(labels, logits) of a function of classifier.h."""
    found = np.empty((len(inputs), classes), np.float32)
    labels = []
    for values, row in zip(np.ascontiguousarray(inputs, np.float32), found, strict=True):
        pointers = (array.ctypes.data_as(C_FLOAT) for array in (values, row))
        labels.append(getattr(library, function)(*pointers))
    return labels, found


def block_network(block: str, quantization, head="gap_c0_p0"):
    architecture = parse(f"{STEM}/{block}/{head}/{quantization}")
    return architecture, quantized(block, quantization).SerializeToString()


@needs_gcc
@pytest.mark.parametrize(
    "quantization", [CHANNEL, *(pytest.param(q, marks=pytest.mark.slow) for q in OTHERS)], ids=str
)
@pytest.mark.parametrize("block", BLOCKS)
def test_logits_are_those_of_onnx_runtime(block, quantization, tmp_path):
    architecture, artifact = block_network(block, quantization)
    library = compiled(
        written(tmp_path, artifact, architecture), "network.c", "kernels.c", "frontend.c"
    )
    inputs = clips(3, 12)
    expected = logits(artifact, inputs)
    labels, found = answers(library, "classify_features", inputs)
    # Equal but for the order of float sums: one step of an integer would show. Where a stem or a
    # response norm in float is quantised, a value between two integers may go to the other one.
    in_float = quantization == BOTH_FLOAT or "_o1_" in block
    np.testing.assert_allclose(found, expected, atol=1e-3 if in_float else 3e-6)
    assert labels == expected.argmax(1).tolist()


@pytest.mark.parametrize("quantization", [CHANNEL, BOTH_FLOAT], ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_the_arena_is_what_the_cost_model_promised(block, quantization):
    architecture, artifact = block_network(block, quantization)
    promised = estimate(architecture, CLASSES).peak_ram_bytes
    # Beside the maps there are two windows of 4x4x16 of this small network's input, in a row.
    unrolled = 512 if "k4x4" in block else 0
    arena = network_source(artifact, 0).arena_bytes
    assert arena == pytest.approx(promised, rel=0.05) or arena == promised + unrolled


FRONT_ENDS = [
    FrontEnd(16000, 0.5, 512, 480, 160, 40),
    FrontEnd(16000, 0.5, 640, 640, 320, 10, center=0),
    FrontEnd(48000, 0.3, 2048, 2048, 1024, 128, deltas=2),
    FrontEnd(8000, 0.2, 250, 201, 100, 24, deltas=1),
    FrontEnd(16000, 0.3, 512, 512, 256, 20, level=1),
]
RECORDER = """
#include "network.h"
static float seen[{count}], work[{work}];
void network_set(int channel, int band, int frame, float value)
{{ seen[(channel * {bands} + band) * {frames} + frame] = value; }}
float *network_workspace(void) {{ return work; }}
void network_run(float *out) {{ for (int i = 0; i < {count}; i++) out[i] = seen[i]; }}
"""


@needs_gcc
@pytest.mark.parametrize(
    "settings", FRONT_ENDS, ids=lambda s: f"fft{s.fft}-deltas{s.deltas}-level{s.level}"
)
def test_the_front_end_is_within_a_thousandth_of_the_features(settings, tmp_path):
    plain = parse(f"{STEM}/gap_c0_p0/int8_channel_none")
    architecture = replace(plain, front_end=settings)
    folder = written(tmp_path, small_artifact(architecture), architecture)
    channels, bands, frames = settings.shape
    count = math.prod(settings.shape)
    work = 2 * settings.fft + 15 * bands
    recorder = RECORDER.format(count=count, work=work, bands=bands, frames=frames)
    (folder / "recorder.c").write_text(recorder)
    header = (folder / "classifier.h").read_text()
    header = re.sub("#define CLASSES .*", f"#define CLASSES {count}", header)
    (folder / "classifier.h").write_text(header)
    library = compiled(folder, "recorder.c", "frontend.c")
    random = np.random.default_rng(2)
    loudness = np.array([[1.0], [0.01], [0.0]])
    audio = (loudness * random.uniform(-1, 1, (3, settings.samples))).astype(np.float32)
    _, found = answers(library, "classify", audio, count)
    expected = features.front_end(torch.from_numpy(audio), settings).numpy()
    np.testing.assert_allclose(found.reshape(expected.shape), (expected + 3) / 2.5, atol=1e-3)


def small_artifact(architecture):
    torch.manual_seed(0)
    shape = architecture.front_end.shape
    noise = np.random.default_rng(0).standard_normal((4, *shape), np.float32)
    network = awake(build(architecture, CLASSES))
    return quantize(to_onnx(network, shape), architecture.quantization, noise).SerializeToString()


@needs_board
@pytest.mark.parametrize(
    "name", ["dscnn-s", pytest.param("micronet-kws-s", marks=pytest.mark.slow)]
)
def test_published_networks_run_on_simulated_boards(name, tmp_path):
    architecture, classes = architecture_named(name)
    torch.manual_seed(1)
    network = awake(build(architecture, classes))
    shape = architecture.front_end.shape
    noise = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
    artifact = quantize(to_onnx(network, shape), CHANNEL, noise).SerializeToString()
    cost = estimate(architecture, classes)
    files = written(tmp_path, artifact, architecture, classes)
    for core in ("m4", "m7"):
        board = simulate(files, core)
        assert board.right and board.clips == 3
        assert board.network_instructions < 3.2 * cost.macs
        assert board.ram_bytes == pytest.approx(cost.peak_ram_bytes, rel=0.05)
        assert board == simulate(files, core)  # counts repeat exactly
    symbols = subprocess.run(
        ["arm-none-eabi-nm", "size.m4"], cwd=files, capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(r"__aeabi_d\w+|malloc|_sbrk", symbols)


@needs_gcc
@needs_board
@pytest.mark.parametrize(
    "file, sound, broken, told",
    [
        ("frontend.c", "waveform[at] * hann(n)", "waveform[at]", "equal_features"),
        ("kernels.c", "(float)sum *", "(float)(sum + 500) *", "equal_logits"),
    ],
)
def test_c_that_is_wrong_says_so_here_and_on_a_board(file, sound, broken, told, tmp_path):
    architecture = parse(f"{STEM}/conv_n1_k3x3_s2x2_c8_relu_q0_g0_p0/gap_c0_p0/{CHANNEL}")
    folder = written(tmp_path / "c", small_artifact(architecture), architecture)
    assert subprocess.run(["make"], cwd=folder, capture_output=True).returncode == 0
    text = (folder / file).read_text()
    assert sound in text
    (folder / file).write_text(text.replace(sound, broken))
    assert subprocess.run(["make"], cwd=folder, capture_output=True).returncode != 0
    made = tried({path.name: path.read_bytes() for path in folder.iterdir()})
    assert not made.unmeasured and [board.core for board in made.boards] == ["m4", "m7"]
    assert all(getattr(board, told) < board.clips and not board.right for board in made.boards)


@needs_board
def test_a_board_that_does_not_answer_in_time_is_told_and_loses_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.firmware.TIMEOUT_S", 0.01)
    made = tried({"Makefile": b"check.m4:\n\tsleep 5\n"})
    told = "`make --silent check.m4 size.m4` in c/ did not end within 0.01 s"
    assert made.boards == [] and made.unmeasured == told
    assert made.files.keys() == {"Makefile"}


def test_what_has_no_c_is_named():
    architecture, artifact = block_network("skip_s2x3", CHANNEL)
    half = replace(architecture, quantization=Quantization("float16"))
    clip = np.zeros((1, architecture.front_end.samples), np.float32)
    scale = np.ones((1, 32), np.float32)
    with pytest.raises(UserError, match="needs an int8 network, this one is float16"):
        firmware(artifact, half, scale, scale, ["a"], clip)
    odd = replace(architecture, front_end=replace(architecture.front_end, fft=511))
    with pytest.raises(UserError, match="an even length, this one has 511"):
        firmware(artifact, odd, scale, scale, ["a"], clip)
    foreign = to_onnx(torch.nn.Sequential(torch.nn.Softmax(1), torch.nn.Flatten()), (1, 8, 8))
    with pytest.raises(UserError, match="operator 'Softmax' has no C; .* blocks are conv, skip"):
        firmware(foreign.SerializeToString(), architecture, scale, scale, ["a"], clip)
