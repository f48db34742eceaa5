"""The canonical string: exact in both directions, strict, and errors that point at the spot."""

from __future__ import annotations

import random

import pytest
from choosing import RandomTrial

from nas.arch import KINDS, FrontEnd, Quantization, Stage, parse
from nas.errors import UserError
from nas.published import published
from nas.shipped import names
from nas.space import load_space

GOOD = (
    "logmel_r16000_t1.5_f512_w480_h160_m40_d0_c1/conv_n1_k5x5_s2x1_c16_relu_q0_g0_p0/"
    "ir_n2_k3x3_m2x2_e2.5_c24_relu6_q4_p10/skip_s2x2/gap_c0_p0/int8_channel_stem"
)


@pytest.mark.parametrize("text", [GOOD, f"{GOOD}_qat"])
def test_a_string_reads_back_as_itself(text):
    assert str(parse(text)) == text
    relative = text.replace("logmel", "relmel")
    assert str(parse(relative)) == relative
    assert (parse(text).front_end.level, parse(relative).front_end.level) == (0, 1)


@pytest.mark.parametrize("name", sorted(published()))
def test_every_published_network_reads_back_as_itself(name):
    text = published()[name].architecture
    assert str(parse(text)) == text


@pytest.mark.parametrize("name", names("spaces"))
def test_every_sampled_architecture_reads_back_as_itself(name):
    space = load_space(name)
    for seed in range(200):
        architecture = space.sample(RandomTrial(seed), clip_s=2.0)
        assert parse(str(architecture)) == architecture


@pytest.mark.parametrize(
    "old, new, part, said",
    [
        ("_k5x5", "", 2, "missing key before 's2x1': expected kernel"),
        ("_k5x5", "_k5", 2, "'k5' is malformed"),
        ("_k5x5", "_k5x5_k5x5", 2, "repeated key 'k5x5'"),
        ("_k5x5", "_k55x5", 2, "kernel in frequency is 55, allowed is 1 to 31"),
        ("_c16", "_c016", 2, "'c016' is malformed"),
        ("_p10", "_p10_z9", 3, "unknown key 'z9'"),
        ("_p10", "", 3, "missing key: expected dropout"),
        ("_e2.5", "_e2.50", 3, "'e2.50' is malformed"),
        ("relu6", "relu9", 3, "unknown activation 'relu9': did you mean"),
        ("ir_", "irr_", 3, "unknown block kind 'irr': did you mean 'ir'"),
        ("skip_s2x2", "skip_m1x1", 4, "write s1x1"),
        ("logmel", "mfcc", 1, "unknown front end 'mfcc'"),
        ("_h160", "_h500", 1, "hop is 500, allowed is 8 to 480"),
        ("gap_c0", "bc_c0", 5, "a 'bc' head cannot have 0 channels"),
        ("int8_channel_stem", "int4", 6, "unknown quantisation 'int4'"),
        ("int8_channel_stem", "int8", 6, "int8_WEIGHTS_FLOATPARTS"),
        ("int8_channel_stem", "float16_channel_none", 6, "expected float32, float16 or"),
        ("int8_channel_stem", "float16_qat", 6, "expected float32, float16 or"),
        ("int8_channel_stem", "int8_channel_stem_none", 6, "with or without _qat"),
        ("int8_channel_stem", "int8_channel_qat", 6, "unknown parts kept in float 'qat'"),
    ],
)
def test_an_error_points_at_the_part_and_says_what_is_wrong(old, new, part, said):
    with pytest.raises(UserError) as error:
        parse(GOOD.replace(old, new, 1))
    assert f"part {part} " in str(error.value)
    assert said in str(error.value)


def test_no_single_changed_character_is_read_silently_as_the_same_architecture():
    original, rng = parse(GOOD), random.Random(0)
    for _ in range(2000):
        at = rng.randrange(len(GOOD))
        changed = GOOD[:at] + rng.choice("0123456789x_/abcdeghkmnpqrstw.") + GOOD[at + 1 :]
        if changed == GOOD:
            continue
        try:
            assert parse(changed) != original
            assert str(parse(changed)) == changed
        except UserError:
            pass


def test_too_few_parts_are_named():
    with pytest.raises(UserError, match="3 part"):
        parse("logmel/gap/int8")


@pytest.mark.parametrize(
    "rate, clip_s, fft, hop, mels, shape",
    [
        (44100, 10, 2048, 1024, 128, (1, 128, 431)),  # Saleem et al. 2022
        (16000, 1, 512, 160, 40, (1, 40, 101)),  # BC-ResNet
        (32000, 1, 4096, 500, 256, (1, 256, 65)),  # DCASE 2024 baseline
    ],
)
def test_front_ends_of_the_literature_have_their_published_shapes(
    rate, clip_s, fft, hop, mels, shape
):
    assert FrontEnd(rate, clip_s, fft, fft, hop, mels).shape == shape


def test_a_stage_refuses_what_its_kind_does_not_have():
    with pytest.raises(UserError, match="block kind 'ds' has no expansion"):
        Stage("ds", channels=8, expansion=2.0)


def test_only_int8_takes_further_choices():
    with pytest.raises(UserError, match="only int8"):
        Quantization("float16", weights="tensor")


def test_every_kind_of_block_is_described():
    assert all(kind.summary and kind.keys for kind in KINDS.values())
