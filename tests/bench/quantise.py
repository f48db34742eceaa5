"""int8 by NNCF's defaults, by ONNX Runtime's static quantiser and by nas

ESC-10, 64 mel bands x 251 frames: trained on folds 1 to 3 (15 epochs, one seed), scored on the 160
recordings of folds 4 and 5 with the 95 % interval; nothing was chosen by them. The three files of a
network come from the same float weights and the same 32 calibration clips. NNCF: nncf.quantize as
it comes. ONNX Runtime: quantize_static, QDQ, uint8 activations, int8 weights per channel. nas:
int8_channel_none, slimmed. Times are minima over interleaved bursts on one thread, all files of a
network in turn, as a share of the slimmed float32 file's.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import ModelProto, load_from_string, save
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from nas.arch import Architecture, Quantization, parse
from nas.cost import estimate
from nas.dataset import load
from nas.errors import UserError
from nas.features import Features, compute
from nas.folds import Answers, pooled
from nas.measure import latencies, logits
from nas.network import to_onnx
from nas.pipeline import Job, trained
from nas.quantize import CALIBRATION_CLIPS, quantize
from nas.record import KB, Proxy
from nas.shipped import load_target

Row = dict[str, Any]
FOLDER = Path("studies") / "bench-quantise"
FRONT_END = "logmel_r16000_t5_f1024_w1024_h320_m64_d0_c1"
SPLITS = ("train", "validation", "test")
RECIPE = Proxy(epochs=15, batch=16, learning_rate=0.008, gain=0.0)
NAMES = {"nncf": "NNCF", "ort": "ORT", "ours": "nas"}
NETWORKS = {
    "separable, 4k": "conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0/ds_n1_k3x3_s2x2_c40_relu_q0_g0_p0"
    "/ds_n1_k3x3_s2x2_c48_relu_q0_g0_p0/gap_c0_p0",
    "BC-ResNet, SiLU, 9k": "conv_n1_k5x5_s2x2_c16_relu_q0_g0_p0"
    "/bc_n2_k3x3_s1x1_d1_c8_silu_b4_p10/bc_n2_k3x3_s2x1_d2_c12_silu_b4_p10"
    "/bc_n4_k3x3_s2x1_d4_c16_silu_b4_p10/bc_n4_k3x3_s1x1_d8_c20_silu_b4_p10/bc_c32_p0",
    "BC-ResNet, ReLU, 26k": "conv_n1_k5x5_s2x2_c32_relu_q0_g0_p0"
    "/bc_n2_k3x3_s1x1_d1_c16_relu_b4_p10/bc_n2_k3x3_s2x1_d2_c24_relu_b4_p10"
    "/bc_n4_k3x3_s2x1_d4_c32_relu_b4_p10/bc_n4_k3x3_s1x1_d8_c40_relu_b4_p10/bc_c64_p0",
    "inverted residual, 24k": "conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0"
    "/ir_n2_k3x3_s2x2_e3_c24_relu6_q0_p0/ir_n2_k3x3_s2x2_e3_c40_relu6_q0_p0/gap_c0_p0",
    "plain, 33k": "conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0/conv_n1_k3x3_s2x2_c40_relu_q0_g0_p0"
    "/conv_n1_k3x3_s2x2_c72_relu_q0_g0_p0/gap_c0_p0",
    "SE and HardSwish, 41k": "conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0"
    "/ir_n2_k3x3_s2x2_e3_c24_hswish_q4_p0/ir_n2_k3x3_s2x2_e3_c40_hswish_q4_p0/gap_c0_p0",
    "CP-Mobile, 61k": "conv_n1_k3x3_s2x2_c8_relu_q0_g0_p0/conv_n1_k3x3_s2x2_c32_relu_q0_g0_p0"
    "/cpm_n2_k3x3_s1x1_e2.1_c32_relu_o0_p0/cpm_n1_k3x3_s1x2_e2.1_c32_relu_o0_p0"
    "/cpm_n1_k3x3_s2x1_e2.1_c56_relu_o0_p0/cpm_n1_k3x3_s1x1_e2.1_c56_relu_o0_p0"
    "/cpm_n1_k3x3_s1x1_e2.1_c104_relu_o0_p0/map_c0_p0",
    "inverted residual, 120k": "conv_n1_k3x3_s2x2_c24_relu_q0_g0_p0"
    "/ir_n2_k3x3_s2x2_e4_c48_relu6_q0_p0/ir_n2_k3x3_s2x2_e4_c80_relu6_q0_p0/gap_c0_p0",
    "separable, 300k": "conv_n1_k3x3_s2x2_c32_relu_q0_g0_p0/ds_n1_k3x3_s2x2_c128_relu_q0_g0_p0"
    "/ds_n2_k3x3_s2x2_c256_relu_q0_g1_p0/ds_n2_k3x3_s2x2_c320_relu_q0_g1_p0/gap_c0_p0",
}


def cases() -> Iterator[tuple[str, Callable[[], Row]]]:
    """One row per network; the trained files stay in studies/bench-quantise."""
    if "NAS_DATA" in os.environ:
        for name in NETWORKS:
            yield name, partial(row, name)


def row(name: str) -> Row:
    made, architecture = files(name), architecture_of(name)
    found: Row = {"parameters": estimate(architecture, 10).parameters}
    found["float, KB"] = round(len(made["float"]) / KB, 1)
    found |= {f"{said}, KB": round(len(made[key]) / KB, 1) for key, said in NAMES.items()}
    accuracies = {key: accuracy(content, architecture) for key, content in made.items()}
    works = [key for key, figure in accuracies.items() if figure != "fails"]
    ratios = latency_ratios(made, works)
    found |= {f"{said}, time": ratios[key] for key, said in NAMES.items()}
    found["float, %"] = accuracies["float"]
    return found | {f"{said}, %": accuracies[key] for key, said in NAMES.items()}


def architecture_of(name: str) -> Architecture:
    return parse(f"{FRONT_END}/{NETWORKS[name]}/int8_channel_none")


def files(name: str) -> dict[str, bytes]:
    """The network's four files, made once."""
    paths = {key: FOLDER / f"{name}.{key}.onnx" for key in ("float", *NAMES)}
    if not all(path.exists() for path in paths.values()):
        FOLDER.mkdir(parents=True, exist_ok=True)
        for key, model in models(architecture_of(name)).items():
            save(model, paths[key])
    return {key: path.read_bytes() for key, path in paths.items()}


def models(architecture: Architecture) -> dict[str, ModelProto]:
    data, features = recordings(architecture)
    training = features.split("train")
    network = trained(architecture, Job(data, load_target("host"), RECIPE), training, 0)
    single = to_onnx(network, architecture.front_end.shape)
    rows = np.random.default_rng(0).permutation(len(training.features))[:CALIBRATION_CLIPS]
    clips = training.features[np.sort(rows)].astype(np.float32)
    ours = quantize(single, architecture.quantization, clips)
    return {
        "float": quantize(single, Quantization("float32"), clips),
        "nncf": by_nncf(single, clips),
        "ort": by_onnxruntime(single, clips),
        "ours": ours,
    }


def recordings(architecture: Architecture) -> tuple[Any, Features]:
    data = load(str(Path(os.environ["NAS_DATA"]) / "ESC-10"))
    return data, compute(data, architecture.front_end, splits=SPLITS)


def by_nncf(model: ModelProto, clips: Any) -> ModelProto:
    nncf = sys.modules["nncf"]  # which `quantize` has imported without its telemetry
    logging.getLogger("nncf").setLevel(logging.ERROR)
    copy = load_from_string(model.SerializeToString())
    quantized: ModelProto = nncf.quantize(
        copy, nncf.Dataset([{"input": clip[None]} for clip in clips]), subset_size=len(clips)
    )
    return quantized


class Clips(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, clips: Any) -> None:
        self.clips = iter(clips)

    def get_next(self) -> dict[str, Any] | None:
        clip = next(self.clips, None)
        return None if clip is None else {"input": clip[None]}


def by_onnxruntime(model: ModelProto, clips: Any) -> ModelProto:
    logging.getLogger().setLevel(logging.ERROR)  # it would advise to pre-process
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save(model, source)
        quantize_static(
            source,
            target,
            Clips(clips),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return load_from_string(target.read_bytes())


def latency_ratios(made: dict[str, bytes], works: list[str]) -> dict[str, float | str]:
    """The shortest run of each int8 file that works over the float file's."""
    found = latencies([made[key] for key in works], load_target("host"))
    shortest = {key: figures.latency_ms for key, figures in zip(works, found, strict=True)}
    return {
        key: round(shortest[key] / shortest["float"], 3) if key in works else "fails"
        for key in NAMES
    }


def accuracy(content: bytes, architecture: Architecture) -> str:
    """Percent of the recordings of both held-out folds, with the interval."""
    data, features = recordings(architecture)
    splits = [features.split(name) for name in ("validation", "test")]
    try:
        answers = [Answers(logits(content, split.features), split) for split in splits]
    except UserError:
        return "fails"
    figures = pooled(answers, data.classes)
    low, high = 100 * figures.accuracy_low, 100 * figures.accuracy_high
    return f"{100 * figures.accuracy:.1f} ({low:.1f}-{high:.1f})"
