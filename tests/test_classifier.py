"""The waveform classifier gives what the front end in torch and the artefact give, on any batch."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nas.arch import parse
from nas.classifier import classifier
from nas.dataset import load
from nas.features import compute, front_end, windows
from nas.features import waveforms as waveforms_of
from nas.measure import EXACT, logits
from nas.network import build, to_onnx
from nas.pipeline import Job, artifact_of, trained
from nas.quantize import quantize
from nas.record import Proxy
from nas.shipped import load_target

LABELS = ["dog", "rain", "Straße"]
FRONT_ENDS = [
    "logmel_r16000_t1_f1024_w1024_h512_m64_d0_c1",
    "logmel_r16000_t1_f1024_w640_h320_m40_d2_c0",
    "logmel_r8000_t0.5_f400_w400_h160_m64_d1_c1",
    "logmel_r22050_t1.5_f1000_w801_h333_m40_d0_c0",
    "relmel_r16000_t1_f1024_w640_h320_m40_d1_c1",
]
SMALL = FRONT_ENDS[2]
SCENE = "logmel_r16000_t2_f512_w512_h512_m32_d0_c1"
STAGES = [
    "conv_n2_k3x3_s2x2_c8_relu6_q2_g1_p0",
    "ds_n2_k5x5_s2x2_c8_hswish_q0_g1_p0",
    "fact_n1_k3x5_m2x2_c8_relu_q0_g0_p0",
    "ir_n2_k3x3_s2x2_e2_c8_relu_q4_p0",
    "fused_n1_k3x3_a2x2_e2_c8_silu_q0_p0",
    "cpm_n2_k3x3_s2x2_e2_c8_relu_o1_p0",
    "sep2_n1_k3x3_s2x2_c8_relu_p10",
    "bc_n2_k3x3_s2x1_d1_c16_relu_b4_p0",
    "skip_s2x2",
]
STEM = "conv_n1_k3x3_s2x2_c8_relu_q0_g0_p0"
HEADS = ["gap_c16_p0", "map_c0_p0", "bc_c16_p0"]


def waveforms(settings, count=6):
    """Noise of falling loudness, and a tone, whose empty bands are the hardest for float32."""
    random = np.random.default_rng(0)
    clips = random.standard_normal((count, settings.samples)) * 0.3 ** np.arange(count)[:, None]
    clips[-1] = np.sin(np.arange(settings.samples) * 0.3)
    return clips.astype(np.float32)


def made(text):
    """(classifier's bytes, its own route to probabilities: torch's front end and the artefact)."""
    architecture = parse(text)
    torch.manual_seed(1)
    network = build(architecture, len(LABELS)).eval()
    audio = waveforms(architecture.front_end)
    features = front_end(torch.from_numpy(audio), architecture.front_end)
    mean, std = features.mean((0, 3)), features.std((0, 3)).clamp_min(0.1)
    features = ((features - mean[:, :, None]) / std[:, :, None]).numpy()
    model = to_onnx(network, architecture.front_end.shape)
    artifact = quantize(model, architecture.quantization, features).SerializeToString()
    powers = np.exp(logits(artifact, features).astype(np.float64))
    bytes_ = classifier(artifact, architecture, mean.numpy(), std.numpy(), LABELS)
    return bytes_, artifact, audio, powers / powers.sum(1, keepdims=True)


def run(model, audio):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*EXACT)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"waveform": audio})[0]


@pytest.mark.parametrize("settings", FRONT_ENDS)
def test_the_front_end_inside_is_the_one_that_features_are_made_with(settings):
    model, _, audio, expected = made(f"{settings}/{STEM}/gap_c0_p0/float32")
    assert np.abs(run(model, audio) - expected).max() < 1e-4


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.split("_")[0])
def test_every_block_kind_runs_on_any_batch_with_the_probabilities_of_the_artefact(stage):
    model, _, audio, expected = made(f"{SMALL}/{STEM}/{stage}/gap_c0_p0/float32")
    together = run(model, audio)
    assert np.abs(together - expected).max() < 1e-4
    assert np.abs(together[2:3] - run(model, audio[2:3])).max() < 1e-5


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("numbers", ["float16", "int8_channel_none", "int8_tensor_both"])
def test_every_head_and_number_format_runs_on_any_batch(head, numbers):
    model, _, audio, expected = made(f"{SMALL}/{STEM}/{head}/{numbers}")
    together = run(model, audio)
    assert np.abs(together - expected).max() < 0.02  # a feature may fall into the next step
    assert (together.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("numbers, most_apart", [("float32", 1e-3), ("int8_channel_none", 0.05)])
def test_on_test_clips_the_labels_are_those_of_features_and_artefact(numbers, most_apart):
    scenes = load("synthetic-scenes")
    architecture = parse(f"{SCENE}/{STEM}/{STAGES[1]}/gap_c0_p0/{numbers}")
    made_of = compute(scenes, architecture.front_end, splits=("train", "test"))
    training, test = made_of.split("train"), made_of.split("test")
    job = Job(scenes, load_target("host"), Proxy(epochs=4))
    artifact = artifact_of(trained(architecture, job, training, 0), architecture, training, 0)
    powers = np.exp(logits(artifact.content, test.features).astype(np.float64))
    expected = powers / powers.sum(1, keepdims=True)
    scale = made_of.mean, made_of.std
    model = classifier(artifact.content, architecture, *scale, scenes.classes)
    cut, rate_hz = windows(scenes.split("test"), 2.0), architecture.front_end.sample_rate_hz
    given = run(model, waveforms_of(scenes, cut, rate_hz, 2.0))
    assert len(given) == len(expected) >= 200 and len(set(given.argmax(1))) > 3
    assert (given.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert np.abs(given - expected).max() < most_apart


def test_it_uses_standard_operators_only_and_is_a_valid_model_of_opset_17():
    model = onnx.load_from_string(made(f"{SMALL}/{STEM}/gap_c0_p0/int8_channel_none")[0])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_its_metadata_tell_how_to_call_it():
    text = f"{SMALL}/{STEM}/gap_c0_p0/float32"
    session = onnxruntime.InferenceSession(made(text)[0], providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == LABELS
    assert (facts["sample_rate_hz"], facts["samples"]) == ("8000", "4000")
    assert facts["architecture"] == text
    value = session.get_inputs()[0]
    assert (value.name, value.shape, value.type) == ("waveform", ["batch", 4000], "tensor(float)")


def test_the_front_end_adds_a_few_kilobytes_only_whatever_the_fft_length():
    for settings in (SMALL, "logmel_r44100_t1_f4096_w4096_h2048_m128_d0_c1"):
        model, artifact, *_ = made(f"{settings}/{STEM}/gap_c0_p0/float32")
        assert len(model) - len(artifact) < 8 * 1024
