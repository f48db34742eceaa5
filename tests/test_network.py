"""Blocks and networks: published figures, shapes, and ONNX that computes what torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nas.arch import KINDS, parse
from nas.blocks import GlobalResponseNorm, SubSpectralNorm
from nas.cost import estimate, layers
from nas.measure import logits
from nas.network import build, to_onnx
from nas.published import published
from nas.trace import operations

STEM = "logmel_r16000_t1_f512_w480_h160_m40_d0_c1/conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0"
BLOCKS = [
    "conv_n2_k3x3_s1x1_c16_relu_q0_g1_p0",
    "conv_n1_k1x5_s1x2_c24_relu6_q4_g0_p10",
    "conv_n1_k4x4_a2x2_c24_hswish_q0_g0_p0",
    "ds_n2_k3x3_s2x1_c24_relu_q0_g1_p0",
    "ds_n1_k5x3_m2x2_c16_silu_q4_g1_p0",
    "fact_n2_k3x5_s2x2_c16_relu_q0_g1_p0",
    "ir_n2_k3x3_s2x2_e3_c24_relu6_q4_p0",
    "ir_n1_k3x3_s1x1_e1_c16_relu_q0_p0",
    "fused_n2_k3x3_s1x2_e2_c16_relu_q0_p0",
    "cpm_n2_k3x3_s2x1_e2.1_c16_relu_o1_p0",
    "cpm_n1_k3x3_s1x2_e2_c32_relu_o0_p0",
    "sep2_n1_k3x3_m2x2_c32_relu_p20",
    "bc_n2_k3x3_s2x1_d2_c24_silu_b5_p10",
    "bc_n2_k3x3_s1x2_d1_c16_relu_b3_p0",
    "skip_s2x3",
    "skip_s1x1",
]
HEADS = ["gap_c0_p0", "gap_c32_p20", "map_c0_p0", "bc_c24_p0"]


def example(block: str, head: str = "gap_c0_p0", scheme: str = "float32") -> str:
    return f"{STEM}/{block}/{head}/{scheme}"


def test_every_kind_has_an_example_here():
    assert {block.split("_")[0] for block in BLOCKS} == set(KINDS)


BC_RESNET = {
    "1": (9_232, 2_482_156),
    "1.5": (17_154, 4_607_994),
    "2": (27_284, 7_323_672),
    "3": (54_168, 14_524_548),
    "6": (187_812, 50_283_336),
    "8": (321_068, 85_919_328),
}


@pytest.mark.parametrize("width", BC_RESNET)
def test_bc_resnet_has_the_parameters_and_macs_of_its_authors_code(width):
    cost = cost_of(f"bcresnet-{width}")
    assert (cost.parameters, cost.macs) == BC_RESNET[width]


def test_the_dcase_2024_baseline_has_its_published_parameters_and_macs():
    cost = cost_of("cpmobile-dcase2024")
    assert cost.parameters == 61_148
    assert cost.parameter_bytes == 122_296  # float16
    assert cost.macs == 29_416_448  # 29,419,156 as published, with batch norm


def test_the_mlperf_tiny_network_has_its_published_macs_by_kind_of_layer():
    entry = published()["dscnn-mlperf-tiny"]
    found = operations(parse(entry.architecture), entry.classes)
    pointwise = [o for o in found if o.kind == "conv" and o.name != found[1].name]
    assert found[1].macs == 320_000
    assert sum(o.macs for o in found if o.kind == "depthwise") == 288_000
    assert sum(o.macs for o in pointwise if o.output[1] > 1) == 2_048_000
    assert round(cost_of("dscnn-mlperf-tiny").macs, -3) == 2_657_000


# Million operations (2 x MACs) of MicroNets, Banbury et al. 2021, Table 4.
MICRONETS_MOPS = {
    "micronet-kws-l": 129,
    "micronet-kws-m": 30.6,
    "micronet-kws-s": 16.4,
    "dscnn-l": 107.2,
    "dscnn-m": 37.3,
    "dscnn-s": 7.1,
}


@pytest.mark.parametrize("name", MICRONETS_MOPS)
def test_micronets_have_their_published_operations_but_for_the_rounding_of_the_map(name):
    """The paper counts the map behind the stride as 49 x 10 / 4 = 122.5 positions; 'same' padding
    gives 25 x 5 = 125, so that all behind the stem costs 2 % more here."""
    entry = published()[name]
    found = operations(parse(entry.architecture), entry.classes)
    stem = next(o.macs for o in found if o.macs)
    rest = sum(o.macs for o in found) - stem
    assert 2 * (stem + rest * 122.5 / 125) / 1e6 == pytest.approx(MICRONETS_MOPS[name], rel=0.005)
    assert 1.01 < 2 * (stem + rest) / 1e6 / MICRONETS_MOPS[name] < 1.02


def test_the_seed_papers_are_rebuilt_to_their_published_sizes():
    base, small = cost_of("lim2021-base"), cost_of("lim2021-ir")
    assert base.file_bytes / 1024 == pytest.approx(503, abs=0.5)
    assert min(small.file_bytes, cost_of("lim2021-ds").file_bytes) <= 42.76 * 1024
    assert small.file_bytes / 1024 == pytest.approx(42.76, abs=1)
    saleem = published()["saleem2022"]
    assert parse(saleem.architecture).front_end.shape == (1, 128, 431)
    assert cost_of("saleem2022").file_bytes / 1024 == pytest.approx(132.5, abs=0.1)


def cost_of(name: str):
    entry = published()[name]
    return estimate(parse(entry.architecture), entry.classes)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("block", BLOCKS)
def test_predicted_shapes_and_parameters_are_those_of_the_real_network(block, head):
    architecture = parse(example(block, head))
    network = build(architecture, classes=7).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: tuple(output.shape[1:])})
        )
    network(torch.zeros(1, *architecture.front_end.shape))
    for operation in operations(architecture, classes=7):
        if operation.module is not None:
            assert operation.output == seen[operation.name], operation.name
    total = sum(p.numel() for p in network.parameters())
    assert estimate(architecture, classes=7).parameters == total
    assert sum(layer.parameters for layer in layers(architecture, classes=7)) == total


@pytest.mark.parametrize("block", BLOCKS)
def test_the_onnx_file_computes_what_the_network_does(block):
    architecture = parse(example(block))
    network = awake(build(architecture, classes=5))
    clips = torch.randn(4, *architecture.front_end.shape)
    with torch.no_grad():
        expected = network.eval()(clips).numpy()
    model = to_onnx(network, architecture.front_end.shape)
    found = logits(model.SerializeToString(), clips.numpy())
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """Norms with statistics and weights of their own, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
        if isinstance(module, GlobalResponseNorm):
            module.gamma.data.normal_(0, 0.3, generator=generator)
            module.beta.data.normal_(0, 0.3, generator=generator)
    return network


def test_sub_spectral_norm_normalises_every_sub_band_by_itself():
    norm = SubSpectralNorm(channels=2, bands=6, subbands=3).train()
    x = torch.randn(8, 2, 6, 5) * torch.arange(1, 7)[:, None] + 3
    y = norm(x)
    for band in range(0, 6, 2):
        part = y[:, :, band : band + 2]
        assert part.mean((0, 2, 3)).abs().max() < 1e-5
        assert (part.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-2


def test_a_number_of_sub_bands_that_does_not_divide_falls_to_the_next_that_does():
    assert SubSpectralNorm(channels=4, bands=8, subbands=5).grouped == (16, 2)
    assert SubSpectralNorm(channels=4, bands=7, subbands=5).grouped == (4, 7)


def test_live_memory_of_a_chain_is_its_largest_neighbouring_pair():
    text = example("conv_n1_k3x3_s1x1_c32_relu_q0_g0_p0", scheme="int8_channel_none")
    table = layers(parse(text), classes=10)
    stem, conv = 16 * 20 * 51, 32 * 20 * 51
    assert table[0].live_bytes == 40 * 101 + stem
    assert table[1].live_bytes == stem + conv
    assert estimate(parse(text), classes=10).peak_ram_bytes == stem + conv


def test_a_residual_keeps_its_input_alive():
    text = example("conv_n1_k3x3_s1x1_c16_relu_q0_g1_p0", scheme="int8_channel_none")
    table = layers(parse(text), classes=10)
    size = 16 * 20 * 51
    assert [layer.live_bytes for layer in table][1:3] == [2 * size, 3 * size]


@pytest.mark.parametrize(
    "scheme, width", [("float32", 4), ("float16", 2), ("int8_channel_none", 1)]
)
def test_parameter_bytes_are_parameters_at_their_stored_width(scheme, width):
    cost = estimate(parse(example(BLOCKS[0], scheme=scheme)), classes=10)
    assert cost.parameter_bytes == cost.parameters * width
