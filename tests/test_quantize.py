"""Quantising: what runs as integers, how close it stays, how small it is, and how quiet."""

import os
import subprocess
import sys
import textwrap
from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from onnx.numpy_helper import to_array
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from nas.arch import KINDS, Quantization, parse
from nas.errors import UserError
from nas.measure import logits
from nas.network import build, to_onnx
from nas.quantize import CALIBRATION_CLIPS, quantize
from nas.slim import slim

STEM = "logmel_r16000_t1_f512_w480_h320_m32_d0_c1/conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0"
CHANNEL, TENSOR = Quantization("int8"), Quantization("int8", "tensor")

# Each block between a stem and a pooling head, and what of the block ONNX Runtime runs in float in
# the int8 network. Nothing: the block fuses fully.
BLOCKS = {
    "conv_n1_k3x3_s1x1_c16_relu_q0_g1_p0": {},
    "conv_n1_k4x4_s2x2_c16_relu6_q0_g0_p0": {},
    "conv_n1_k3x3_a2x2_c16_relu_q0_g1_p0": {},
    "conv_n1_k3x3_m2x2_c16_relu_q0_g1_p0": {},
    "ds_n2_k3x3_s2x1_c24_relu6_q0_g1_p0": {},
    "ds_n1_k3x3_s1x1_c24_silu_q0_g1_p0": {},
    "ds_n1_k3x3_s1x1_c24_hswish_q0_g1_p0": {"HardSigmoid": 2, "Mul": 2},
    "fact_n2_k3x5_s2x2_c16_relu_q0_g1_p0": {},
    "ir_n2_k3x3_s2x2_e3_c24_relu6_q0_p0": {},
    "ir_n1_k3x3_s1x1_e3_c16_relu_q4_p0": {"FusedConv": 1},
    "fused_n2_k3x3_s1x2_e2_c16_relu_q0_p0": {},
    "cpm_n2_k3x3_s2x1_e2.1_c16_relu_o0_p0": {},
    "cpm_n1_k3x3_s2x1_e2.1_c16_relu_o1_p0": {
        "Mul": 3,
        "ReduceMean": 2,
        "Sqrt": 1,
        "Div": 1,
        "Add": 4,
    },
    "sep2_n1_k3x3_s2x2_c32_relu_p0": {},
    "bc_n1_k3x3_s1x1_d2_c16_relu_b4_p0": {"Conv": 2},
    "skip_s2x3": {},
}
INTEGER = {"QuantizeLinear", "DequantizeLinear", "MaxPool", "Flatten", "Reshape", "Transpose"}


@cache
def exported(text):
    """A network with batch statistics as training leaves them, as float ONNX."""
    architecture = parse(f"{STEM}/{text}/float32")
    torch.manual_seed(1)
    network = build(architecture, 5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    for name, parameter in network.named_parameters():
        if name.endswith(("gamma", "beta")):
            nn.init.normal_(parameter, 0, 0.3)
    return to_onnx(network, architecture.front_end.shape).SerializeToString()


def example(block, head="gap_c0_p0"):
    return onnx.load_from_string(exported(f"{block}/{head}"))


def clips(seed, count=16):
    """Features with the correlations of a spectrogram: bands and frames that are louder."""
    random = np.random.default_rng(seed)
    shapes = (count, 1, 32, 51), (count, 1, 32, 1), (count, 1, 1, 51)
    return sum(random.standard_normal(shape, np.float32) for shape in shapes) / np.float32(1.7)


@cache
def quantized(block, quantization):
    return quantize(example(block), quantization, clips(0))


def error(model, reference):
    """Root mean square error of the logits, as a share of their spread."""
    found, expected = (logits(m.SerializeToString(), clips(1)) for m in (model, reference))
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


def float_operations(model, path):
    """What ONNX Runtime, having optimised the graph, still runs in float."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    kinds = (node.op_type for node in onnx.load(path).graph.node)
    return Counter(kind for kind in kinds if kind not in INTEGER and not kind.startswith("QLinear"))


def test_every_kind_of_block_has_an_example_here():
    assert {block.split("_")[0] for block in BLOCKS} == set(KINDS)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_run_as_integers_but_for_what_the_table_says(block, tmp_path):
    model = quantized(block, CHANNEL)
    # The classifier's logits are not rounded to 8 bits: its convolution ends in float.
    expected = Counter(BLOCKS[block]) + Counter(Conv=1)
    assert float_operations(model, tmp_path / "optimized.onnx") == expected


@pytest.mark.parametrize(
    "block, weights", [*((b, "channel") for b in BLOCKS), *((b, "tensor") for b in [*BLOCKS][::3])]
)
def test_int8_logits_stay_within_2_percent(block, weights):
    model = quantized(block, Quantization("int8", weights))
    onnx.checker.check_model(model, full_check=True)
    assert 0 < error(model, example(block)) < 0.02


@pytest.mark.parametrize("block", BLOCKS)
def test_slimming_keeps_every_bit_of_every_block(block, monkeypatch):
    monkeypatch.setattr("nas.quantize.slim", lambda model: model)
    whole = quantize(example(block), CHANNEL, clips(0))
    slimmed = slim(whole)
    assert slimmed.ByteSize() < whole.ByteSize()
    found, expected = (logits(m.SerializeToString(), clips(1)) for m in (slimmed, whole))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_float16_halves_the_weights_and_takes_and_gives_float32(block):
    model, single = quantize(example(block), Quantization("float16"), clips(0)), example(block)
    onnx.checker.check_model(model, full_check=True)
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    # Bounds of a Clip are float32 scalars.
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.dims}
    assert kinds - {TensorProto.INT64} == {TensorProto.FLOAT16}
    assert model.ByteSize() < 0.75 * quantize(single, Quantization(), clips(0)).ByteSize()
    assert error(model, single) < 0.002


def test_float32_is_only_slimmed():
    single = example("ds_n2_k3x3_s2x1_c24_relu6_q0_g1_p0")
    assert error(quantize(single, Quantization(), clips(0)), single) == 0


def stored(model, kind):
    """Shapes of the convolution weights that are stored as `kind`."""
    return [
        tuple(t.dims) for t in model.graph.initializer if t.data_type == kind and len(t.dims) == 4
    ]


@pytest.mark.parametrize(
    "parts, kept",
    [
        ("none", []),
        ("stem", [(16, 1, 3, 3)]),
        ("head", [(5, 24, 1, 1)]),
        ("both", [(16, 1, 3, 3), (5, 24, 1, 1)]),
    ],
)
@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_stem_and_head_stay_in_float_where_asked(weights, parts, kept):
    model = quantized("ds_n2_k3x3_s2x1_c24_relu6_q0_g1_p0", Quantization("int8", weights, parts))
    assert sorted(stored(model, TensorProto.FLOAT)) == sorted(kept)
    assert len(stored(model, TensorProto.INT8)) == 6 - len(kept)


def test_weights_per_tensor_have_one_scale_each():
    model, finer = (quantized("ds_n2_k3x3_s2x1_c24_relu6_q0_g1_p0", q) for q in (TENSOR, CHANNEL))
    scales = {t.name: t.dims for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    names = [n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert len(names) > 6 and all(len(scales[name]) == 0 for name in names)
    assert model.ByteSize() < finer.ByteSize()


def test_activations_are_of_one_type_and_per_tensor():
    model = quantized("ir_n2_k3x3_s2x2_e3_c24_relu6_q0_p0", CHANNEL)
    known = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) > 5
    for node in quantizers:
        assert known[node.input[1]].shape == ()
        assert all(known[name].dtype == np.uint8 for name in node.input[2:])


class Clips(CalibrationDataReader):
    def __init__(self, features):
        self.clips = iter(features)

    def get_next(self):
        clip = next(self.clips, None)
        return None if clip is None else {"input": clip[None]}


@pytest.mark.parametrize("block", [*BLOCKS][1::4])
def test_no_larger_than_what_the_two_libraries_make_by_default(block, tmp_path):
    single, features = example(block), clips(0)
    ours = quantized(block, CHANNEL).ByteSize()
    # Quantising has imported NNCF without its telemetry.
    nncf = sys.modules["nncf"]
    theirs = nncf.quantize(single, nncf.Dataset([{"input": clip[None]} for clip in features]))
    onnx.save(single, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        Clips(features),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    assert ours < theirs.ByteSize()
    assert ours < (tmp_path / "int8.onnx").stat().st_size


def test_the_same_network_and_clips_give_the_same_bytes_and_the_network_is_left_alone():
    single = example("ir_n1_k3x3_s1x1_e3_c16_relu_q4_p0")
    before = single.SerializeToString()
    first, second = (quantize(single, CHANNEL, clips(0)).SerializeToString() for _ in range(2))
    assert first == second
    assert single.SerializeToString() == before


def test_only_the_first_clips_calibrate():
    single = example("skip_s2x3")
    few, many = clips(0, CALIBRATION_CLIPS), clips(0, CALIBRATION_CLIPS)
    more = np.concatenate([many, 50 * clips(3)])
    found = [quantize(single, CHANNEL, features).SerializeToString() for features in (few, more)]
    assert found[0] == found[1]


def test_half_precision_features_calibrate_as_well():
    single, features = example("skip_s2x3"), clips(0).astype(np.float16)
    found = [quantize(single, CHANNEL, f) for f in (features, features.astype(np.float32))]
    assert found[0].SerializeToString() == found[1].SerializeToString()


def test_int8_without_a_clip_is_the_users_to_change():
    with pytest.raises(UserError, match="at least one calibration clip"):
        quantize(example("skip_s2x3"), CHANNEL, clips(0)[:0])


QUIETLY = """
    import sys

    def watch(event, arguments):
        if event.startswith(("socket.connect", "socket.getaddrinfo", "os.fork")):
            print(event, arguments, file=sys.stderr)

    sys.addaudithook(watch)
    import logging
    import numpy as np, onnx
    from nas.arch import Quantization
    from nas.quantize import quantize
    clips = np.random.default_rng(0).standard_normal((4, 1, 32, 51), np.float32)
    quantize(onnx.load("network.onnx"), Quantization("int8"), clips)
    from nncf.common.logging.track_progress import track
    assert track.__init__.__name__ == "__init__", track.__init__
    assert logging.getLogger("nncf").level == logging.INFO
    assert sys.modules.get("openvino_telemetry", "absent") == "absent"
    """
# A network namespace without any network, and a home folder that root cannot write to either.
ALONE = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c"]
ALONE += ['mount --bind home home && mount -o remount,bind,ro home && exec "$@"', "sh"]


@pytest.mark.parametrize("alone", [[], ALONE], ids=["as it is", "without a network"])
def test_quantising_says_nothing_writes_nothing_at_home_and_asks_no_network(alone, tmp_path):
    (tmp_path / "network.onnx").write_bytes(exported("skip_s2x3/gap_c0_p0"))
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    if alone and subprocess.run([*alone, "true"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no namespaces of their own are permitted to processes here")
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("CI", "NNCF_CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    run = subprocess.run(
        [*alone, sys.executable, "-c", textwrap.dedent(QUIETLY)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("block", BLOCKS)
def test_weights_that_end_in_float_keep_zero_points_of_their_own(block):
    """ONNX Runtime's exact sums on x86 CPUs without VNNI fail without them."""
    graph = quantized(block, CHANNEL).graph
    stored = {t.name: t for t in graph.initializer}
    readers = {
        name: [n for n in graph.node if name in n.input] for n in graph.node for name in n.output
    }
    zeros = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            (conv,) = readers[node.output[0]]
            fused = [n.op_type for n in readers[conv.output[0]]] == ["QuantizeLinear"]
            assert len(node.input) == (2 if fused else 3)
            zeros += node.input[2:]
    assert zeros and len(zeros) == len(set(zeros))
    assert not any(to_array(stored[name]).any() for name in zeros)
