"""Slimming: the same outputs bit for bit, on every construct that networks here are made of."""

import io
import logging
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from torch.nn import functional

from nas.measure import EXACT
from nas.slim import slim

SHAPE = (2, 12, 15)
CLIPS = np.random.default_rng(0).standard_normal((6, 1, *SHAPE), np.float32)


def conv_norm(channels_in, channels, kernel=3, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    )


class Function(nn.Module):
    """A function of layers, as a module."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def sub_spectral(x, norm):
    return norm(x.reshape(1, 32, 3, 15)).reshape(1, 8, 12, 15)


def by_the_batch(x, norm):
    return norm(x.reshape(-1, 32, 3, x.shape[3])).reshape(-1, 8, 12, x.shape[3])


def squeeze_excite(x, a, b):
    return x * functional.hardsigmoid(b(torch.relu(a(functional.adaptive_avg_pool2d(x, 1)))))


def broadcast(x, layer):
    return x + layer(x.mean(2, keepdim=True))


BODIES = {
    "relu": [nn.ReLU()],
    "relu6": [nn.ReLU6(), conv_norm(8, 8), nn.ReLU6()],
    "hard swish": [nn.Hardswish(), conv_norm(8, 8), nn.Hardswish()],
    "silu": [nn.SiLU(), conv_norm(8, 8), nn.SiLU()],
    "separable": [nn.ReLU(), conv_norm(8, 8, groups=8), nn.ReLU(), conv_norm(8, 12, 1), nn.ReLU()],
    "residual": [nn.ReLU(), Function(lambda x, layer: torch.relu(x + layer(x)), conv_norm(8, 8))],
    "squeeze-excite": [
        nn.ReLU(),
        Function(squeeze_excite, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)),
    ],
    "uneven padding": [nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(8, 8, 4, 2), nn.ReLU()],
    "reflecting padding": [nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.ReLU()],
    "other padding": [nn.ConstantPad2d(1, 0.5), nn.Conv2d(8, 8, 3), nn.ReLU()],
    "sub-spectral norm": [Function(sub_spectral, nn.BatchNorm2d(32)), nn.ReLU()],
    "computed shape": [
        nn.ZeroPad2d((1, 2, 1, 2)),
        nn.Conv2d(8, 8, 4),
        Function(by_the_batch, nn.BatchNorm2d(32)),
    ],
    "broadcast mean": [nn.ReLU(), Function(broadcast, conv_norm(8, 8))],
    "pools": [nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d((2, 1)), nn.AvgPool2d(1)],
    "dilation": [nn.Conv2d(8, 8, 3, padding=(1, 2), dilation=(1, 2), groups=4), nn.ReLU()],
    "dense head": [nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 15, 8), nn.Unflatten(1, (8, 1, 1))],
    "equal layers": [*[nn.Conv2d(8, 8, 1) for _ in range(3)], nn.Identity()],
}


def exported(name):
    torch.manual_seed(0)
    body = nn.Sequential(conv_norm(SHAPE[0], 8), *BODIES[name], nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(body, nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    if name == "equal layers":
        for layer in body[1:4]:
            nn.init.constant_(layer.weight, 0.25)
            nn.init.zeros_(layer.bias)
    buffer, clip = io.BytesIO(), (torch.zeros(1, *SHAPE),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            clip,
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
        )
    return onnx.load_model_from_string(buffer.getvalue())


class Clips(CalibrationDataReader):
    def __init__(self):
        self.clips = iter(CLIPS)

    def get_next(self):
        clip = next(self.clips, None)
        return None if clip is None else {"input": clip}


def quantized(model, folder, activations):
    """By ONNX Runtime's own quantiser, which leaves all that slimming is about."""
    logging.getLogger().setLevel(logging.ERROR)
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Clips(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(folder / "int8.onnx")


def outputs(model, exact=False):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry(*EXACT)
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(["output"], {"input": clip})[0] for clip in CLIPS])


def assert_slimmed(model, slimmed, exact=False):
    np.testing.assert_array_equal(outputs(slimmed, exact), outputs(model, exact))
    onnx.checker.check_model(slimmed, full_check=True)
    assert slimmed.ByteSize() < model.ByteSize()
    assert slim(slimmed).SerializeToString() == slimmed.SerializeToString()
    ends = [
        [(v.name, v.type) for v in (m.graph.input[0], m.graph.output[0])] for m in (model, slimmed)
    ]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", BODIES)
def test_a_float_network_keeps_every_bit(name):
    model = exported(name)
    before = model.SerializeToString()
    slimmed = slim(model)
    assert_slimmed(model, slimmed)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
@pytest.mark.parametrize("name", BODIES)
def test_an_int8_network_keeps_every_bit(name, activations, tmp_path):
    model = quantized(exported(name), tmp_path, activations)
    # Its slimmed Gemm runs in float, whose sums do not overflow on CPUs without VNNI.
    assert_slimmed(model, slim(model), exact=name == "dense head")


def kinds(model):
    return {node.op_type for node in model.graph.node}


def test_nothing_is_left_that_a_runtime_does_not_read():
    model = exported("relu6")
    model.doc_string, model.producer_name = "a long story", "somebody"
    model.metadata_props.add(key="author", value="somebody")
    model.graph.node[0].doc_string = "why"
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    slimmed = slim(model)
    for word in (b"story", b"somebody", b"author", b"why", b"kernel_shape", b"dilations", b"Conv_"):
        assert word not in slimmed.SerializeToString()
    assert not slimmed.graph.value_info
    assert "Constant" not in kinds(slimmed)
    assert all(len(tensor.name) == 1 for tensor in slimmed.graph.initializer)


def test_padding_is_folded_into_a_convolution_only_where_it_adds_zeros():
    assert "Pad" not in kinds(slim(exported("uneven padding")))
    assert "Pad" in kinds(slim(exported("reflecting padding")))
    assert "Pad" in kinds(slim(exported("other padding")))


def test_a_shape_that_is_fixed_is_not_computed():
    model = exported("computed shape")
    assert kinds(model) > {"Shape", "Gather"}
    assert kinds(slim(model)) == {
        "Conv",
        "Reshape",
        "BatchNormalization",
        "GlobalAveragePool",
        "Flatten",
    }


def test_equal_tensors_are_stored_once():
    weights = [t for t in slim(exported("equal layers")).graph.initializer if t.dims[:2] == [8, 8]]
    assert len(weights) == 1


def graph(nodes, **tensors):
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        [helper.make_node(op, inputs.split(), [output]) for op, inputs, output in nodes],
        "graph",
        [value("input", TensorProto.FLOAT, [1, *SHAPE])],
        [value("output", TensorProto.FLOAT, [1, *SHAPE])],
        [from_array(np.array(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "activation, scale, zero, idle",
    [
        ("Relu", 0.1, np.uint8(0), True),
        ("Relu", 0.1, np.int8(-128), True),
        ("Relu", 0.1, np.uint8(1), False),
        ("Relu", 0.1, np.int8(0), False),
        ("Clip", 6 / 255, np.uint8(0), True),
        ("Clip", 6 / 254.4, np.uint8(0), False),
        ("Clip", 6 / 254.6, np.uint8(0), True),
        ("Clip", 0.01, np.uint8(0), True),
        ("Clip", 0.01, np.int8(-120), False),
    ],
)
def test_an_activation_goes_only_if_its_quantiser_saturates_at_its_bounds(
    activation, scale, zero, idle
):
    bounds = "least most" if activation == "Clip" else ""
    model = graph(
        [
            (activation, f"input {bounds}", "a"),
            ("QuantizeLinear", "a scale zero", "q"),
            ("DequantizeLinear", "q scale zero", "output"),
        ],
        scale=np.float32(scale),
        zero=zero,
        least=np.float32(0),
        most=np.float32(6),
    )
    slimmed = slim(model)
    assert (activation not in kinds(slimmed)) == idle
    np.testing.assert_array_equal(outputs(slimmed), outputs(model))


def test_an_activation_stays_where_a_second_reader_is_not_a_quantiser():
    model = graph(
        [
            ("Relu", "input", "a"),
            ("QuantizeLinear", "a scale zero", "q"),
            ("DequantizeLinear", "q scale zero", "d"),
            ("Add", "a d", "output"),
        ],
        scale=np.float32(0.1),
        zero=np.uint8(0),
    )
    assert "Relu" in kinds(slim(model))


@pytest.mark.parametrize("zero, kept", [(np.uint8(0), 0), (np.uint8(3), 1), (np.int8(0), 1)])
def test_a_zero_point_goes_only_if_it_is_what_onnx_assumes(zero, kept):
    nodes = [
        ("QuantizeLinear", "input scale zero", "q"),
        ("DequantizeLinear", "q scale zero", "output"),
    ]
    model = graph(nodes, scale=np.float32(0.1), zero=zero)
    slimmed = slim(model)
    assert [t.data_type for t in slimmed.graph.initializer].count(TensorProto.FLOAT) == 1
    assert len(slimmed.graph.initializer) == 1 + kept
    np.testing.assert_array_equal(outputs(slimmed), outputs(model))


@pytest.mark.parametrize("second, quantizers", [(0.1, 1), (0.2, 2)])
def test_requantising_goes_only_if_its_parameters_are_those_before(second, quantizers):
    model = graph(
        [
            ("QuantizeLinear", "input s z", "q"),
            ("DequantizeLinear", "q s z", "d"),
            ("QuantizeLinear", "d s2 z", "q2"),
            ("DequantizeLinear", "q2 s2 z", "output"),
        ],
        s=np.float32(0.1),
        s2=np.float32(second),
        z=np.uint8(7),
    )
    slimmed = slim(model)
    assert sum(node.op_type == "QuantizeLinear" for node in slimmed.graph.node) == quantizers
    np.testing.assert_array_equal(outputs(slimmed), outputs(model))


def test_names_are_short_distinct_and_valid_identifiers():
    chain = [("Abs", f"v{i}" if i else "input", f"v{i + 1}") for i in range(120)]
    slimmed = slim(graph([*chain, ("Abs", "v120", "output")]))
    names = [node.output[0] for node in slimmed.graph.node][:-1]
    assert len(set(names)) == 120 and all(name.isidentifier() for name in names)
    assert sorted(map(len, names)) == [1] * 53 + [2] * 67


def test_the_weights_that_are_stored_are_those_that_were_given():
    model = exported("separable")
    weights = {to_array(t).tobytes() for t in model.graph.initializer}
    assert weights == {to_array(t).tobytes() for t in slim(model).graph.initializer}
